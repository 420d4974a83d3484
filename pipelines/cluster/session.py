"""Ray for one run: a submitted job's cluster, else a local Ray with the logical CPUs that the run needs."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import grpc
import ray
from ray._private import services, worker
from ray._private.grpc_utils import init_grpc_channel
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray._raylet import AuthenticationTokenLoader
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from engine.errors import Fault, PreflightError, first_line
from engine.spec import FusionSpec
from pipelines.cluster.autoscaling import nodes_asked_for
from pipelines.cluster.fork_server import workers_forked
from pipelines.cluster.local_ray import starts_local_ray
from pipelines.cluster.needs import Need, total_cpus
from pipelines.cluster.waiting import look_ahead, wait_for_room, warn

#: Environment of every run. It is set before Ray starts, so that all of Ray's processes inherit it.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without GPUs keeps CUDA_VISIBLE_DEVICES as it is
    "TOKENIZERS_PARALLELISM": "false",  # the stream has a process for each stage already
}

#: Environment of a Ray that the run starts by itself.
LOCAL = {
    "RAY_prestart_worker_first_driver": "0",  # else a worker for each logical CPU, of which there are more than cores
    # All stages start together. Ray would start one worker for each core at a time, and warn the user of the others.
    "RAY_worker_maximum_startup_concurrency": str(max(16, os.cpu_count() or 1)),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that watches for machines that a cloud takes back
    # Ray gives its workers the lowest priority but four. On a machine with other work to do they would hardly run: by
    # the kernel's weights they get a thirtieth of a core beside one busy loop.
    "RAY_worker_niceness": "0",
}

#: How often a local Ray is started. On a busy machine its processes may miss each other's time limits once.
STARTS = 2

#: Seconds within which Ray must answer at RAY_ADDRESS. Ray itself would try for many minutes.
CONNECT_SECONDS = 10.0

#: Ray Train's name for the state that the dashboard's Train tab shows; it takes a process.
TRAIN_TAB = "RAY_TRAIN_ENABLE_STATE_TRACKING"


@contextmanager
def ray_session(spec: FusionSpec, needs: Sequence[Need], later: Sequence[Need] = (), forks: str = "") -> Iterator[None]:
    """Connect to Ray for as long as the block lasts.

    Joins the Ray that this process already uses, or the one that ``RAY_ADDRESS`` names (a submitted job has it), and
    otherwise starts a local one; an empty ``RAY_ADDRESS`` names none.

    Args:
        spec: of the run; its section ``cluster``.
        needs: of all processes that run at once.
        later: of processes that run when those have ended, each alone; their nodes may come later too.
        forks: socket of a fork server for the workers of a local Ray; empty for none.

    Raises:
        PreflightError: no Ray answers at ``RAY_ADDRESS``; a local Ray does not start; or a cluster cannot reserve what
            the run needs within ``cluster.wait_minutes``, so that the run would wait forever.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    owns_connection = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS", "")
    starts_ray = starts_local_ray()
    os.environ[TRAIN_TAB] = "0" if starts_ray and not spec.cluster.dashboard else "1"
    with _own_sigterm():
        if starts_ray:
            with workers_forked(forks) if forks else nullcontext():
                _start(spec, total_cpus(needs))
        elif owns_connection:
            _join(address)
    try:
        minutes = 0.0 if starts_ray else spec.cluster.wait_minutes
        with nullcontext() if starts_ray else nodes_asked_for(needs):
            wait_for_room(needs, minutes, warn)
            look_ahead(later, not starts_ray, warn)
            yield
    finally:
        try:
            if starts_ray:
                _end_helpers()
        finally:
            if owns_connection:
                ray.shutdown()


def _end_helpers() -> None:
    """End those processes of a local Ray that only look at it; Ray would wait a second for each that is slow to end."""
    node = worker._global_node
    if node is not None:  # Ray has ended, with the cluster or by the user
        for end in (node.kill_monitor, node.kill_log_monitor, node.kill_dashboard):
            end(check_alive=False)


def spilled_bytes() -> int:
    """Bytes that Ray has moved from shared memory to disk since the cluster started; a healthy stream spills none."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM; Ray's would end the process at once, wherever its threads are."""
    is_main = threading.current_thread() is threading.main_thread()  # Python sets handlers there alone, and so does Ray
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _join(address: str) -> None:
    try:
        if address.startswith("ray://"):
            raise ConnectionError("a run needs a cluster's own address, ray:// is Ray Client's")
        if address == "auto":
            address = services.canonicalize_bootstrap_address_or_die("auto")
        if "://" not in address and ":" in address:
            _check_alive(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many kinds: of a name, of the connection, of another version of Ray
        reason = f"no Ray answers at {address!r}: {type(error).__name__}: {error}"
        remedy = "set it to HOST:PORT of a running cluster, or unset it to start a local Ray"
        raise PreflightError([Fault("environment variable RAY_ADDRESS", reason, remedy)]) from error


def _check_alive(address: str) -> None:
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=CONNECT_SECONDS)
    except grpc.RpcError as error:
        raise ConnectionError(f"{error.code().name}: {error.details()}") from error


def _start(spec: FusionSpec, logical_cpus: float) -> None:
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray protects a local cluster by a token; given one, it does not write its own into the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        AuthenticationTokenLoader.instance().reset_cache()  # this process may have used another Ray before
    for attempt in range(STARTS):
        try:
            _start_once(spec, logical_cpus)
            return
        except Exception as error:  # of a socket's path, of memory, of a process that Ray could not start
            ray.shutdown()
            if attempt == STARTS - 1:
                reason = (
                    f"a local Ray does not start, tried {STARTS} times: {type(error).__name__}: {first_line(error)}"
                )
                remedy = (
                    "if the machine is busy, try again when it is not; if a path is too long, set RAY_TMPDIR to a "
                    "short folder; else read the logs in Ray's temporary folder"
                )
                raise PreflightError([Fault("cluster", reason, remedy)]) from error


def _start_once(spec: FusionSpec, logical_cpus: float) -> None:
    ray.init(
        address="local",
        # Logical CPUs are admission tickets, not cores: with fewer than the pools reserve, the stream would hang.
        num_cpus=max(os.cpu_count() or 1, int(-(-logical_cpus // 1))),
        object_store_memory=spec.cluster.object_store_bytes,
        include_dashboard=spec.cluster.dashboard,
        log_to_driver=False,
        logging_level="ERROR",
    )
