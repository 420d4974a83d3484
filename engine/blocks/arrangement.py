"""Which passages go together: their order, the training block that each goes into, and the batches.

A shard of the corpus is read in lots. A lot holds enough passages to shuffle and to fill many training blocks, and
nothing of it is left for the next one, so reading can begin at any lot and makes the same blocks with the same numbers
in every start of a run. An optimizer step learns whole training blocks. A batch is the blocks between two multiples of
its size; it may reach over lots, and it is scored whole even if some of its blocks have been learned, since the last
bits of some models' numbers depend on the company of a passage. So an interrupted run scores the same batches as an
undisturbed one, however often and wherever it was stopped.

In a deterministic run there is one reader and one order through all stages, so the steps learn the same blocks too.
Otherwise readers take shards in turn and batches may overtake each other, unless the corpus is read several times; the
arrangement is the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.corpus.passages import Passage
from engine.history.ledger import SHARD_END, SHARD_START, Cursor
from engine.spec import FusionSpec

#: Training blocks that passages are distributed over at once. Each such group ends with blocks that are partly empty,
#: so a few would waste more; many only hold up the first batch.
PACKED_BLOCKS = 128


class Place(NamedTuple):
    """Where a passage begins in its shard; see ``Cursor``."""

    unit: int
    rows: int
    offset: int
    passage: int


class MeasuredPassage(NamedTuple):
    """A passage, its length T in target tokens, and its place."""

    passage: Passage
    tokens: int
    place: Place


class Lot(NamedTuple):
    """Passages that follow each other in a shard, in their training blocks.

    Attributes:
        start, end: where its reading begins, and that of the next lot.
        blocks: the passages of each training block.
    """

    start: Cursor
    end: Cursor
    blocks: list[list[Passage]]


class Batch(NamedTuple):
    """The passages of the training blocks that are scored together.

    Attributes:
        first_block: number of the first block in its shard.
        blocks: the passages of each block, at least one.
        after: where the reading of the next batch begins, which is not always where this one ends.
    """

    first_block: int
    blocks: list[list[Passage]]
    after: Cursor

    @property
    def end(self) -> int:
        """Number of the block after the last one."""
        return self.first_block + len(self.blocks)


@dataclass(frozen=True)
class Arrangement:
    """How passages are put together.

    Attributes:
        shuffle_passages, seed: see the spec.
        block_length: L, tokens in a training block.
        batch_blocks: training blocks whose passages make a batch, at most.
    """

    shuffle_passages: int
    seed: int
    block_length: int
    batch_blocks: int

    @classmethod
    def of(cls, spec: FusionSpec, batch_blocks: int) -> Arrangement:
        """The arrangement of a run."""
        return cls(spec.corpus.shuffle_passages, spec.run.seed, spec.training.block_length, batch_blocks)

    def lots(self, passages: Iterable[MeasuredPassage], shard: int, start: Cursor = SHARD_START) -> Iterator[Lot]:
        """The lots of a shard from one of them on.

        Args:
            passages: of the shard from ``start`` on, in the order of the corpus.
            shard: its number, which draws an order of its own.
            start: the start of a lot.
        """
        waiting: list[MeasuredPassage] = []
        tokens = 0
        for measured in passages:
            if tokens >= PACKED_BLOCKS * self.block_length and len(waiting) >= self.shuffle_passages:
                lot = self._lot(waiting, shard, start, measured.place)
                yield lot
                waiting, tokens, start = [], 0, lot.end
            waiting.append(measured)
            tokens += measured.tokens
        if waiting:
            yield self._lot(waiting, shard, start, Place(SHARD_END, 0, 0, 0))

    def batches(self, lots: Iterable[Lot]) -> Iterator[Batch]:
        """The batches of a shard, from the first one that begins in these lots or before them."""
        blocks: list[list[Passage]] = []
        for lot in lots:
            for end, block in enumerate(lot.blocks, start=lot.start.block + 1):
                blocks.append(block)
                ends_lot = end == lot.end.block
                if end % self.batch_blocks == 0 or (ends_lot and lot.end.unit == SHARD_END):
                    yield Batch(end - len(blocks), blocks, lot.end if ends_lot else lot.start)
                    blocks = []

    def _lot(self, passages: Sequence[MeasuredPassage], shard: int, start: Cursor, next_place: Place) -> Lot:
        order = random.Random(f"{self.seed} {shard} {start.block}")
        blocks = list(self._distributed(shuffle(passages, self.shuffle_passages, order)))
        return Lot(start, Cursor(start.block + len(blocks), *next_place), blocks)

    def _distributed(self, passages: Iterable[MeasuredPassage]) -> Iterator[list[Passage]]:
        """The passages of each training block, distributed in groups that fill ``PACKED_BLOCKS``."""
        group: list[MeasuredPassage] = []
        room = PACKED_BLOCKS * self.block_length
        for measured in passages:
            group.append(measured)
            room -= measured.tokens
            if room <= 0:
                yield from _packed(group, self.block_length)
                group, room = [], PACKED_BLOCKS * self.block_length
        yield from _packed(group, self.block_length)


def shuffle(passages: Iterable[Any], held: int, order: random.Random) -> Iterator[Any]:
    """Draw each passage at random from the next ``held`` ones; the same draws for the same state of ``order``.

    Passages of one document follow each other in the corpus, and a step that learns one document unlearns the last.
    """
    waiting: list[Any] = []
    for passage in passages:
        waiting.append(passage)
        if len(waiting) > held:
            yield waiting.pop(order.randrange(len(waiting)))
    order.shuffle(waiting)
    yield from waiting


def _packed(group: Sequence[MeasuredPassage], block_length: int) -> Iterator[list[Passage]]:
    for items in best_fit([measured.tokens for measured in group], block_length):
        yield [group[item].passage for item in items]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute items over as few bins as best fit decreasing finds.

    Args:
        lengths: of the items, each in [1, capacity].
        capacity: of a bin.

    Returns:
        The items of each bin in ascending order, the bins by their first item: order survives where it can.

    Raises:
        ValueError: an item is longer than a bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[item]
        if length > capacity:
            raise ValueError(f"item {item} of length {length} does not fit into {capacity}")
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            best = min(fitting, key=lambda index: room[index])
        else:
            best = len(bins)
            bins.append([])
            room.append(capacity)
        bins[best].append(item)
        room[best] -= length
    return sorted(sorted(items) for items in bins)
