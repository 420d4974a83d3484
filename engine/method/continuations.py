"""What a source says about the bytes that come next, wherever it stands: rows conditioned on bytes.

A target row asks for the distribution of what follows the bytes so far. Where the source has a row at this very byte,
that row answers for the case that its last token has ended; its row before answers for the case that the text goes on
inside a longer token. Where the source has no row here, because the target stands inside a source token, its row before
answers alone. To answer, a row is conditioned on the *residual*, the bytes between it and the target: of its entries
those count that begin with the residual and go on, cut by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit

#: Rows of a source that answer together: the one at the target's byte and the ones before it.
MOST_COVERS = 2


class Continuations(NamedTuple):
    """The tokens of a source in the order of their bytes, and the target tokens of what is left of them.

    Attributes:
        data: uint8, the bytes of all tokens, one after the other. starts: int64 [V+1].
        order: int32 [tokens with bytes], tokens by their bytes. rank: int32 [V], a token's place in it, -1 for one
            without bytes.
        longer: int32 [V, 2], the ranks of the tokens that begin with all bytes of a token and go on.
        cut_starts: int64 [V+1]. cut_tokens: int32, for each number of bytes that are cut off a token, none first, the
            target token of what is left, or -1.
    """

    data: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    rank: np.ndarray
    longer: np.ndarray
    cut_starts: np.ndarray
    cut_tokens: np.ndarray


def build_continuations(token_bytes: Sequence[bytes | None], mapping: np.ndarray, cuts: np.ndarray) -> Continuations:
    """The tables of one source.

    Args:
        token_bytes: the bytes of each token, None for one that has none.
        mapping: int32 [V], the target token of a whole token.
        cuts: ``vocabulary.build_cuts``.
    """
    data, starts, order, rank, longer = token_order(token_bytes)
    cut_starts = np.cumsum([0, *np.maximum(np.diff(starts), 1)], dtype=np.int64)
    cut_tokens = cuts.copy()
    cut_tokens[cut_starts[:-1]] = mapping
    return Continuations(data, starts, order, rank, longer, cut_starts, cut_tokens)


def token_order(token_bytes: Sequence[bytes | None]) -> tuple[np.ndarray, ...]:
    """``data``, ``starts``, ``order``, ``rank`` and ``longer`` of ``Continuations``.

    Args:
        token_bytes: the bytes of each token, None for one that has none.
    """
    pieces = [data or b"" for data in token_bytes]
    starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    data = np.frombuffer(b"".join(pieces), np.uint8)
    order = np.array(sorted((token for token, piece in enumerate(pieces) if piece), key=pieces.__getitem__), np.int32)
    rank = np.full(len(pieces), -1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    longer = np.zeros((len(pieces), 2), np.int32)
    find_longer(data, starts, order, longer)
    return data, starts, order, rank, longer


@njit
def find_longer(data, starts, order, longer):
    """Fill ``Continuations.longer``."""
    for place in range(order.size):
        token = order[place]
        span = starts[token], starts[token + 1]
        longer[token] = _narrowed(place, order.size, 0, span, data, starts, order)


@njit
def _narrowed(low, high, depth, span, data, starts, order):
    """The ranks of those tokens that go on with the bytes ``data[span]`` after ``depth`` bytes, and are longer.

    Args:
        low, high: ranks of tokens that share their first ``depth`` bytes.
    """
    for place in range(*span):
        if low >= high:
            break
        low = _first_from(data[place], depth, low, high, data, starts, order)
        high = _first_from(data[place] + 1, depth, low, high, data, starts, order)
        depth += 1
    while low < high and starts[order[low] + 1] - starts[order[low]] <= depth:
        low += 1
    return low, high


@njit
def _first_from(byte, depth, low, high, data, starts, order):
    """The first rank whose token has at ``depth`` a byte of at least ``byte``; the tokens share the bytes before."""
    while low < high:
        middle = (low + high) // 2
        at = starts[order[middle]] + depth
        if at < starts[order[middle] + 1] and data[at] >= byte:
            high = middle
        else:
            low = middle + 1
    return low


@njit
def match_bytes(
    target_ends, target_offsets, source_ends, source_offsets, source_tokens, begins_alike, data, starts, match, cut
):
    """The source row for each target row, and how many bytes of its next token the target has read already.

    Args:
        target_ends, source_ends, target_offsets, source_offsets, begins_alike: as of ``kernels.match_end_bytes``.
        source_tokens: int32 [sum S]. data, starts: of ``Continuations``.
        match: int32 [sum T], filled: the last source row that has consumed no more bytes than the target row, counted
            within the passage, or -1.
        cut: int32 [sum T], filled: the bytes of the source's next token that the target row has consumed.

    Rows at the same byte match as they do there. A row inside a source token has none if the token's own bytes are not
    those of the text, because a normalizer has changed them: then the number of bytes to cut off is unknown.
    """
    for passage in range(target_offsets.size - 1):
        first, end = source_offsets[passage], source_offsets[passage + 1]
        target_end = target_offsets[passage + 1] - 1
        alike = begins_alike[passage] and rows_at_zero(
            target_ends, target_offsets[passage], target_end
        ) == rows_at_zero(source_ends, first, end)
        source = first
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            match[row], cut[row] = -1, 0
            stop = target_ends[row]
            if row >= target_end or (row + 1 < target_end and target_ends[row + 1] == stop):
                continue
            while source + 1 < end and source_ends[source + 1] <= stop:
                source += 1
            if source >= end or source_ends[source] > stop:
                continue
            if source_ends[source] == stop:
                if stop > 0 or alike:
                    match[row] = source - first
            elif source + 1 < end:
                token, begin = source_tokens[source + 1], source_ends[source]
                length, span = starts[token + 1] - starts[token], source_ends[source + 1] - begin
                beyond = length - span  # a dummy prefix, or a space that the text does not have
                if beyond == 0 or (beyond > 0 and (begin == 0 or (beyond == 1 and data[starts[token]] == 32))):
                    match[row], cut[row] = source - first, stop - begin + beyond


@njit
def rows_at_zero(ends, start, end):
    """How many rows of a passage, BOS and the like, have consumed no byte."""
    count = 0
    while start + count < end and ends[start + count] == 0:
        count += 1
    return count


@njit
def continue_row(
    at, first, cut, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, cut_starts, cut_tokens, found, masses, size,
):  # fmt: skip
    """What one source says about the bytes after a target row, as target tokens.

    Each cover is a source row and the bytes since, its residual. It counts by the probability of the source's own
    tokens up to it, and of the entries that begin with its residual and go on. Of the mass beyond the kept entries as
    large a share is taken to do so as of the kept ones; only of the text's own next token the probability is known.

    Args:
        at: the source row that ``match_bytes`` found; first: the first row of its passage. cut: of ``match_bytes``.
        token_ids, logprobs, topk_ids, topk_bits, exp: the source's rows, as in ``kernels.fuse_rows``.
        data to cut_tokens: ``Continuations``, taken apart.
        found: int32, masses: float64, filled from ``size`` on: target tokens, possibly several times, and their masses.

    Returns:
        How many were found; the mass of all covers, by which the masses are to be divided; the mass of kept entries,
        with a target token or without; the mass beyond the kept entries.
    """
    deepest = 0
    while deepest + 1 < MOST_COVERS and at - deepest > first:
        token = token_ids[at - deepest]
        if starts[token + 1] == starts[token]:
            break
        deepest += 1
    count, total, certain, unknown = size, 0.0, 0.0, 0.0
    for cover in range(deepest + 1):
        weight = 1.0
        for row in range(at - deepest, at - cover):
            weight *= np.exp(logprobs[row])
        row, low, high, length = at - cover, -1, order.size, 0
        if cover > 0 or cut > 0:
            low, high, length = _after_residual(at, cover, cut, token_ids, data, starts, order, longer)
            if low >= high:
                continue
        following = token_ids[at + 1] if cover == 0 and cut > 0 else -1
        kept, consistent = 0.0, 0.0
        for entry in range(topk_ids.shape[1]):
            token, mass = topk_ids[row, entry], exp[topk_bits[row, entry]]
            kept += mass
            if token < 0 or token >= rank.size:
                continue
            if low >= 0:
                if rank[token] < low or rank[token] >= high:
                    continue
                consistent += mass
                if token == following:
                    following = -1
            target = cut_tokens[cut_starts[token] + length]
            if target >= 0 and mass > 0.0:
                found[count], masses[count] = target, weight * mass
                count += 1
        rest = max(1.0 - kept, 0.0)
        if low < 0:
            total += weight * (kept + rest)
            certain += weight * kept
            unknown += weight * rest
            continue
        own = 0.0
        if following >= 0:
            own = min(np.exp(logprobs[row]), rest)
            target = cut_tokens[cut_starts[following] + length]
            if target >= 0 and own > 0.0:
                found[count], masses[count] = target, weight * own
                count += 1
        estimate = (rest - own) * consistent / kept if kept > 0.0 else 0.0
        total += weight * (consistent + own + estimate)
        certain += weight * (consistent + own)
        unknown += weight * (rest - own)
    return count - size, total, certain, unknown


@njit
def _after_residual(at, cover, cut, token_ids, data, starts, order, longer):
    """The ranks of the tokens that begin with the residual of a cover and go on, and the residual's length."""
    low, high, depth = 0, order.size, 0
    if cover > 0:
        token = token_ids[at - cover + 1]
        low, high = longer[token]
        depth = starts[token + 1] - starts[token]
        for row in range(at - cover + 2, at + 1):
            span = starts[token_ids[row]], starts[token_ids[row] + 1]
            low, high = _narrowed(low, high, depth, span, data, starts, order)
            depth += span[1] - span[0]
    if cut > 0:
        begin = starts[token_ids[at + 1]]
        low, high = _narrowed(low, high, depth, (begin, begin + cut), data, starts, order)
        depth += cut
    return low, high, depth


@njit
def drop_uncertain(
    least, target_offsets, source_offsets, match, cut, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, cut_starts, cut_tokens,
):  # fmt: skip
    """Take the source row from target rows inside source tokens of which the kept entries say too little.

    Args:
        least: the least share that kept entries have of the conditioned row, if all mass beyond them goes on with the
            residual too.
        match, cut: of ``match_bytes``, changed: -1 and 0 where there is less.
    """
    room = MOST_COVERS * (topk_ids.shape[1] + 1)
    found, masses = np.empty(room, np.int32), np.empty(room)
    for passage in range(target_offsets.size - 1):
        first = source_offsets[passage]
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            if match[row] >= 0 and cut[row] > 0:
                _, _, certain, unknown = continue_row(
                    first + match[row], first, cut[row], token_ids, logprobs, topk_ids, topk_bits, exp,
                    data, starts, order, rank, longer, cut_starts, cut_tokens, found, masses, 0,
                )  # fmt: skip
                if certain <= least * (certain + unknown):
                    match[row], cut[row] = -1, 0
