"""Run monitor: one process to which every stage reports its work, and which the driver asks for a snapshot.

The numbers are for people. Exact values (learned passages, losses, win rates) travel with the data instead.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import FusionError
from engine.history.result import TRAIN, LeftOut, Progress, SkippedRow, StageTotals, StepRecord


class RunMonitor:
    """Sums up the reports of all replicas of all stages. Reports carry totals, so a repeated one changes nothing."""

    def __init__(self) -> None:
        self._processes: dict[str, dict[tuple[str, str], StageTotals]] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._streams = 0
        self._earlier: set[tuple[str, str]] = set()
        self._steps: dict[int, StepRecord] = {}
        self._skipped: dict[tuple[str, int], SkippedRow] = {}
        self._left_out: dict[tuple[str, str], LeftOut] = {}

    def begin_stream(self) -> None:
        """Note that a stream begins, with new replicas: the first, or one after a restart of the training workers."""
        self._streams += 1
        self._earlier = {key for processes in self._processes.values() for key in processes}

    def report(self, replica: str, process: str, totals: StageTotals) -> None:
        """Take the totals of one process so far; they replace its earlier report.

        A replica that dies goes on as another process; the work of the dead process still counts.
        """
        self._processes.setdefault(totals.name, {})[replica, process] = totals

    def start(self, replica: str, process: str, stage: str, deaths: int = 0) -> int:
        """Note that a replica's process has started, after ``deaths`` deaths of the same replica by Ray's count.

        Returns:
            How many of the stage's processes have replaced a dead one.
        """
        self._processes.setdefault(stage, {}).setdefault((replica, process), StageTotals(stage))
        self._deaths[stage, replica] = deaths
        total = self._sum(stage)
        return total.starts - total.replicas

    def step(self, record: StepRecord) -> None:
        """Add one optimizer step; a step that is taken again after a restart replaces the first."""
        self._steps[record.step] = record

    def skip(self, row: SkippedRow) -> None:
        """Add a file or row that was left out; it counts once, however often it is read."""
        self._skipped[row.path, row.row] = row

    def leave_out(self, source: str, passage_ids: Sequence[str], reason: str) -> None:
        """Add passages that a source has not scored; each counts once, however often it comes."""
        for passage_id in passage_ids:
            self._left_out[source, passage_id] = LeftOut(source, passage_id, reason)

    def snapshot(self, since_step: int = 0) -> Progress:
        """Everything so far, but only the steps after ``since_step``; the totals count all steps."""
        stages = [self._sum(name) for name in self._processes]
        if self._steps:
            stages.append(_train_totals(self._steps.values(), max(1, self._streams)))
        return Progress(
            stages=tuple(stages),
            steps=tuple(self._steps[step] for step in sorted(self._steps) if step > since_step),
            skipped=tuple(self._skipped[key] for key in sorted(self._skipped)),
            left_out=tuple(self._left_out[key] for key in sorted(self._left_out)),
        )

    def _sum(self, name: str) -> StageTotals:
        """The totals of a stage over all of its processes; its replicas are those of the present stream."""
        processes = self._processes[name]
        totals = processes.values()
        started = Counter(replica for replica, _ in processes)
        deaths = [max(count - 1, self._deaths.get((name, replica), 0)) for replica, count in started.items()]
        replicas = {replica for replica, process in processes if (replica, process) not in self._earlier}
        return StageTotals(
            name=name,
            passages=sum(total.passages for total in totals),
            tokens=sum(total.tokens for total in totals),
            busy_seconds=sum(total.busy_seconds for total in totals),
            wait_seconds=sum(total.wait_seconds for total in totals),
            replicas=len(replicas),
            starts=len(replicas) + sum(deaths),
        )


class Meter:
    """Reports one replica's totals to the run monitor, after every call of its stage.

    A meter is made where the stream is built and starts to count when it arrives at its replica. It reports after every
    call: Ray Data kills the replicas of a stage as soon as its last call has returned.

    Args:
        stage: name of the stage.
        monitor: handle of the run's ``RunMonitor`` actor.
        max_restarts: how often in all the stage's replicas may die and be replaced.
        limit: the spec's name for this number.
    """

    def __init__(self, stage: str, monitor: Any, max_restarts: int = 0, limit: str = "training.max_restarts"):
        self._stage = stage
        self._monitor = monitor
        self._max_restarts = max_restarts
        self._limit = limit
        self._process = uuid.uuid4().hex
        self._last_end: float | None = None
        self._totals = StageTotals(stage)
        self._lock = threading.Lock()  # a replica with two batches in flight records from two threads

    def __reduce__(self) -> tuple:
        return Meter, (self._stage, self._monitor, self._max_restarts, self._limit)

    def start(self) -> int:
        """Report that this process has started; returns how many replicas of its stage have been replaced so far."""
        ray = sys.modules["ray"]
        replica = _actor_id()
        started = self._monitor.start.remote(replica or self._process, self._process, self._stage, _deaths(replica))
        return ray.get(started)

    def start_or_refuse(self) -> None:
        """Report that this process has started, and refuse if the stage's replicas die too often.

        Ray itself would replace them for ever.

        Raises:
            FusionError: the stage's replicas have died more often than ``max_restarts``.
        """
        restarts = self.start()
        if restarts > self._max_restarts:
            raise FusionError(
                f"{self._stage}: its replicas have died {restarts} times, {self._limit} is {self._max_restarts}; "
                f"look for what ends them in Ray's logs (out of memory, a broken GPU, a lost node)"
            )

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Add one call that has just ended; the time since the call before, less ``busy_seconds``, was waiting.

        Where two calls overlap, the time that they share counts once.
        """
        with self._lock:
            now = time.perf_counter()
            since = busy_seconds if self._last_end is None else now - self._last_end
            self._last_end = now
            self._totals = replace(
                self._totals,
                passages=self._totals.passages + passages,
                tokens=self._totals.tokens + tokens,
                busy_seconds=self._totals.busy_seconds + min(busy_seconds, since),
                wait_seconds=self._totals.wait_seconds + max(0.0, since - busy_seconds),
            )
            self._monitor.report.remote(_actor_id() or self._process, self._process, self._totals)

    def skip(self, row: SkippedRow) -> None:
        """Report a file or row that was left out."""
        self._monitor.skip.remote(row)

    def leave_out(self, passage_ids: Sequence[str], reason: str) -> None:
        """Report passages that this stage's source does not score."""
        self._monitor.leave_out.remote(self._stage, passage_ids, reason)


