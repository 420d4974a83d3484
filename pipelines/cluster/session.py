"""Ray for one run: a submitted job's cluster, else a local one with the logical CPUs that the run needs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray._raylet import AuthenticationTokenLoader

from engine.errors import Fault, PreflightError
from engine.spec import FusionSpec
from pipelines.cluster.linux_scheduling import children_for_throughput

#: Set before Ray starts, so that all of its processes inherit them.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without GPUs keeps CUDA_VISIBLE_DEVICES as it is
    "TOKENIZERS_PARALLELISM": "false",  # one process a stage is Ray's business, not the tokenizer's
}

#: For a Ray that the run starts by itself, whose processes share the cores with the stream.
LOCAL = {
    "RAY_prestart_worker_first_driver": "0",  # workers start when they are needed, not one for each logical CPU,
    "RAY_worker_maximum_startup_concurrency": "16",  # and as many at once as the stream asks for
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine back
    "LOG_NAME_UPDATE_INTERVAL_S": "10",  # of looking for new log files, which nobody follows; heeded only where the
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # files are many, else it looks ten times a second
    "RAY_event_stats": "0",  # no statistics of each small step of Ray's own processes
}

#: Where no dashboard is shown: what it alone would show, less often.
UNSEEN = {
    "REPORTER_UPDATE_INTERVAL_MS": "15000",  # of measuring every process of the machine
    "RAY_task_events_report_interval_ms": "10000",  # of every process telling of its tasks
}

#: Ray Train's name for what the dashboard's Train tab shows; it takes a process.
TRAIN_TAB = "RAY_TRAIN_ENABLE_STATE_TRACKING"


@contextmanager
def session(spec: FusionSpec, logical_cpus: float, gpus: float) -> Iterator[None]:
    """Connect to Ray for as long as the block lasts.

    Joins the Ray that this process already uses, or the one that ``RAY_ADDRESS`` names (a submitted job has it), and
    otherwise starts a local one.

    Raises:
        PreflightError: the cluster cannot reserve what the run needs, so that the stream would wait for ever.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    owns_connection = not ray.is_initialized()
    starts_ray = owns_connection and "RAY_ADDRESS" not in os.environ
    os.environ[TRAIN_TAB] = "0" if starts_ray and not spec.cluster.dashboard else "1"
    if owns_connection:
        _connect(spec, logical_cpus)
    try:
        _check_room(logical_cpus, gpus)
        yield
    finally:
        if owns_connection:
            ray.shutdown()


def spilled_bytes() -> int:
    """Bytes that Ray has moved from shared memory to disk since the cluster started; a healthy stream spills none."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)


def _connect(spec: FusionSpec, logical_cpus: float) -> None:
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level="ERROR")
        return
    for name, value in (LOCAL if spec.cluster.dashboard else LOCAL | UNSEEN).items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray protects a local cluster by a token; given one, it does not write its own into the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        AuthenticationTokenLoader.instance().reset_cache()  # this process may have used another Ray before
    with children_for_throughput():
        ray.init(
            address="local",
            # Logical CPUs are admission tickets, not cores: with fewer than the pools reserve, the stream would hang.
            num_cpus=max(os.cpu_count() or 1, int(-(-logical_cpus // 1))),
            object_store_memory=spec.cluster.object_store_bytes,
            include_dashboard=spec.cluster.dashboard,
            log_to_driver=False,
            logging_level="ERROR",
        )


def _check_room(logical_cpus: float, gpus: float) -> None:
    resources = ray.cluster_resources()
    faults = []
    for name, needed in (("CPU", logical_cpus), ("GPU", gpus)):
        seen = resources.get(name, 0.0)
        if seen < needed:
            faults.append(
                Fault(
                    "cluster",
                    f"the run reserves {needed:g} logical {name}s at once, the cluster has {seen:g}",
                    "add nodes, or lower replicas, num_cpus and num_gpus of the source models and training workers",
                )
            )
    if faults:
        raise PreflightError(faults)
