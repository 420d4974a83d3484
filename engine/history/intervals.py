"""Sets of whole numbers that lie close together, kept as intervals."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class Intervals:
    """A set of whole numbers to which no number can be added twice.

    >>> numbers = Intervals([(0, 3)])
    >>> numbers.add([5, 3])
    >>> list(numbers), 4 in numbers, len(numbers)
    ([(0, 4), (5, 6)], False, 5)
    """

    def __init__(self, intervals: Iterable[Sequence[int]] = ()):
        self._intervals = [(int(first), int(end)) for first, end in intervals]

    def add(self, numbers: Iterable[int]) -> None:
        """Add numbers, in any order.

        Raises:
            ValueError: one of them is in the set; names it.
        """
        joined: list[tuple[int, int]] = []
        for first, end in sorted([*self._intervals, *_runs(numbers)]):
            before = joined[-1][1] if joined else first - 1
            if first < before:
                raise ValueError(f"{first} is in the set already")
            if first == before:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((first, end))
        self._intervals = joined

    def first_missing(self, start: int) -> int:
        """The smallest number from ``start`` on that is not in the set."""
        interval = self._around(start)
        return interval[1] if interval else start

    def drop_below(self, start: int) -> None:
        """Remove all numbers below ``start``."""
        self._intervals = [(max(first, start), end) for first, end in self._intervals if end > start]

    def __contains__(self, number: int) -> bool:
        return self._around(number) is not None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The intervals, ascending, each with the number after its last."""
        return iter(self._intervals)

    def __len__(self) -> int:
        return sum(end - first for first, end in self._intervals)

    def _around(self, number: int) -> tuple[int, int] | None:
        """The interval that holds a number."""
        place = bisect_right(self._intervals, number, key=lambda interval: interval[0]) - 1
        return self._intervals[place] if place >= 0 and number < self._intervals[place][1] else None


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Whole numbers as intervals of neighbours, ascending; a number that comes twice begins one of its own."""
    ascending = np.sort(np.fromiter(numbers, np.int64))
    runs = np.split(ascending, np.flatnonzero(np.diff(ascending) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
