"""Run monitor: one process that every stage tells what it has done, and that the driver asks for a picture.

The numbers are for people. What must be exact (learned passages, losses, win rates) travels with the data instead.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
import weakref
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from engine.result import Progress, SkippedRow, StageTotals, StepRecord

#: Seconds between two messages of one replica.
SEND_INTERVAL = 0.5

#: How long a replica that is sent home waits for the monitor to take its last totals.
LAST_WORDS_SECONDS = 2.0

#: The stage that is made of the steps themselves.
TRAIN = "train"


class RunMonitor:
    """Sums up what all replicas of all stages report. Reports carry totals, so a repeated one changes nothing."""

    def __init__(self) -> None:
        self._processes: dict[str, dict[tuple[str, str], StageTotals]] = {}
        self._steps: dict[int, StepRecord] = {}
        self._skipped: dict[tuple[str, int], SkippedRow] = {}

    def report(self, replica: str, process: str, totals: StageTotals) -> None:
        """The totals of one process so far; they replace what it has reported before.

        A replica that dies goes on as another process, and what the dead one had done still counts.
        """
        self._processes.setdefault(totals.name, {})[replica, process] = totals

    def step(self, record: StepRecord) -> None:
        """One optimizer step; a step that was taken again after a restart replaces the first."""
        self._steps[record.step] = record

    def skip(self, row: SkippedRow) -> None:
        """A file or row that was left out; counted once, however often it is read."""
        self._skipped[row.path, row.row] = row

    def snapshot(self, since_step: int = 0) -> Progress:
        """Everything so far; of the steps only those after ``since_step``, though the totals hold them all."""
        stages = [_sum(name, processes) for name, processes in self._processes.items()]
        if self._steps:
            stages.append(_train_totals(self._steps.values()))
        return Progress(
            stages=tuple(stages),
            steps=tuple(self._steps[step] for step in sorted(self._steps) if step > since_step),
            skipped=tuple(self._skipped[key] for key in sorted(self._skipped)),
        )


class Meter:
    """Reports one replica's totals to the run monitor, at most twice a second and never later than that.

    A meter is made where the stream is built and travels to the replica, where it starts counting. Ray Data drops a
    stage's objects when it sends an actor home; the meter then sends its last totals. Only a process that is killed
    takes up to half a second of counts with it.

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
            self._is_sent = False
            if self._timer is None:
                self._timer = threading.Timer(SEND_INTERVAL, _flush, [weakref.ref(self)])
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Send the totals now, if the monitor does not have them yet."""
        self._send()

    def __del__(self) -> None:
        if sys.is_finalizing():  # the monitor's handle may be gone already
            return
        reply, ray = self._send(), _ray()
        if reply is not None and ray is not None:
            # The process ends next, and with it a message that is still on its way.
            ray.wait([reply], timeout=LAST_WORDS_SECONDS)

    def skip(self, row: SkippedRow) -> None:
        """Report a file or row that was left out, at once."""
        self._monitor.skip.remote(row)

    def _send(self) -> Any:
        """Send what the monitor does not have yet; its reply, None if there was nothing to send."""
        if not hasattr(self, "_totals"):
            return None
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._is_sent:
                return None
            self._is_sent = True
            return self._monitor.report.remote(self._replica, self._process, self._totals)

    def _start(self, now: float) -> None:
        self._lock = threading.RLock()  # a flush from __del__ may come upon a thread that holds it
        self._timer: threading.Timer | None = None
        self._process = uuid.uuid4().hex
        self._replica = _actor_id() or self._process
        self._last_end = now
        self._is_sent = True
        self._totals = StageTotals(self._stage)


class NoMeter:
    """Counts nothing, for use outside a run."""

    def record(self, passages: int, tokens: int, busy_seconds: float) -> None:
        """Nothing is told to anybody."""

    def skip(self, row: SkippedRow) -> None:
        """Nothing is told to anybody."""


def _flush(reference: weakref.ref[Meter]) -> None:
    """What the timer calls; it knows the meter weakly, or a meter could not be dropped while its timer runs."""
    meter = reference()
    if meter is not None:
        meter.flush()


def _ray() -> Any:
    """Ray, if this process belongs to a cluster: it has long been imported then, and elsewhere nobody needs it."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def _actor_id() -> str | None:
    """Ray's id of the actor around this code, which outlives the actor's processes; None outside of Ray."""
    ray = _ray()
    return ray.get_runtime_context().get_actor_id() if ray is not None else None


def _sum(name: str, processes: dict[tuple[str, str], StageTotals]) -> StageTotals:
    """A stage over all processes that have worked for it."""
    totals = processes.values()
    return StageTotals(
        name=name,
        passages=sum(total.passages for total in totals),
        tokens=sum(total.tokens for total in totals),
        busy_seconds=sum(total.busy_seconds for total in totals),
        wait_seconds=sum(total.wait_seconds for total in totals),
        replicas=len({replica for replica, _ in processes}),
        starts=len(processes),
    )


def _train_totals(steps: Collection[StepRecord]) -> StageTotals:
    """Training as a stage. Its workers move in step and one speaks for all, so it counts as one replica."""
    wait_seconds = sum(record.wait_seconds for record in steps)
    return StageTotals(
        name=TRAIN,
        passages=sum(record.passages for record in steps),
        tokens=sum(record.tokens for record in steps),
        busy_seconds=sum(record.seconds for record in steps) - wait_seconds,
        wait_seconds=wait_seconds,
        replicas=1,
        starts=1,
    )
