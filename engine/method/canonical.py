"""Canonical tokenization: which token a tokenizer can write after another.

The target has written token p because the text does not go on in a way that would have made its tokenizer write another
token there. So tokens that it never writes after p are impossible, whatever a source says. For byte-pair models a pair
of tokens is impossible exactly if the tokenizer, given the bytes of both, would write others (Vieira et al. 2025), and
no text is split between them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit
from engine.text.merges import Merges, model_layout, read_merges
from engine.text.splits import MAYBE, NEVER, WANTED, Splits
from engine.text.tokenization import PassageTokenizer

#: The rank of a merge that does not exist.
NO_MERGE = 2**31 - 1

_EMPTY = -1

#: Tokens between which answers are remembered; they come to 16 MiB at most.
MOST_REMEMBERED = 2**13

#: Answers of ``may_follow``.
UNKNOWN_PAIR, POSSIBLE, IMPOSSIBLE = 0, 1, 2


class Pairs(NamedTuple):
    """What ``may_follow`` looks up for byte-pair models.

    Attributes:
        tokens: int32 [V, 6], of each token: whether it may stand beside any other (special and added ones), whether
            merges lead to it, the classes of its end and its beginning (``engine.text.splits``), and where its symbols
            begin in ``lasts`` and ``firsts``.
        splits: int8, ``Splits.table``.
        lasts: int32 [., 2], the symbols that stand at a token's end while its symbols are merged, in order, and the
            highest rank of the merges that are made until the next one does. firsts: the same at its beginning.
        merges: int64 [., 2], a hash table of pairs of symbols and the ranks of their merges.
        partners: uint64 [V], which symbols a symbol has merges with on its right, one bit for many symbols.
        places: int32 [V+1], the row and column of a token in ``answers``, -1 for none; last, how many are taken.
        answers: uint8 [MOST_REMEMBERED, MOST_REMEMBERED / 4], the answers so far for the tokens that came first, four
            in a byte: more of them fit into a processor's cache.
    """

    tokens: np.ndarray
    splits: np.ndarray
    lasts: np.ndarray
    firsts: np.ndarray
    merges: np.ndarray
    partners: np.ndarray
    places: np.ndarray
    answers: np.ndarray


#: Columns of ``Pairs.tokens``.
_FREE, _WRITTEN, _TAIL, _HEAD, _LASTS, _FIRSTS = range(6)


#: Every pair is possible.
NO_PAIRS = Pairs(
    tokens=np.zeros((0, 6), np.int32),
    splits=np.zeros((0, 0), np.int8),
    lasts=np.zeros((0, 2), np.int32),
    firsts=np.zeros((0, 2), np.int32),
    merges=np.zeros((0, 2), np.int64),
    partners=np.zeros(0, np.uint64),
    places=np.zeros(1, np.int32),
    answers=np.zeros((0, 0), np.uint8),
)


class CanonicalPairs:
    """The pairs of tokens that a tokenizer writes.

    Attributes:
        pairs: for kernels. is_known: whether they are known; if not, every pair is taken for possible.
    """

    def __init__(self, tokenizer: PassageTokenizer):
        self.is_known = are_known(tokenizer)
        self.pairs = NO_PAIRS
        if self.is_known:
            self._splits = Splits(tokenizer)
            self.pairs = build_pairs(read_merges(tokenizer, model_layout(tokenizer)), self._splits)

    def answer(self) -> bool:
        """Ask the pre-tokenizer what ``may_follow`` wanted; whether it wanted anything."""
        return self.is_known and self._splits.answer()


def are_known(tokenizer: PassageTokenizer) -> bool:
    """Whether it is known which tokens a tokenizer never writes one after another: byte-pair models without affixes."""
    model = model_layout(tokenizer)
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return model["type"] == "BPE" and not model.get("dropout") and not affixes


def build_pairs(merges: Merges, splits: Splits) -> Pairs:
    """The tables of a byte-pair model."""
    slots = 1 << max(4, (2 * len(merges.left)).bit_length())
    table, results = np.full((slots, 2), _EMPTY, np.int64), np.zeros(slots, np.int32)
    size = len(merges.offsets) - 1
    partners = np.zeros(size, np.uint64)
    _fill(merges.left, merges.right, merges.merged, table, results, partners)
    lasts, firsts = (np.empty((len(merges.symbols), 2), np.int32) for _ in range(2))
    tokens = np.zeros((size, 6), np.int32)
    tokens[:, _FREE], tokens[:, _TAIL], tokens[:, _HEAD] = np.diff(merges.offsets) == 0, splits.tails, splits.heads
    places = np.full(size + 1, _EMPTY, np.int32)
    places[-1] = 0
    answers = np.zeros((MOST_REMEMBERED, MOST_REMEMBERED // 4), np.uint8)
    used = _ends(merges.symbols, merges.offsets, table, results, lasts, firsts, tokens)
    return Pairs(
        tokens, splits.table, lasts[: used[0]].copy(), firsts[: used[1]].copy(), table, partners, places, answers
    )


@njit
def _slot(merges, left, right):
    """The slot of a pair of symbols, or the empty one where it would be."""
    key = (np.int64(left) << 32) | np.int64(right)
    mask = merges.shape[0] - 1
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while merges[slot, 0] != -1 and merges[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot, key


@njit
def _bit(symbol):
    return np.uint64(1) << ((np.uint64(symbol) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58))


@njit
def _fill(left, right, merged, merges, results, partners):
    for rank in range(left.size):
        slot, key = _slot(merges, left[rank], right[rank])
        partners[left[rank]] |= _bit(right[rank])
        if merges[slot, 0] == -1:  # a merge that is listed twice counts where it comes first
            merges[slot, 0], merges[slot, 1], results[slot] = key, rank, merged[rank]


@njit
def _ends(symbols, offsets, merges, results, lasts, firsts, tokens):
    """Merge the symbols of each token as the tokenizer does, and note the symbols at both ends."""
    last = first = 0
    for token in range(offsets.size - 1):
        parts = symbols[offsets[token] : offsets[token + 1]].copy()
        count = parts.size
        tokens[token, _LASTS], tokens[token, _FIRSTS] = last, first
        if not count:
            continue
        highest_last = highest_first = -1
        lasts[last, 0], firsts[first, 0] = parts[count - 1], parts[0]
        while count > 1:
            best, place, slot = NO_MERGE, -1, 0
            for index in range(count - 1):
                found, _ = _slot(merges, parts[index], parts[index + 1])
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
        tokens[token, _WRITTEN] = count == 1 and parts[0] == token
    return last, first


@njit
def place_of(token, places):
    """The place of a token in the memory of answers, the next free one if it has none; -1 if all are taken."""
    place = places[token]
    if place < 0 and places[-1] < MOST_REMEMBERED:
        place = places[token] = places[-1]
        places[-1] += 1
    return place


@njit
def remembered(answers, row, column):
    """The answer for two places, ``UNKNOWN_PAIR`` where there is none."""
    if row < 0 or column < 0:
        return UNKNOWN_PAIR
    return (answers[row, column >> 2] >> (2 * (column & 3))) & 3


@njit
def remember(answer, answers, row, column):
    """Note the answer for two places that had none."""
    if row >= 0 and column >= 0:
        answers[row, column >> 2] |= np.uint8(answer << (2 * (column & 3)))


@njit
def may_follow(before, token, tokens, splits, lasts, firsts, merges, partners):
    """Whether the tokenizer can write ``token`` after ``before``; ``Pairs``, taken apart.

    Where that depends on a split that has not been asked for, it becomes ``WANTED``, and the answer is unknown.
    """
    if tokens[before, _FREE] or tokens[token, _FREE]:
        return POSSIBLE
    tail, head = tokens[before, _TAIL], tokens[token, _HEAD]
    is_split = splits[tail, head]
    if is_split == MAYBE:
        return POSSIBLE
    if tokens[before, _WRITTEN] and tokens[token, _WRITTEN]:
        left, right = tokens[before, _LASTS], tokens[token, _FIRSTS]
        if not _merges_across(left, right, lasts, firsts, merges, partners):
            return POSSIBLE
    if is_split == NEVER:
        return IMPOSSIBLE
    splits[tail, head] = WANTED
    return UNKNOWN_PAIR


@njit
def _merges_across(left, right, lasts, firsts, merges, partners):
    """Whether the tokenizer merges across the boundary, given where the symbols at both sides begin."""
    while True:
        one, other = lasts[left, 0], firsts[right, 0]
        left_rank, right_rank = lasts[left, 1], firsts[right, 1]
        if partners[one] & _bit(other):
            slot, _ = _slot(merges, one, other)
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
