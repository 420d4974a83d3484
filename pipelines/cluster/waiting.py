"""Waiting for a cluster that is starting or busy: what is missing, who holds it, and how long the run waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import ray
from ray._private import state

from engine.errors import Fault, PreflightError

#: Seconds between two looks at the cluster, and between two lines about what is missing.
LOOK_SECONDS, SAY_SECONDS = 1.0, 30.0

#: Ray counts resources in units of 0.0001.
_SMALLEST = 1e-4


def wait_for_room(
    logical_cpus: float, gpus: float, minutes: float, places: Callable[[], list[Fault]], say: Callable[[str], None]
) -> None:
    """Wait until the cluster has room for all stages of a run at once.

    Args:
        logical_cpus, gpus: reserved at once.
        minutes: the longest wait.
        places: faults of replicas and workers that fit on no node at present.
        say: prints a line.

    Raises:
        PreflightError: what is missing after ``minutes``.
    """
    began = time.monotonic()
    next_line = began
    while faults := [*missing_resources(logical_cpus, gpus), *places()]:
        now = time.monotonic()
        if now >= began + 60 * minutes:
            raise PreflightError(faults)
        if now >= next_line:
            missing = "; ".join(f"{fault.where}: {fault.what}" for fault in faults)
            say(f"waiting for the cluster, {(now - began) / 60:.1f} of at most {minutes:g} minutes: {missing}")
            next_line = now + SAY_SECONDS
        time.sleep(LOOK_SECONDS)


def missing_resources(logical_cpus: float, gpus: float) -> list[Fault]:
    """A fault for each kind of resource of which the cluster has too little, or of which other jobs hold too much."""
    total, free = ray.cluster_resources(), ray.available_resources()
    faults = []
    for name, needed in (("CPU", logical_cpus), ("GPU", gpus)):
        reserved = f"the run reserves {needed:g} logical {name}s at once"
        if total.get(name, 0.0) < needed - _SMALLEST:
            remedy = "add nodes, or lower replicas, num_cpus and num_gpus of the source models and training workers"
            faults.append(Fault("cluster", f"{reserved}, the cluster has {total.get(name, 0.0):g}", remedy))
        elif free.get(name, 0.0) < needed - _SMALLEST:
            reason = f"{reserved}, {free.get(name, 0.0):g} of {total[name]:g} are free; {_holders()}"
            faults.append(Fault("cluster", reason, "wait for the other jobs or stop them, or add nodes"))
    return faults


def _holders() -> str:
    """The jobs that work on the cluster beside this one, in words."""
    own = ray.get_runtime_context().get_job_id()
    others = [job for job in state.state.job_table() if not job["IsDead"] and job["JobID"] != own]
    jobs = ", ".join(f"{job['Entrypoint'] or 'a job'} (from {job['DriverIPAddress']})" for job in others)
    return (
        f"other jobs: {jobs}" if jobs else "no other job is at work, so actors of this one or detached ones hold them"
    )


def warn(line: str) -> None:
    """Print a line for the person who waits."""
    print(line, file=sys.stderr, flush=True)
