"""A running stream seen from outside: the work of its stages, the time and memory of its processes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from engine.history.result import Progress, RunResult, StageTotals
from engine.spec import FusionSpec

SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class Look:
    """The run at one moment.

    Attributes:
        now: seconds on the run's clock.
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


class LooksKept:
    """An observer of a run (``engine.reporting.watch``) that looks at its processes too, and keeps what it has seen."""

    product = "the benchmark's record"

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._cpu_seconds: dict[tuple[int, float], tuple[str, float]] = {}

    def see(self, picture: Progress, now: float) -> None:
        """Look, if it is time again."""
        if self.looks and now < self.looks[-1].now + SECONDS_BETWEEN_LOOKS:
            return
        private_bytes = self._look_at_processes()
        cpu_seconds: dict[str, float] = defaultdict(float)
        for kind, seconds in self._cpu_seconds.values():
            cpu_seconds[kind] += seconds
        stages = {stage.name: stage for stage in picture.stages}
        self.looks.append(Look(now, stages, dict(cpu_seconds), private_bytes, object_store_bytes()))

    def close(self) -> None:
        """Nothing is left to do."""

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
    from pipelines.run import runner, start

    kept = LooksKept()
    with mock.patch.object(runner, "chosen_trackers", lambda spec: [kept]):
        return start.run(spec), kept.looks


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
