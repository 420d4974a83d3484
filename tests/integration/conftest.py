"""One local Ray for all tests of this folder that may share it: to start one costs ten seconds of two cores."""

import os
from contextlib import ExitStack

import pytest
import ray

from pipelines.cluster.fork_server import fork_server, workers_forked
from pipelines.cluster.session import LOCAL, QUIET, TRAIN_TAB

#: What the shared Ray's workers are forked from, for as long as that Ray lasts.
FORKS = ExitStack()


@pytest.fixture(scope="module")
def shared_ray():
    """The Ray of this process, started as a run starts it; ``engine.run`` joins it. It stays for the next test."""
    if not ray.is_initialized():
        os.environ.update({**QUIET, **LOCAL, TRAIN_TAB: "0"})
        with workers_forked(
            FORKS.enter_context(fork_server(with_vllm=True))
        ):  # no other Ray's, which this process starts
            ray.init(
                address="local",
                num_cpus=12,
                object_store_memory=2**28,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _system_config={"metrics_report_interval_ms": 1000},
            )


@pytest.fixture
def no_ray():
    """No Ray in this process, before and after: the test starts its own."""
    end_ray()
    yield
    end_ray()


@pytest.fixture(scope="session", autouse=True)
def ray_ends():
    """The shared Ray ends before what its workers are forked from."""
    yield
    end_ray()


def end_ray() -> None:
    ray.shutdown()
    FORKS.close()
