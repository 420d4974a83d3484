"""Which token a byte-pair model can write after another, where the text is not split between them.

A pair of tokens is impossible exactly if the tokenizer, given the bytes of both, would write others (Vieira et al.
2025): if a merge across their boundary comes before those that build the two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit
from engine.method.pair_table import empty_table, slot_of
from engine.text.merges import Merges

#: The rank of a merge that does not exist.
NO_MERGE = 2**31 - 1


class MergeTables(NamedTuple):
    """What ``writes_both`` looks up.

    Attributes:
        ends: int32 [V, 3], of each token: whether merges lead to it, and where its symbols begin in ``lasts`` and
            ``firsts``.
        lasts: int32 [., 2], the symbols that stand at a token's end while its symbols are merged, in order, and the
            highest rank of the merges that are made until the next one does. firsts: the same at its beginning.
        merges: int64 [., 2], a hash table of pairs of symbols and the ranks of their merges.
        partners: uint64 [V], which symbols a symbol has merges with on its right, one bit for many symbols.
    """

    ends: np.ndarray
    lasts: np.ndarray
    firsts: np.ndarray
    merges: np.ndarray
    partners: np.ndarray


#: Columns of ``MergeTables.ends``.
_WRITTEN, _LASTS, _FIRSTS = range(3)

#: Of tokenizers of other kinds.
NO_MERGES = MergeTables(
    ends=np.zeros((0, 3), np.int32),
    lasts=np.zeros((0, 2), np.int32),
    firsts=np.zeros((0, 2), np.int32),
    merges=np.zeros((0, 2), np.int64),
    partners=np.zeros(0, np.uint64),
)


def merge_tables(merges: Merges) -> MergeTables:
    """The tables of a byte-pair model."""
    table = empty_table(2 * len(merges.left))
    results = np.zeros(len(table), np.int32)
    size = len(merges.offsets) - 1
    partners = np.zeros(size, np.uint64)
    _fill(merges.left, merges.right, merges.merged, table, results, partners)
    lasts, firsts = (np.empty((len(merges.symbols), 2), np.int32) for _ in range(2))
    ends = np.zeros((size, 3), np.int32)
    used = _ends(merges.symbols, merges.offsets, table, results, lasts, firsts, ends)
    return MergeTables(ends, lasts[: used[0]].copy(), firsts[: used[1]].copy(), table, partners)


@njit
def _bit(symbol):
    return np.uint64(1) << ((np.uint64(symbol) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58))


@njit
def _fill(left, right, merged, merges, results, partners):
    for rank in range(left.size):
        slot, key = slot_of(merges, left[rank], right[rank])
        partners[left[rank]] |= _bit(right[rank])
        if merges[slot, 0] == -1:  # a merge that is listed twice counts where it comes first
            merges[slot, 0], merges[slot, 1], results[slot] = key, rank, merged[rank]


@njit
def _ends(symbols, offsets, merges, results, lasts, firsts, ends):
    """Merge the symbols of each token as the tokenizer does, and note the symbols at both ends."""
    last = first = 0
    for token in range(offsets.size - 1):
        parts = symbols[offsets[token] : offsets[token + 1]].copy()
        count = parts.size
        ends[token, _LASTS], ends[token, _FIRSTS] = last, first
        if not count:
            continue
        highest_last = highest_first = -1
        lasts[last, 0], firsts[first, 0] = parts[count - 1], parts[0]
        while count > 1:
            best, place, slot = NO_MERGE, -1, 0
            for index in range(count - 1):
                found, _ = slot_of(merges, parts[index], parts[index + 1])
                if merges[found, 0] != -1 and merges[found, 1] < best:
                    best, place, slot = merges[found, 1], index, found
            if place < 0:
                break
            highest_last, highest_first = max(highest_last, best), max(highest_first, best)
            parts[place] = results[slot]
            for index in range(place + 1, count - 1):
                parts[index] = parts[index + 1]
            count -= 1
            if place == count - 1:
                lasts[last, 1], highest_last = highest_last, -1
                last += 1
                lasts[last, 0] = parts[place]
            if place == 0:
                firsts[first, 1], highest_first = highest_first, -1
                first += 1
                firsts[first, 0] = parts[0]
        lasts[last, 1], firsts[first, 1] = NO_MERGE, NO_MERGE
        last, first = last + 1, first + 1
        ends[token, _WRITTEN] = count == 1 and parts[0] == token
    return last, first


@njit
def writes_both(before, token, ends, lasts, firsts, merges, partners):
    """Whether the model writes two tokens for the bytes of both; ``MergeTables``, taken apart."""
    if not (ends[before, _WRITTEN] and ends[token, _WRITTEN]):
        return False
    return not _merges_across(ends[before, _LASTS], ends[token, _FIRSTS], lasts, firsts, merges, partners)


@njit
def _merges_across(left, right, lasts, firsts, merges, partners):
    """Whether the tokenizer merges across the boundary, given where the symbols at both sides begin."""
    while True:
        one, other = lasts[left, 0], firsts[right, 0]
        left_rank, right_rank = lasts[left, 1], firsts[right, 1]
        if partners[one] & _bit(other):
            slot, _ = slot_of(merges, one, other)
            rank = merges[slot, 1]
            # Of equal merges the one further left comes first.
            if rank >= 0 and rank < left_rank and rank <= right_rank:
                return True
        if left_rank == NO_MERGE and right_rank == NO_MERGE:
            return False
        if left_rank <= right_rank:
            left += 1
        else:
            right += 1
