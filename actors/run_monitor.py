"""Run monitor: one process that every stage tells what it has done, and that the driver asks for a picture.

The numbers are for people. What must be exact (learned passages, losses, win rates) travels with the data instead.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace
from typing import Any

from engine.result import Progress, SkippedRow, StageTotals, StepRecord

#: Seconds between two messages of one replica.
SEND_INTERVAL = 0.5


class RunMonitor:
    """Sums up what all replicas of all stages report. Reports carry totals, so a repeated one changes nothing."""

    def __init__(self) -> None:
        self._replicas: dict[str, dict[str, StageTotals]] = {}
        self._steps: dict[int, StepRecord] = {}
        self._skipped: dict[tuple[str, int], SkippedRow] = {}

    def report(self, replica: str, totals: StageTotals) -> None:
        """The totals of one replica so far; they replace what it has reported before."""
        self._replicas.setdefault(totals.name, {})[replica] = totals

    def step(self, record: StepRecord) -> None:
        """One optimizer step; a step that was taken again after a restart replaces the first."""
        self._steps[record.step] = record

    def skip(self, row: SkippedRow) -> None:
        """A file or row that was left out; counted once, however often it is read."""
        self._skipped[row.path, row.row] = row

    def snapshot(self, since_step: int = 0) -> Progress:
        """Everything so far; of the steps only those after ``since_step``."""
        return Progress(
            stages=tuple(_sum(name, replicas.values()) for name, replicas in self._replicas.items()),
            steps=tuple(self._steps[step] for step in sorted(self._steps) if step > since_step),
            skipped=tuple(self._skipped[key] for key in sorted(self._skipped)),
        )


class Meter:
    """Reports one replica's totals to the run monitor, at most twice a second and never later than that.

    A meter is made where the stream is built and travels to the replica, where it starts counting.

    Args:
        stage: name of the stage.
        monitor: handle of the run's ``RunMonitor`` actor.
    """

    def __init__(self, stage: str, monitor: Any):
        self._stage = stage
        self._monitor = monitor

    def __reduce__(self) -> tuple:
        return Meter, (self._stage, self._monitor)

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Add one call; the time since the last call ended, less ``busy_seconds``, was spent waiting."""
        now = time.perf_counter()
        if not hasattr(self, "_totals"):
            self._start(now - busy_seconds)
        with self._lock:
            waited = max(0.0, now - self._last_end - busy_seconds)
            self._last_end = now
            self._totals = replace(
                self._totals,
                passages=self._totals.passages + passages,
                tokens=self._totals.tokens + tokens,
                busy_seconds=self._totals.busy_seconds + busy_seconds,
                wait_seconds=self._totals.wait_seconds + waited,
            )
            if self._timer is None:
                self._timer = threading.Timer(SEND_INTERVAL, self._send)
                self._timer.daemon = True
                self._timer.start()

    def skip(self, row: SkippedRow) -> None:
        """Report a file or row that was left out, at once."""
        self._monitor.skip.remote(row)

    def _start(self, now: float) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._replica = uuid.uuid4().hex
        self._last_end = now
        self._totals = StageTotals(self._stage, replicas=1)

    def _send(self) -> None:
        with self._lock:
            self._timer = None
            totals = self._totals
        self._monitor.report.remote(self._replica, totals)


class NoMeter:
    """Counts nothing, for use outside a run."""

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Nothing is told to anybody."""

    def skip(self, row: SkippedRow) -> None:
        """Nothing is told to anybody."""


def _sum(name: str, replicas: Any) -> StageTotals:
    replicas = list(replicas)
    return StageTotals(
        name=name,
        passages=sum(totals.passages for totals in replicas),
        tokens=sum(totals.tokens for totals in replicas),
        busy_seconds=sum(totals.busy_seconds for totals in replicas),
        wait_seconds=sum(totals.wait_seconds for totals in replicas),
        replicas=len(replicas),
    )
