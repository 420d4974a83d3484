"""The steps of one start of a run that stand: a restart goes back to a checkpoint, and the steps after it are void."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import NamedTuple

from engine.history.result import StepRecord


class StepSums(NamedTuple):
    """Sums over steps: tokens, passages, and seconds, those of waiting included."""

    tokens: int = 0
    passages: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def plus(self, record: StepRecord) -> StepSums:
        """The sums with one more step."""
        return StepSums(
            self.tokens + record.tokens,
            self.passages + record.passages,
            self.seconds + record.seconds,
            self.wait_seconds + record.wait_seconds,
        )


class StepLog:
    """The steps in their order; tells anyone what has happened to them since the last time that they asked.

    All that happens has a number, one higher each time: a step is added, or the run goes back. Who asks with the number
    of the last answer learns of everything once. An answer costs the new steps alone, however many there are.

    Attributes:
        mark: number of the latest event; 0 before the first.
    """

    def __init__(self) -> None:
        self.mark = 0
        self._records: list[StepRecord] = []
        self._marks: list[int] = []  # of the records
        self._sums = [StepSums()]  # before the first record, and after each
        self._returns: list[tuple[int, int]] = []  # number, and the step that the run went back to

    @property
    def last_step(self) -> int:
        """Number of the last step that stands, 0 if there is none."""
        return self._records[-1].step if self._records else 0

    @property
    def sums(self) -> StepSums:
        """Sums over the steps that stand."""
        return self._sums[-1]

    def note(self) -> int:
        """Count another event, which the caller keeps; returns its number."""
        self.mark += 1
        return self.mark

    def add(self, record: StepRecord) -> None:
        """Add a step. If it was taken before, it takes the place of the first and voids all after it."""
        self.go_back(record.step - 1)
        self._records.append(record)
        self._marks.append(self.note())
        self._sums.append(self.sums.plus(record))

    def go_back(self, step: int) -> bool:
        """Drop the steps after ``step``; whether there were any."""
        kept = bisect_right(self._records, step, key=attrgetter("step"))
        if kept == len(self._records):
            return False
        del self._records[kept:], self._marks[kept:], self._sums[kept + 1 :]
        self._returns.append((self.note(), step))
        return True

    def since(self, mark: int) -> tuple[StepRecord, ...]:
        """The steps that stand and were added after an event."""
        return tuple(self._records[bisect_right(self._marks, mark) :])

    def void_after(self, mark: int) -> int | None:
        """The step after which those added up to an event are void; None if the run has not gone back since."""
        newer = self._returns[bisect_right(self._returns, mark, key=lambda found: found[0]) :]
        return min((step for _, step in newer), default=None)
