"""Shards: the parts of a corpus that readers take one after the other, and the part of it that a death reads again.

Shards follow from the corpus alone, not from the number of readers, so that a position in one means the same in every
start of a run. There are many, so that all readers are busy to the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from engine.corpus.files import CorpusUnit

#: Shards of a corpus, if that makes neither too small nor too large ones. Each ends with a training block that is
#: partly empty, so small ones would waste places; a reader that dies reads its shard again.
WANTED_SHARDS = 256
SMALLEST_SHARD, LARGEST_SHARD = 4 * 2**20, 64 * 2**20


@dataclass(frozen=True)
class Shard:
    """A part of the corpus in one pass over it.

    Attributes:
        number: over all passes.
        corpus_pass: number of the pass, from 0.
        units: in the order of the corpus.
    """

    number: int
    corpus_pass: int
    units: tuple[CorpusUnit, ...]


def shards_of(units: Sequence[CorpusUnit]) -> tuple[tuple[CorpusUnit, ...], ...]:
    """The units of each shard: small units together, large files in parts where they can be split."""
    size = shard_bytes(sum(unit.num_bytes for unit in units))
    found: list[tuple[CorpusUnit, ...]] = []
    gathered: list[CorpusUnit] = []
    for part in (part for unit in units for part in _parts(unit, size)):
        gathered.append(part)
        if sum(each.num_bytes for each in gathered) >= size:
            found.append(tuple(gathered))
            gathered = []
    return tuple([*found, tuple(gathered)] if gathered else found)


def shard_bytes(corpus_bytes: int) -> int:
    """The size that a shard has at least, a power of two: a corpus that grows by a little keeps its shards."""
    wanted = max(corpus_bytes // WANTED_SHARDS, 1)
    return min(max(2 ** (wanted.bit_length() - 1), SMALLEST_SHARD), LARGEST_SHARD)


def in_passes(shards: Sequence[tuple[CorpusUnit, ...]], passes: int) -> tuple[Shard, ...]:
    """The shards of all passes over the corpus, pass by pass."""
    return tuple(
        Shard(corpus_pass * len(shards) + number, corpus_pass, units)
        for corpus_pass in range(passes)
        for number, units in enumerate(shards)
    )


def fingerprint(shards: Iterable[tuple[CorpusUnit, ...]]) -> str:
    """A text that is the same as long as shards keep their numbers, wherever the files lie and whatever is in them."""
    text = "\n".join(
        " ".join(f"{unit.path.rsplit('/', 1)[-1]}:{unit.row_group}:{unit.first_byte}" for unit in units)
        for units in shards
    )
    return hashlib.sha256(text.encode("utf8")).hexdigest()


def _parts(unit: CorpusUnit, size: int) -> Iterator[CorpusUnit]:
    """Parts of ``size`` bytes, the last one less than twice as large; a unit that cannot be split is its only part."""
    if not unit.can_be_split or unit.num_bytes < 2 * size:
        yield unit
        return
    count = unit.num_bytes // size
    for part in range(count):
        is_last = part == count - 1
        first, end = part * size, -1 if is_last else (part + 1) * size
        yield replace(unit, first_byte=first, end_byte=end, num_bytes=(unit.num_bytes if is_last else end) - first)
