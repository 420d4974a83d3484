"""Which passages go together: their order, the training block that each goes into, and the batches.

All of this is decided over all passages of the corpus. Only then are those dropped that a checkpoint has learned. An
optimizer step learns whole training blocks, so whole blocks fall away, and what remains are the blocks and batches that
an undisturbed run has after the same step, however often and wherever this one was stopped. The price is that a run
which resumes reads and cuts the corpus from its beginning.

In a deterministic run there is one reader and one order through all stages, so the steps learn the same blocks too.
Otherwise readers share the corpus and batches may overtake each other; the arrangement is the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.corpus.passages import Passage
from engine.history.ledger import Ledger
from engine.spec import FusionSpec

#: Training blocks that passages are distributed over at once. Each such lot ends with blocks that are partly empty, so
#: a few would waste more; many only hold up the first batch.
PACKED_BLOCKS = 128


class MeasuredPassage(NamedTuple):
    """A passage and its length T in target tokens."""

    passage: Passage
    tokens: int


class PassageBlock(NamedTuple):
    """The passages of one training block, and its number in the order of the reader."""

    number: int
    passages: list[Passage]


class Batch(NamedTuple):
    """The passages of a batch, at least one, and for each the number of its training block, ascending."""

    passages: list[Passage]
    training_blocks: list[int]


@dataclass(frozen=True)
class Arrangement:
    """How passages are put together.

    Attributes:
        shuffle_passages, seed: see the spec.
        block_length: L, tokens in a training block.
        batch_blocks: training blocks whose passages make a batch, at most.
        checkpoint_blocks: training blocks between two checkpoints, over all workers. A batch ends there too, so none is
            half learned when a run resumes: its models would score fewer passages at once, which changes the last bits
            of some models' numbers.
    """

    shuffle_passages: int
    seed: int
    block_length: int
    batch_blocks: int
    checkpoint_blocks: int

    @classmethod
    def of(cls, spec: FusionSpec, batch_blocks: int) -> Arrangement:
        """The arrangement of a run."""
        training = spec.training
        return cls(
            shuffle_passages=spec.corpus.shuffle_passages,
            seed=spec.run.seed,
            block_length=training.block_length,
            batch_blocks=batch_blocks,
            checkpoint_blocks=training.checkpoint_every_steps * training.global_batch_blocks,
        )

    def blocks(self, passages: Iterable[MeasuredPassage], share: int) -> Iterator[PassageBlock]:
        """The training blocks of one reader, from passages that it has shuffled.

        Args:
            passages: in the order of the corpus.
            share: number of the reader's share, which draws an order of its own.
        """
        order = random.Random(f"{self.seed} {share}")
        shuffled = shuffle(passages, self.shuffle_passages, order)
        for number, block in enumerate(self._distributed(shuffled)):
            yield PassageBlock(number, block)

    def batches(self, blocks: Iterable[PassageBlock]) -> Iterator[Batch]:
        """The batches of one reader.

        Args:
            blocks: all of them, in order; some may have lost passages, or all of them.
        """
        batch = Batch([], [])
        for block in blocks:
            if batch.passages and block.number % self.checkpoint_blocks % self.batch_blocks == 0:
                yield batch
                batch = Batch([], [])
            batch.passages.extend(block.passages)
            batch.training_blocks.extend([block.number] * len(block.passages))
        if batch.passages:
            yield batch

    def _distributed(self, passages: Iterable[MeasuredPassage]) -> Iterator[list[Passage]]:
        """The passages of each training block, distributed in lots that fill ``PACKED_BLOCKS``."""
        lot: list[MeasuredPassage] = []
        room = PACKED_BLOCKS * self.block_length
        for measured in passages:
            lot.append(measured)
            room -= measured.tokens
            if room <= 0:
                yield from _packed(lot, self.block_length)
                lot, room = [], PACKED_BLOCKS * self.block_length
        yield from _packed(lot, self.block_length)


def drop_learned(blocks: Iterable[PassageBlock], learned: Ledger) -> Iterator[PassageBlock]:
    """The same blocks without the passages that have been learned; a block may lose all of them."""
    for block in blocks:
        yield PassageBlock(block.number, [each for each in block.passages if each.passage_id not in learned])


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


def _packed(lot: Sequence[MeasuredPassage], block_length: int) -> Iterator[list[Passage]]:
    for items in best_fit([measured.tokens for measured in lot], block_length):
        yield [lot[item].passage for item in items]


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
