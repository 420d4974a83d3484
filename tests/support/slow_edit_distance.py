"""The slow twins of ``engine/method/edit_distance.py``: the definitions, written down as loops."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distance(left: str, right: str) -> int:
    """Levenshtein distance by the whole table."""
    table = [[max(row, column) for column in range(len(right) + 1)] for row in range(len(left) + 1)]
    for row in range(1, len(left) + 1):
        for column in range(1, len(right) + 1):
            replaced = table[row - 1][column - 1] + (left[row - 1] != right[column - 1])
            table[row][column] = min(replaced, table[row - 1][column] + 1, table[row][column - 1] + 1)
    return table[-1][-1]


def nearest(sources: Sequence[str], targets: Sequence[str]) -> tuple[list[int], list[int]]:
    """Index of the nearest target of each source, the lowest of a tie, and its distance."""
    rows = [[distance(source, target) for target in targets] for source in sources]
    return [row.index(min(row)) for row in rows], [min(row) for row in rows]


def align_by_edits(targets: Sequence[str], sources: Sequence[str]) -> tuple[int, list[list[int]]]:
    """Dynamic time warping with the border written out; all source tokens on the path of each target token."""
    if not targets or not sources:
        return 0, [[-1] for _ in targets]
    cost = [[math.inf] * (len(targets) + 1) for _ in range(len(sources) + 1)]
    cost[0][0] = 0
    for source, source_text in enumerate(sources, 1):
        for target, target_text in enumerate(targets, 1):
            before = min(cost[source - 1][target - 1], cost[source - 1][target], cost[source][target - 1])
            cost[source][target] = distance(source_text, target_text) + before
    path: list[list[int]] = [[] for _ in targets]
    source, target = len(sources), len(targets)
    while source > 0 and target > 0:
        path[target - 1].insert(0, source - 1)
        steps = [(source - 1, target - 1), (source - 1, target), (source, target - 1)]
        source, target = min(steps, key=lambda step: cost[step[0]][step[1]])  # the first of a tie
    return int(cost[-1][-1]), path
