"""The passages of a step that the report shows token by token: which, and what the target says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from engine.history.sampling import is_sampled
from engine.method.inspection import rounded
from engine.method.own_rows import OwnRows
from engine.records import rows_of

#: Passages of a step, the first in the order of the blocks.
MOST_PASSAGES = 2


class Look(NamedTuple):
    """A stretch of a passage in this worker's blocks: the aligner's description, the block and the rows in it."""

    description: dict[str, Any]
    block: int
    first: int
    rows: int


class Looks:
    """Chooses the passages of the sampled steps, and adds the target's rows to their descriptions.

    Only some passages are described: where a sampled step has none of them, the next one with some is taken in its
    stead.

    Args:
        is_wanted: whether this worker looks at any; the first one does.
    """

    def __init__(self, is_wanted: bool):
        self._is_wanted = is_wanted
        self._due = 0  # the sampled step whose look is still to come; 0: none
        self._sample = 0  # the sampled step for which the last passages were chosen
        self._chosen: list[Look] = []

    def choose(self, table: pa.Table | None, step: int, block_length: int) -> np.ndarray:
        """Choose the passages to look at in a step.

        Args:
            table: this worker's blocks.
            step: that will be taken; 1 for the first.

        Returns:
            Their rows among all rows of the blocks, int64, ascending; none in most steps.
        """
        if self._is_wanted and is_sampled(step, step):
            self._due = step
        self._chosen = looks_of(table)[:MOST_PASSAGES] if self._due and table is not None else []
        if self._chosen:
            self._sample, self._due = self._due, 0
        parts = [look.block * block_length + look.first + np.arange(look.rows) for look in self._chosen]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def descriptions(self, own: OwnRows | None, step: int) -> list[dict[str, Any]]:
        """The chosen passages with the target's rows; none where none was chosen."""
        return [] if own is None else with_own_rows(self._chosen, own, step, self._sample)


def looks_of(table: pa.Table) -> list[Look]:
    """All described passages of some blocks."""
    found = []
    segments = rows_of(table["segment_ids"])
    for block, descriptions in enumerate(rows_of(table["inspection"])):
        for passage, text in enumerate(descriptions, start=1):
            if text:
                description = json.loads(text)
                first = int(np.flatnonzero(segments[block] == passage)[0]) + description["first"]
                found.append(Look(description, block, first, len(description["tokens"])))
    return found


def with_own_rows(looks: Sequence[Look], own: OwnRows, step: int, sample: int) -> list[dict[str, Any]]:
    """The descriptions with the target's rows, the step, and the sampled step in whose stead it is shown.

    ``own``: like ``fused``, without rest mass. ``costs``: of the labels, in nats. ``gains``: of the teacher.
    """
    numbers = [column.cpu().numpy() for column in own]
    found, start = [], 0
    for look in looks:
        ids, probs, costs, gains = (column[start : start + look.rows] for column in numbers)
        start += look.rows
        rows = [[top, p_top, 0.0] for top, p_top in zip(ids.tolist(), rounded(probs), strict=True)]
        more = {"step": step, "sample": sample, "own": rows, "costs": rounded(costs), "gains": rounded(gains)}
        found.append(look.description | more)
    return found
