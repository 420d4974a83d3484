"""Domains: the parts of a corpus between which a mixture divides the learned bytes, and the numbers of their shards.

A corpus without domains is one domain without a name. A domain may be read more often than another, and before the end
of a run it is not known how often. So each has a range of numbers to itself, in which its shards count on from pass to
pass: what has been learned of it stays one interval of the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from engine.corpus.files import CorpusUnit
from engine.corpus.shards import Shard

#: Numbers of shards that a domain has to itself.
DOMAIN_RANGE = 2**40


@dataclass(frozen=True)
class Domain:
    """A part of the corpus.

    Attributes:
        name: empty for a corpus without domains.
        weight: its share of the learned bytes is its weight over the sum of all weights.
        shards: the units of each shard, in one pass.
    """

    name: str
    weight: float
    shards: tuple[tuple[CorpusUnit, ...], ...]

    @property
    def units(self) -> list[CorpusUnit]:
        """All units of the domain, in one pass."""
        return [unit for units in self.shards for unit in units]


def shard_of(domains: Sequence[Domain], number: int) -> Shard:
    """The shard with a number, of whichever domain and pass."""
    index, place = divmod(number, DOMAIN_RANGE)
    corpus_pass, place = divmod(place, len(domains[index].shards))
    return Shard(number, corpus_pass, domains[index].shards[place])


def shard_numbers(domains: Sequence[Domain], index: int, passes: int | None) -> Iterator[int]:
    """The numbers of the shards of one domain, pass by pass; None: passes without end."""
    first = index * DOMAIN_RANGE
    return iter(count(first) if passes is None else range(first, first + passes * len(domains[index].shards)))


def domains_of(numbers: np.ndarray) -> np.ndarray:
    """The index of the domain of each shard, from the shards' numbers."""
    return numbers // DOMAIN_RANGE
