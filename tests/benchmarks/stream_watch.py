"""A running stream, looked at from outside once a second: what its stages have done, and what its processes have used.

``Watch`` takes the place of the run's own display, which has the same contract: a context for as long as it trains.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from unittest import mock

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from engine.result import Progress, RunResult, StageTotals
from engine.spec import FusionSpec

SECONDS_BETWEEN_LOOKS = 1.0

#: More than a run has: a picture with totals alone.
NO_STEPS = 2**62


@dataclass(frozen=True)
class Look:
    """The run at one moment.

    Attributes:
        now: seconds on a clock of its own.
        stages: by name, totals since the start.
        cpu_seconds: of all processes by their kind, since the start; those that have ended included.
        private_bytes: of all processes by their kind, memory that they share with others left out.
        object_store_bytes: held in shared memory.
    """

    now: float
    stages: dict[str, StageTotals]
    cpu_seconds: dict[str, float]
    private_bytes: dict[str, int]
    object_store_bytes: int

    def passages(self, stage: str) -> int:
        """Done by a stage so far."""
        return self.stages[stage].passages if stage in self.stages else 0


@dataclass
class Watch:
    """Looks at a run while it trains; made by ``engine.runner`` in place of its display."""

    spec: FusionSpec
    snapshot: Callable[[int], Progress]
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._cpu_seconds: dict[tuple[int, float], tuple[str, float]] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join(timeout=5.0)

    def _watch(self) -> None:
        while not self._left.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.looks.append(self._look())
            except ray.exceptions.RayError:  # the cluster goes down: the run itself says what is wrong
                return

    def _look(self) -> Look:
        stages = {stage.name: stage for stage in self.snapshot(NO_STEPS).stages}
        private_bytes = self._look_at_processes()
        cpu_seconds: dict[str, float] = defaultdict(float)
        for kind, seconds in self._cpu_seconds.values():
            cpu_seconds[kind] += seconds
        return Look(time.monotonic(), stages, dict(cpu_seconds), private_bytes, object_store_bytes())

    def _look_at_processes(self) -> dict[str, int]:
        """Keep what each process has used so far; the private memory by kind."""
        private_bytes: dict[str, int] = defaultdict(int)
        here = psutil.Process()
        for process in [here, *here.children(recursive=True)]:
            try:
                kind = "driver" if process == here else kind_of(process)
                times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:  # it has ended meanwhile
                continue
            self._cpu_seconds[process.pid, process.create_time()] = kind, times.user + times.system
            private_bytes[kind] += memory.rss - memory.shared
        return dict(private_bytes)


def watched_run(spec: FusionSpec) -> tuple[RunResult, list[Look]]:
    """``engine.run``, looked at."""
    from engine import runner  # brings numba, whose modules vLLM's start fails on in the stages' own processes

    watches: list[Watch] = []

    def watch(*arguments) -> Watch:
        watches.append(Watch(*arguments))
        return watches[-1]

    with mock.patch.object(runner, "ProgressDisplay", watch):
        result = runner.run(spec)
    return result, watches[0].looks


def window(looks: Sequence[Look], spec: FusionSpec) -> tuple[Look, Look]:
    """The looks between which all stages work: from the first steps on, until the first source has done its last batch.

    Raises:
        ValueError: there is no such time; the run is too short.
    """
    name = spec.source_models[0].name
    most = looks[-1].passages(name)
    steady = [look for look in looks if look.passages("train") and look.passages(name) < most]
    if len(steady) < 5:
        raise ValueError(f"all stages worked together for {len(steady)} looks only; raise the number of passes")
    return steady[0], steady[-1]


def kind_of(process: psutil.Process) -> str:
    """What a process of Ray's is for: the stage that it works for, or Ray itself."""
    title = " ".join(process.cmdline())
    if not title.startswith("ray::"):
        return "ray"
    inside = re.search(r"MapBatches\((\w+)\)", title)
    return inside[1] if inside else re.split(r"[.( ]", title.removeprefix("ray::"))[0]


def object_store_bytes() -> int:
    """Bytes that Ray holds in shared memory just now."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.object_store_bytes_used)