class NoMeter:
    """Counts nothing, for use outside a run."""

    def start(self) -> int:
        """Count no process: 0 replicas were replaced."""
        return 0

    def start_or_refuse(self) -> None:
        """Count no process and never refuse."""

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Drop the report."""

    def skip(self, row: SkippedRow) -> None:
        """Drop the report."""


def _actor_id() -> str | None:
    """Ray's id of the actor that runs this code, the same for all processes of the actor; None outside of Ray."""
    ray = sys.modules.get("ray")  # every actor has imported it, and elsewhere it is not needed
    return ray.get_runtime_context().get_actor_id() if ray is not None and ray.is_initialized() else None


def _train_totals(steps: Collection[StepRecord], starts: int) -> StageTotals:
    """Training as a stage. The first worker reports for all, so it counts as one replica."""
    wait_seconds = sum(record.wait_seconds for record in steps)
    return StageTotals(
        name=TRAIN,
        passages=sum(record.passages for record in steps),
        tokens=sum(record.tokens for record in steps),
        busy_seconds=sum(record.seconds for record in steps) - wait_seconds,
        wait_seconds=wait_seconds,
        replicas=1,
        starts=starts,
    )


def _deaths(replica: str | None) -> int:
    """How often Ray has replaced this actor's process. Only Ray knows: a process may die before it can report."""
    if replica is None:
        return 0
    from ray._private import state  # the public was_current_actor_reconstructed says only whether, not how often

    return int(state.actors(replica)["NumRestarts"])
