"""Levenshtein distances between token strings, in numba: the nearest string of a vocabulary, and alignment by edits.

Both serve the paper's ways of comparing two tokenizers (FuseLLM, arXiv 2401.10491, section 3.2: minimum edit distance)
and are exact. Distances are unit-cost, over Unicode code points. Slow twins in ``tests/support/slow_edit_distance.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit

#: Code points of the longest string whose distances fit into one machine word.
WORD = 64

#: Source strings that a thread takes at a time.
CHUNK = 512

ONE = np.uint64(1)
NO_LIMIT = np.iinfo(np.int64).max
DIAGONAL, UP, LEFT = 0, 1, 2


class Strings(NamedTuple):
    """Strings as arrays: int32 code points, renumbered from 0; int64 [n+1] where each string begins; see ``_sign``."""

    codes: np.ndarray
    offsets: np.ndarray
    signatures: np.ndarray


def nearest(sources: Sequence[str], targets: Sequence[str], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The target string at the least Levenshtein distance from each source string.

    Args:
        threads: how many sources are worked on at a time.

    Returns:
        int32 [S] index of the target, the lowest of those that tie; int32 [S] distance in edits.

    Raises:
        ValueError: there are no targets.
    """
    if not targets:
        raise ValueError(f"nearest: 0 target strings for {len(sources)} source strings; at least one is needed")
    index_of: dict[str, int] = {}
    for index, target in enumerate(targets):
        index_of.setdefault(target, index)
    found = np.array([index_of.get(source, -1) for source in sources], np.int32)
    distances = np.zeros(len(sources), np.int32)
    others = np.flatnonzero(found < 0)
    if others.size:
        found[others], distances[others] = _search([sources[index] for index in others], index_of, threads)
    return found, distances


def align_by_edits(targets: Sequence[str], sources: Sequence[str]) -> tuple[int, np.ndarray, np.ndarray]:
    """Dynamic time warping over the token strings of one passage, as in the paper's token alignment.

    With ``c`` the Levenshtein distance of two tokens, ``D[s, t] = c[s, t] + min(D[s-1, t-1], D[s-1, t], D[s, t-1])``.
    The path begins at the two first tokens and ends at the two last; of steps that tie it goes back by the diagonal,
    then to the previous source token, then to the previous target token. Needs one byte for each pair of tokens.

    Args:
        targets, sources: T and S token strings without their markers of spaces.

    Returns:
        The cost in edits of the whole path; int32 [T] and int32 [T], the first and the last source token on the path of
        each target token. Without tokens on either side the cost is 0 and the rows are -1.
    """
    first, last = np.full(len(targets), -1, np.int32), np.full(len(targets), -1, np.int32)
    if not targets or not sources:
        return 0, first, last
    target_ids, distinct_targets = _distinct(targets)
    source_ids, distinct_sources = _distinct(sources)
    target_strings, source_strings, num_codes = _as_arrays(distinct_targets, distinct_sources)
    costs = np.empty((len(distinct_sources), len(distinct_targets)), np.int32)
    _pairwise_distances(source_strings, target_strings, num_codes, costs)
    return int(_warp(costs, source_ids, target_ids, first, last)), first, last


def _search(sources: list[str], index_of: dict[str, int], threads: int) -> tuple[np.ndarray, np.ndarray]:
    """``nearest`` for sources that are none of the targets; ``index_of`` in ascending order of index."""
    by_length = sorted(index_of, key=len)
    target_index = np.array([index_of[target] for target in by_length], np.int32)
    strings, targets, num_codes = _as_arrays(sources, by_length)
    groups = np.searchsorted(np.diff(targets.offsets), np.arange(len(by_length[-1]) + 2))
    found, distances = np.empty((2, len(sources)), np.int32)

    def search(begin: int) -> None:
        rows = slice(begin, begin + CHUNK)
        _search_rows(strings, begin, targets, target_index, groups, num_codes, found[rows], distances[rows])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(search, range(0, len(sources), CHUNK)))
    return found, distances


