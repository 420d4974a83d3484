"""One local Ray for all tests of this folder that may share it: to start one costs ten seconds of two cores."""

import os

import pytest
import ray

from pipelines.cluster.session import LOCAL, QUIET, TRAIN_TAB


@pytest.fixture(scope="module")
def shared_ray():
    """The Ray of this process, started as a run starts it; ``engine.run`` joins it. It stays for the next test."""
    if not ray.is_initialized():
        os.environ.update({**QUIET, **LOCAL, TRAIN_TAB: "0"})
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
    ray.shutdown()
    yield
    ray.shutdown()
