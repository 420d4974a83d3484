"""The answers of an evaluation's tasks. What they wait for is said, and tasks that stand still are given up.

A model takes minutes or hours, in which a task's only sign of life is the processor time of its process. A GPU that
hangs keeps its process busy, and is not noticed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.errors import FusionError
from pipelines.cluster.needs import Need
from pipelines.cluster.waiting import SAY_SECONDS, missing_room, rooms_now

Key = TypeVar("Key", bound=Hashable)

#: Seconds between two looks at the tasks, and between two signs of life of each.
LOOK_SECONDS, SIGN_SECONDS = 1.0, 2.0

#: After so many seconds a sign of life says nothing more: its process may have been lost with its node.
SIGN_LASTS_SECONDS = 3 * SIGN_SECONDS

#: A process that uses less of a core stands still: Ray's own threads in it need a little.
LEAST_SHARE = 0.02


def answers(
    need: Need,
    work: Callable[..., Any],
    asked: Mapping[Key, Sequence[Any]],
    stall_minutes: float,
    say: Callable[[str], None],
) -> dict[Key, Any]:
    """Do some work for each key in a Ray task of its own, as many at once as the cluster has room for.

    Args:
        need: of each task.
        asked: key to the arguments of ``work``.
        stall_minutes: how long all tasks may stand still, or wait for a node.
        say: prints a line.

    Returns:
        Key to what ``work`` returns, in the order of ``asked``.

    Raises:
        FusionError: nothing has moved for ``stall_minutes``; says what each task was doing.
        Exception: Ray's, with the first error of a task inside.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    signs = ray.remote(num_cpus=0, scheduling_strategy=here)(Signs).remote()
    task = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, label_selector=dict(need.labels))(at_work)
    task = task.options(name=work.__name__)
    keys = list(asked)
    running = {task.remote(signs, number, work, *asked[key]): number for number, key in enumerate(keys)}
    found: dict[int, Any] = {}
    watch = _Watch(need, [str(key) for key in keys], stall_minutes, say)
    try:
        while running:
            done, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            found |= {running.pop(one): ray.get(one) for one in done}
            if running:
                watch.see(list(running.values()), ray.get(signs.seen.remote()))
    finally:
        for one in running:
            ray.cancel(one, force=True)
    return {key: found[number] for number, key in enumerate(keys)}


class Signs:
    """An actor that hears how much processor time each task has used. Tasks are numbers, for two may have one name."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[float, float]] = {}

    def hear(self, task: int, seconds: float) -> None:
        """Take in the processor time of a task's process so far."""
        self._heard[task] = time.monotonic(), seconds

    def seen(self) -> dict[int, float]:
        """Task to seconds of all that have given a sign lately."""
        now = time.monotonic()
        return {task: seconds for task, (heard, seconds) in self._heard.items() if now - heard < SIGN_LASTS_SECONDS}


def at_work(signs: ActorHandle, task: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do a task's work, and give signs of life meanwhile."""
    ended = threading.Event()

    def give_signs() -> None:
        while not ended.is_set():
            signs.hear.remote(task, time.process_time())
            ended.wait(SIGN_SECONDS)

    threading.Thread(target=give_signs, name="signs of life", daemon=True).start()
    try:
        return work(*arguments)
    finally:
        ended.set()


class _Watch:
    """Says what tasks wait for, and ends the wait for tasks that stand still."""

    def __init__(self, need: Need, names: Sequence[str], stall_minutes: float, say: Callable[[str], None]):
        self._need = need
        self._names = names
        self._minutes = stall_minutes
        self._say = say
        self._seconds: dict[int, float] = {}
        self._moved = time.monotonic()
        self._said = 0.0
        self._running: Sequence[int] = ()

    def see(self, running: Sequence[int], seconds: Mapping[int, float]) -> None:
        """Compare the tasks with those of the last look that found something moving.

        Args:
            running: tasks without an answer.
            seconds: processor time of each that has given a sign lately.

        Raises:
            FusionError: nothing has moved for too long.
        """
        now = time.monotonic()
        least = LEAST_SHARE * (now - self._moved)
        begun = [task for task in running if task in seconds]
        moves = any(task not in self._seconds or abs(seconds[task] - self._seconds[task]) > least for task in begun)
        if moves or list(running) != list(self._running):
            self._moved, self._seconds, self._running = now, dict(seconds), list(running)
        quiet = now - self._moved
        is_over = quiet >= 60 * self._minutes
        if not is_over and now - max(self._said, self._moved) < SAY_SECONDS:
            return
        state = self._state(seconds)
        if is_over:
            raise FusionError(
                f"nothing of it has moved for {self._minutes:g} minutes (cluster.stall_minutes): {state}; run "
                f"`engine evaluate` when the cause is gone"
            )
        self._said = now
        self._say(f"the evaluation stands still, {quiet / 60:.1f} of at most {self._minutes:g} minutes: {state}")

    def _state(self, seconds: Mapping[int, float]) -> str:
        """What each task does, and what is missing for those that wait."""
        begun = [self._names[task] for task in self._running if task in seconds]
        waiting = [self._names[task] for task in self._running if task not in seconds]
        parts = [f"{', '.join(begun)}: has begun and uses no processor time"] if begun else []
        if waiting:
            missing = missing_room([self._need], *rooms_now())
            reasons = "; ".join(f"{fault.where}: {fault.what}" for fault in missing)
            reasons = reasons or "there is one, so its process is starting, or gives no sign of life"
            parts.append(f"{', '.join(waiting)}: waits for a node; {reasons}")
        return "; ".join(parts)
