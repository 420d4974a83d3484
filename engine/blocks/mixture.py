"""The mixture: in which order the training blocks of several domains are dealt out.

Every training block is of one domain, and the next one is always of the domain that lacks the most bytes. So a domain
is never more than one block ahead of its share, whichever step the run ends with, and a step learns all domains that
have a place in it. The choice follows from the bytes that were dealt out before and from nothing else: a run that goes
on from a checkpoint, which knows the bytes that each domain has learned, deals out the same blocks in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

import numpy as np

from engine.blocks.arrangement import Lot
from engine.corpus.passages import Passage
from engine.history.ledger import Entry, ShardProgress
from engine.records.batches import BatchBlocks


class MixedBlock(NamedTuple):
    """A training block of a domain.

    Attributes:
        entry: what the ledger has to know of it.
        passages: inside.
        is_surplus: whether all passes that the spec asks for of its domain come before it.
    """

    entry: Entry
    passages: list[Passage]
    is_surplus: bool

    @property
    def num_bytes(self) -> int:
        """Bytes that are learned, without those of context."""
        return sum(passage.num_bytes - passage.context_bytes for passage in self.passages)


def blocks_to_learn(lots: Iterable[Lot], shard: int, progress: ShardProgress, is_surplus: bool) -> Iterator[MixedBlock]:
    """The training blocks of a shard that have not been learned; each is on its own for the ledger.

    Args:
        lots: of the shard, from the cursor of its progress on.
        shard: its number.
    """
    for lot in lots:
        for number, passages in enumerate(lot.blocks, start=lot.start.block):
            if number not in progress.learned:
                after = lot.end if number + 1 == lot.end.block else lot.start
                yield MixedBlock(Entry(shard, number, number + 1, after), passages, is_surplus)


def mixed(
    domains: Sequence[Iterator[MixedBlock]], weights: Sequence[float], learned_bytes: Sequence[int]
) -> Iterator[MixedBlock]:
    """Deal out the blocks of all domains, each to its weight's share of the bytes.

    It ends where the domain whose turn it is has no block left, and where all domains would only repeat themselves.

    Args:
        domains: the blocks of each.
        weights: of each.
        learned_bytes: that were dealt out of each before.
    """
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]  # no rounding decides an order
    dealt = list(learned_bytes)
    heads: list[MixedBlock | None] = [next(blocks, None) for blocks in domains]
    while not all(head is None or head.is_surplus for head in heads):
        turn = neediest(shares, dealt)
        block = heads[turn]
        if block is None:
            return
        yield block
        dealt[turn] += block.num_bytes
        heads[turn] = next(domains[turn], None)


def neediest(shares: Sequence[Fraction], dealt: Sequence[int]) -> int:
    """The index of the domain that lacks the most bytes for its share of all; the first one of several."""
    total = sum(dealt)
    return max(range(len(shares)), key=lambda index: shares[index] * total - dealt[index])


def in_batches(blocks: Iterator[MixedBlock], batch_blocks: int) -> Iterator[list[MixedBlock]]:
    """The blocks of each batch; the last one may hold fewer."""
    while batch := list(islice(blocks, batch_blocks)):
        yield batch


def batch_of(blocks: Sequence[MixedBlock], first_turn: int) -> tuple[list[Passage], BatchBlocks]:
    """The passages of a batch, and its blocks as they travel with them.

    Args:
        first_turn: number of the first block in the order in which blocks are dealt out to the training workers.
    """
    of_passages = np.repeat(np.arange(len(blocks)), [len(block.passages) for block in blocks]).astype(np.int32)
    entries = np.array([block.entry.numbers() for block in blocks], np.int64)
    passages = [passage for block in blocks for passage in block.passages]
    return passages, BatchBlocks(of_passages, entries, first_turn)
