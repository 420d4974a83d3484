"""Waiting for a cluster that is starting or busy: what is missing, who holds it, and how long the run waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import ray
from ray._private import state

from engine.errors import Fault, PreflightError
from pipelines.cluster.needs import Need
from pipelines.cluster.placement import Room, first_fit, shortages

#: Seconds between two looks at the cluster, and between two lines about what is missing.
LOOK_SECONDS, SAY_SECONDS = 1.0, 30.0


def wait_for_room(needs: Sequence[Need], minutes: float, say: Callable[[str], None]) -> None:
    """Wait until the cluster has room for all processes of a run at once.

    Where nothing is surely missing, but no node was found for each process, the run may fit all the same
    (``placement.first_fit``). It starts when the waiting is over, or at once if all is free: nodes that come later
    serve processes that have started to wait as well.

    Args:
        needs: of all processes that run at once.
        minutes: the longest wait.
        say: prints a line.

    Raises:
        PreflightError: what is missing after ``minutes``.
    """
    began = time.monotonic()
    next_line = began
    while True:
        rooms, free = rooms_now()
        missing = missing_room(needs, rooms, free)
        unplaced = [] if missing else first_fit(needs, free)
        if not missing and not unplaced:
            return
        seen = "; ".join(f"{fault.where}: {fault.what}" for fault in missing) or _shown(unplaced, free == rooms)
        now = time.monotonic()
        is_over = now >= began + 60 * minutes
        if unplaced and (is_over or free == rooms):
            say(f"starting all the same, for in another order all may fit: {seen}")
            return
        if is_over:
            raise PreflightError(missing)
        if now >= next_line:
            say(f"waiting for the cluster, {(now - began) / 60:.1f} of at most {minutes:g} minutes: {seen}")
            next_line = now + SAY_SECONDS
        time.sleep(LOOK_SECONDS)


def look_ahead(later: Sequence[Need], may_grow: bool, say: Callable[[str], None]) -> None:
    """Look for the nodes of processes that run when those of now have ended, each alone.

    Where nodes may still come, a missing one is a warning: it may be needed in days, and an autoscaler adds it when the
    processes ask for it. The evaluation waits for it (``evaluation.answers``).

    Args:
        may_grow: whether nodes may come; not so for a Ray that the run has started.
        say: prints a line.

    Raises:
        PreflightError: a node is missing and cannot come.
    """
    rooms, _ = rooms_now()
    missing = [fault for need in later for fault in shortages([need], rooms)]
    if missing and not may_grow:
        raise PreflightError(missing)
    for fault in missing:
        say(f"needed when training has ended, and not there yet: {fault}")


def rooms_now() -> tuple[list[Room], list[Room]]:
    """What each node of the cluster has, and what is free of it."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    free = state.state.available_resources_per_node()
    return (
        [Room.of(node, node["Resources"]) for node in nodes],
        [Room.of(node, free.get(node["NodeID"], {})) for node in nodes],
    )


def missing_room(needs: Sequence[Need], rooms: Sequence[Room], free: Sequence[Room]) -> list[Fault]:
    """A fault for all of which the cluster surely has too little; else for all of which other work holds too much."""
    faults = shortages(needs, rooms)
    if faults:
        return faults
    remedy = "wait for the other jobs or stop them, or add nodes"
    return [
        Fault(fault.where, f"{fault.what}; {_holders()}", remedy) for fault in shortages(needs, free, free_of=rooms)
    ]


def _shown(unplaced: Sequence[tuple[Need, int]], is_all_free: bool) -> str:
    """What has found no node, in words."""
    left = ", ".join(f"{count} of {need.count} ({need.who})" for need, count in unplaced)
    holders = "" if is_all_free else f"; {_holders()}"
    return f"cluster: placed one after the other, these find no node: {left}{holders}"


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