def _distinct(strings: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Each string's number among the distinct ones, int32 [n], and these."""
    number_of: dict[str, int] = {}
    numbers = [number_of.setdefault(string, len(number_of)) for string in strings]
    return np.array(numbers, np.int32), list(number_of)


def _as_arrays(left: list[str], right: list[str]) -> tuple[Strings, Strings, int]:
    """Two lists of strings with their code points renumbered together, and how many code points there are."""
    points = np.frombuffer("".join([*left, *right]).encode("utf-32-le", "surrogatepass"), np.uint32)
    distinct, numbers, counts = np.unique(points, return_inverse=True, return_counts=True)
    ranks = np.empty(distinct.size, np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(distinct.size, dtype=np.int32)
    codes = ranks[numbers]
    ends = np.cumsum([0, *map(len, left), *map(len, right)], dtype=np.int64)
    signatures = np.empty(len(left) + len(right), np.uint64)
    _sign(codes, ends, distinct.size, signatures)
    left_strings = Strings(codes, ends[: len(left) + 1], signatures[: len(left)])
    return left_strings, Strings(codes, ends[len(left) :], signatures[len(left) :]), distinct.size


@njit
def _sign(codes, offsets, num_codes, signatures):
    """Fill ``signatures``, uint64 [n]: one bit, of 64, for each code point of a string and how often it came before.

    One edit takes away at most one such pair and brings at most one, so that neither string of two has more bits of its
    own than their distance; and two strings without a common bit have no common code point.
    """
    seen = np.zeros(num_codes, np.int32)
    for row in range(signatures.size):
        signature = np.uint64(0)
        for place in range(offsets[row], offsets[row + 1]):
            code = codes[place]
            signature |= ONE << np.uint64((code + 41 * seen[code]) & 63)
            seen[code] += 1
        for place in range(offsets[row], offsets[row + 1]):
            seen[codes[place]] = 0
        signatures[row] = signature


@njit
def _search_rows(sources, begin, targets, target_index, groups, num_codes, found, distances):
    """The nearest target of the sources ``begin``, ``begin + 1``, ... .

    Args:
        targets: sorted by length. target_index: int32 [T], ascending within a length.
        groups: int64 [longest + 2], where the targets of each length begin.
        found, distances: int32 [rows], filled.
    """
    masks, longest = np.zeros(num_codes, np.uint64), groups.size - 2
    for row in range(found.size):
        source = begin + row
        length = sources.offsets[source + 1] - sources.offsets[source]
        _flip_masks(sources, source, masks)
        best, index, gap = NO_LIMIT, NO_LIMIT, 0
        while gap <= best and gap <= max(length, longest):
            for group in range(length - gap, length + gap + 1, max(2 * gap, 1)):  # so much shorter, so much longer
                if 0 <= group <= longest:
                    best, index = _search_group(
                        sources, source, targets, groups[group : group + 2], target_index, gap, masks, best, index
                    )
            gap += 1
        _flip_masks(sources, source, masks)
        found[row], distances[row] = index, best


@njit
def _search_group(sources, source, targets, group, target_index, gap, masks, best, index):
    """The better of (best, index) and the targets ``group[0]`` to ``group[1]``, which have one length."""
    # Taken apart before the loop: numba counts references at each access to a tuple, which would cost half the time.
    codes, start, stop = sources.codes, sources.offsets[source], sources.offsets[source + 1]
    signature, (other_codes, offsets, signatures) = sources.signatures[source], targets
    for target in range(group[0], group[1]):
        # Of targets at one distance the lowest index counts.
        limit = best if target_index[target] < index else best - 1
        if limit < gap:
            break
        if max(_count_ones(signature & ~signatures[target]), _count_ones(signatures[target] & ~signature)) > limit:
            continue
        distance = _distance(codes, start, stop, other_codes, offsets[target], offsets[target + 1], masks, limit)
        if distance <= limit:
            best, index = distance, target_index[target]
    return best, index


@njit
def _count_ones(word):
    """Bits that are set: the form that LLVM knows and turns into one instruction."""
    word = word - ((word >> ONE) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit
def _flip_masks(strings, row, masks):
    """Set in ``masks`` [num_codes] the places of each code in a string of at most 64; a second call clears them."""
    start, end = strings.offsets[row], strings.offsets[row + 1]
    if end - start <= WORD:
        for place in range(start, end):
            masks[strings.codes[place]] ^= ONE << np.uint64(place - start)


@njit
def _distance(codes, start, end, other_codes, other_start, other_end, masks, limit):
    """Levenshtein distance, or anything above ``limit`` if it is above; ``masks`` of the first string."""
    if start == end:
        return other_end - other_start
    if end - start <= WORD:
        return _distance_in_a_word(masks, end - start, other_codes, other_start, other_end, limit)
    return _distance_by_rows(codes, start, end, other_codes, other_start, other_end, limit)


@njit
def _distance_in_a_word(masks, length, codes, start, end, limit):
    """Myers (1999), in Hyyrö's form: a column of the table as the bits of its steps up and of its steps down."""
    rises, falls = ~np.uint64(0), np.uint64(0)
    last, distance = np.uint64(length - 1), length
    for place in range(start, end):
        same = masks[codes[place]]
        steady = (((same & rises) + rises) ^ rises) | same
        up, down = falls | ~(steady | rises), rises & steady
        distance += np.int64((up >> last) & ONE) - np.int64((down >> last) & ONE)
        if distance - (end - place - 1) > limit:
            return distance
        up, down = (up << ONE) | ONE, down << ONE
        changed = same | falls
        rises, falls = down | ~(changed | up), up & changed
    return distance


@njit
def _distance_by_rows(codes, start, end, other_codes, other_start, other_end, limit):
    """The plain table, one row at a time; stops when a whole row is above ``limit``."""
    width = other_end - other_start
    table = np.arange(width + 1)
    for place in range(start, end):
        corner, table[0] = table[0], table[0] + 1
        least = table[0]
        for column in range(width):
            replaced = corner + (codes[place] != other_codes[other_start + column])
            corner = table[column + 1]
            table[column + 1] = min(replaced, corner + 1, table[column] + 1)
            least = min(least, table[column + 1])
        if least > limit:
            return least
    return table[width]


@njit
def _pairwise_distances(sources, targets, num_codes, costs):
    """Fill ``costs``, int32 [S, T], with the distance of each pair."""
    masks = np.zeros(num_codes, np.uint64)
    codes, offsets, signatures = sources
    other_codes, other_offsets, other_signatures = targets
    for source in range(costs.shape[0]):
        row, start, end = costs[source], offsets[source], offsets[source + 1]
        _flip_masks(sources, source, masks)
        for target in range(costs.shape[1]):
            other_start, other_end = other_offsets[target], other_offsets[target + 1]
            if signatures[source] & other_signatures[target] == 0:  # no common code point
                row[target] = max(end - start, other_end - other_start)
            else:
                row[target] = _distance(codes, start, end, other_codes, other_start, other_end, masks, NO_LIMIT)
        _flip_masks(sources, source, masks)


@njit
def _warp(costs, source_ids, target_ids, first, last):
    """The cost of the whole path; fills ``first`` and ``last``, int32 [T] of -1, with source tokens on it.

    Args:
        costs: int32 [distinct sources, distinct targets]. source_ids: int32 [S]; target_ids: int32 [T].
    """
    steps = np.empty((source_ids.size, target_ids.size), np.int8)
    row = np.full(target_ids.size + 1, NO_LIMIT)  # the row before; its first column is out of bounds
    row[0] = 0
    for source in range(source_ids.size):
        cost, corner, left = costs[source_ids[source]], row[0], NO_LIMIT
        row[0] = NO_LIMIT
        for target in range(target_ids.size):
            up = row[target + 1]
            step, before = DIAGONAL, corner
            if up < before:
                step, before = UP, up
            if left < before:
                step, before = LEFT, left
            left = before + cost[target_ids[target]]
            corner, row[target + 1], steps[source, target] = up, left, step
    source, target = source_ids.size - 1, target_ids.size - 1
    while target >= 0 and source >= 0:
        first[target], last[target] = source, max(last[target], source)
        step = steps[source, target]
        source, target = source - (step != LEFT), target - (step != UP)
    return row[-1]
