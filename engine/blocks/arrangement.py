"""Which passages go together: their order, the training block that each goes into, and the batches.

All of it is decided over all passages of the corpus; only then are those left out that a checkpoint has learned. An
optimizer step learns whole training blocks, so whole blocks fall away, and what remains are the blocks and batches that
an undisturbed run has after the same step, however often and wherever this one was stopped. The price is that a run
which goes on reads and cuts the corpus from its beginning.

In a run that is deterministic there is one reader and one order through all stages, so that the steps, too, learn the
same blocks. Otherwise readers share the corpus and batches may overtake each other; the arrangement is the same path.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.history.ledger import Ledger
from engine.spec import FusionSpec

#: Training blocks that passages are distributed over at once. Each such lot ends with blocks that are partly empty, so
#: that a few would waste more; many only hold up the first batch.
PACKED_BLOCKS = 128

#: A row of ``records.PASSAGE``, whose first value is its id.
Passage = tuple[Any, ...]


@dataclass(frozen=True)
class Arrangement:
    """How passages are put together.

    Attributes:
        shuffle_passages, seed: see the spec.
        block_length: L, tokens in a training block.
        batch_blocks: training blocks whose passages make a batch, at most.
        checkpoint_blocks: training blocks between two checkpoints, over all workers. Batches are cut there too, so that
            none is half learned when a run goes on: its models would be asked for fewer passages at once, which changes
            the last bits of some models' numbers.
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

    def batches(
        self, passages: Iterable[tuple[Passage, int]], share: int, learned: Ledger
    ) -> Iterator[tuple[list[Passage], list[int]]]:
        """The batches of one reader.

        Args:
            passages: in the order of the corpus, each with T, its target tokens.
            share: number of the reader's share, which draws an order of its own.
            learned: passages to leave out.

        Yields:
            The passages of a batch, at least one, and for each the number of its training block, ascending.
        """
        order = random.Random(f"{self.seed} {share}")
        rows: list[Passage] = []
        numbers: list[int] = []
        for number, block in enumerate(self.blocks(shuffle(passages, self.shuffle_passages, order))):
            if rows and number % self.checkpoint_blocks % self.batch_blocks == 0:
                yield rows, numbers
                rows, numbers = [], []
            unlearned = [passage for passage in block if passage[0] not in learned]
            rows += unlearned
            numbers += [number] * len(unlearned)
        if rows:
            yield rows, numbers

    def blocks(self, passages: Iterable[tuple[Passage, int]]) -> Iterator[list[Passage]]:
        """The passages of each training block, distributed in lots that fill ``PACKED_BLOCKS``."""
        waiting: list[Passage] = []
        lengths: list[int] = []
        room = PACKED_BLOCKS * self.block_length
        for passage, tokens in passages:
            waiting.append(passage)
            lengths.append(tokens)
            room -= tokens
            if room <= 0:
                yield from _packed(waiting, lengths, self.block_length)
                waiting, lengths, room = [], [], PACKED_BLOCKS * self.block_length
        yield from _packed(waiting, lengths, self.block_length)


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


def _packed(passages: list[Passage], lengths: list[int], block_length: int) -> Iterator[list[Passage]]:
    for items in best_fit(lengths, block_length):
        yield [passages[item] for item in items]


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
