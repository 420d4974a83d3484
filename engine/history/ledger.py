"""The ledger: the training blocks that have been learned, which is the position in the corpus that a checkpoint holds.

The corpus is cut into shards, and a reader numbers the training blocks of a shard in an order that is the same in every
start of a run (``engine.blocks.arrangement``). So what has been learned of a shard are numbers, nearly all of them up
to one. Of each shard the ledger also knows where reading has to begin so that every block comes again that is not
learned yet. A checkpoint saves this together with the weights. Its size grows with the blocks that are on their way at
one time, not with the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engine.history.intervals import Intervals


class Cursor(NamedTuple):
    """A place in a shard at which reading can begin.

    Attributes:
        block: number of the first training block after it.
        unit: index of the shard's unit; ``SHARD_END`` after the last block of the shard.
        rows, offset: rows of the unit before it, and their bytes where the file can be read from there.
        passage: passages of the next document before it.
    """

    block: int
    unit: int
    rows: int
    offset: int
    passage: int


SHARD_START = Cursor(0, 0, 0, 0, 0)
SHARD_END = -1


class Entry(NamedTuple):
    """What the ledger has to know of one training block; it travels with the block as ``ENTRY_NUMBERS`` whole numbers.

    Attributes:
        shard, block: number of its shard, and its own in it.
        end: number of the block after the last one of its batch.
        cursor: where reading begins for the blocks from ``end`` on, that one's whole batch included.
    """

    shard: int
    block: int
    end: int
    cursor: Cursor

    def numbers(self) -> list[int]:
        """All of it, for a column."""
        return [self.shard, self.block, self.end, *self.cursor]


ENTRY_NUMBERS = 3 + len(Cursor._fields)


@dataclass
class ShardProgress:
    """What has been learned of one shard.

    Attributes:
        cursor: where reading has to begin. All blocks before it have been learned.
        learned: the blocks after it that have been learned.
        cursors: by number of a block, where reading begins once all blocks before that one have been learned.
    """

    cursor: Cursor = SHARD_START
    learned: Intervals = field(default_factory=Intervals)
    cursors: dict[int, Cursor] = field(default_factory=dict)

    def learn(self, blocks: list[int], cursors: dict[int, Cursor]) -> None:
        """Add learned blocks and what was found out about places to begin.

        Raises:
            ValueError: a block has been learned before.
        """
        if min(blocks) < self.cursor.block:
            raise ValueError(f"{min(blocks)} is in the set already")
        self.learned.add(blocks)
        self.cursors |= cursors
        reached = self.learned.first_missing(self.cursor.block)
        passed = [end for end in self.cursors if end <= reached]
        if passed:
            self.cursor = self.cursors[max(passed)]
            self.learned.drop_below(self.cursor.block)
            for end in passed:
                del self.cursors[end]

    def state(self) -> dict[str, Any]:
        """All of it as values that JSON can hold."""
        return {
            "cursor": self.cursor,
            "learned": list(self.learned),
            "cursors": [[end, *cursor] for end, cursor in sorted(self.cursors.items())],
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> ShardProgress:
        """The progress of which this is the state."""
        cursors = {end: Cursor(*cursor) for end, *cursor in state["cursors"]}
        return cls(Cursor(*state["cursor"]), Intervals(state["learned"]), cursors)


class Ledger:
    """The learned training blocks of all shards; none can be learned twice.

    >>> ledger = Ledger()
    >>> ledger.learn(np.array([Entry(0, 0, 1, Cursor(1, SHARD_END, 0, 0, 0)).numbers()]))
    >>> ledger.is_done(0), ledger.state()
    (True, {'done': [(0, 1)], 'blocks_done': 1, 'open': {}})
    """

    def __init__(self) -> None:
        self._done = Intervals()
        self._blocks_done = 0
        self._open: dict[int, ShardProgress] = {}

    def learn(self, entries: np.ndarray) -> None:
        """Add the training blocks of some optimizer steps.

        Args:
            entries: int64 [n, ENTRY_NUMBERS], an ``Entry`` for each block, in any order.

        Raises:
            ValueError: a block has been learned before; names it. That is a fault of the stream.
        """
        for shard in np.unique(entries[:, 0]).tolist():
            of_shard = entries[entries[:, 0] == shard]
            _, first_of_end = np.unique(of_shard[:, 2], return_index=True)
            cursors = {end: Cursor(*cursor) for end, *cursor in of_shard[first_of_end, 2:].tolist()}
            self._learn_of_shard(shard, of_shard[:, 1].tolist(), cursors)

    def _learn_of_shard(self, shard: int, blocks: list[int], cursors: dict[int, Cursor]) -> None:
        progress = self.progress(shard)
        try:
            progress.learn(blocks, cursors)
        except ValueError as error:
            raise ValueError(f"shard {shard}: a training block would be learned twice: {error}") from None
        if progress.cursor.unit != SHARD_END:
            self._open[shard] = progress
            return
        self._open.pop(shard, None)
        self._done.add([shard])
        self._blocks_done += progress.cursor.block

    def is_done(self, shard: int) -> bool:
        """Whether all of a shard has been learned."""
        return shard in self._done

    def progress(self, shard: int) -> ShardProgress:
        """What has been learned of a shard that is not done."""
        if self.is_done(shard):
            raise ValueError(f"shard {shard} has been learned to its end")
        return self._open.get(shard) or ShardProgress()

    @property
    def is_begun(self) -> bool:
        """Whether anything has been learned."""
        return bool(len(self._done) or self._open)

    @property
    def blocks_done(self) -> int:
        """Training blocks of the shards that are done."""
        return self._blocks_done

    def state(self) -> dict[str, Any]:
        """All of it as values that JSON can hold, for the checkpoint."""
        open_shards = {str(shard): progress.state() for shard, progress in sorted(self._open.items())}
        return {"done": list(self._done), "blocks_done": self._blocks_done, "open": open_shards}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Ledger:
        """The ledger of which this is the state."""
        ledger = cls()
        ledger._done = Intervals(state["done"])
        ledger._blocks_done = state["blocks_done"]
        ledger._open = {int(shard): ShardProgress.of(progress) for shard, progress in state["open"].items()}
        return ledger
