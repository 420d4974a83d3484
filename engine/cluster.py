"""Ray for one run: a submitted job's cluster, else a local one with the logical CPUs that the run needs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from engine.errors import Fault, PreflightError
from engine.spec import FusionSpec

#: Set before Ray starts, so that all of its processes inherit them.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without GPUs keeps CUDA_VISIBLE_DEVICES as it is
    "TOKENIZERS_PARALLELISM": "false",  # one process a stage is Ray's business, not the tokenizer's
}

#: For a Ray that the run starts by itself: workers start when they are needed, not one for each logical CPU, and as
#: many at once as the stream asks for.
LOCAL = {"RAY_prestart_worker_first_driver": "0", "RAY_worker_maximum_startup_concurrency": "16"}


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
    if owns_connection:
        _connect(spec, logical_cpus)
    try:
        _insist_on_room(logical_cpus, gpus)
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
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray protects a local cluster by a token; given one, it does not write its own into the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _children_for_throughput():
        ray.init(
            address="local",
            # Logical CPUs are admission tickets, not cores: with fewer than the pools reserve, the stream would hang.
            num_cpus=max(os.cpu_count() or 1, int(-(-logical_cpus // 1))),
            object_store_memory=spec.cluster.object_store_bytes,
            include_dashboard=spec.cluster.dashboard,
            log_to_driver=False,
            logging_level="ERROR",
        )


@contextmanager
def _children_for_throughput() -> Iterator[None]:
    """Processes that are started inside the block do not take a core from each other whenever they wake up.

    With more stages than cores they would, and each time find the caches full of another model: an eighth of the
    tokens per second of the quickstart. Where cores are many this changes nothing.
    """
    if not hasattr(os, "SCHED_BATCH"):  # Linux has it
        yield
        return
    policy, settings = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.sched_setscheduler(0, policy, settings)


def _insist_on_room(logical_cpus: float, gpus: float) -> None:
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
