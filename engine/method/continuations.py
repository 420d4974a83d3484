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
        begun: int32 [., 2], for each number of bytes of a token the ranks of the tokens that begin with them and go on;
            its places are those of ``cut_tokens``, and the first of a token is not used.
        whole: int32 [V], the target token of a whole token, or -1.
        cut_starts: int64 [V+1]. cut_tokens: int32, for each number of bytes that are cut off a token, none first, the
            target token of what is left, or -1.
    """

    data: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    rank: np.ndarray
    longer: np.ndarray
    begun: np.ndarray
    whole: np.ndarray
    cut_starts: np.ndarray
    cut_tokens: np.ndarray


def build_continuations(token_bytes: Sequence[bytes | None], mapping: np.ndarray, cuts: np.ndarray) -> Continuations:
    """The tables of one source.

    Args:
        token_bytes: the bytes of each token, None for one that has none.
        mapping: int32 [V], the target token of a whole token.
        cuts: ``vocabulary.build_cuts``.
    """
    data, starts, order, rank = token_order(token_bytes)
    cut_starts = np.cumsum([0, *np.maximum(np.diff(starts), 1)], dtype=np.int64)
    longer, begun = np.zeros((len(starts) - 1, 2), np.int32), np.zeros((cut_starts[-1], 2), np.int32)
    find_ranges(data, starts, order, cut_starts, longer, begun)
    cut_tokens = cuts.copy()
    cut_tokens[cut_starts[:-1]] = mapping
    return Continuations(data, starts, order, rank, longer, begun, mapping, cut_starts, cut_tokens)


def token_order(token_bytes: Sequence[bytes | None]) -> tuple[np.ndarray, ...]:
    """``data``, ``starts``, ``order`` and ``rank`` of ``Continuations``.

    Args:
        token_bytes: the bytes of each token, None for one that has none.
    """
    pieces = [data or b"" for data in token_bytes]
    starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    data = np.frombuffer(b"".join(pieces), np.uint8)
    order = np.array(sorted((token for token, piece in enumerate(pieces) if piece), key=pieces.__getitem__), np.int32)
    rank = np.full(len(pieces), -1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return data, starts, order, rank


@njit
def find_ranges(data, starts, order, cut_starts, longer, begun):
    """Fill ``longer`` and ``begun`` of ``Continuations`` by one walk up the order, which finds where ranges begin, and
    one down, which finds where they end."""
    most = 0
    for token in order:
        most = max(most, starts[token + 1] - starts[token])
    bounds = np.zeros(most + 1, np.int64)
    for place in range(order.size):
        token, shared = order[place], 0
        length = starts[token + 1] - starts[token]
        if place > 0:
            shared = _shared_bytes(token, order[place - 1], data, starts)
        bounds[shared + 1 : length] = place
        bounds[length] = place + 1  # after it come its equals, and those that go on
        begun[cut_starts[token] + 1 : cut_starts[token] + length, 0] = bounds[1:length]
        longer[token, 0] = place + 1
    for place in range(order.size - 1, -1, -1):
        token, shared = order[place], 0
        length = starts[token + 1] - starts[token]
        if place + 1 < order.size:
            following = order[place + 1]
            shared = _shared_bytes(token, following, data, starts)
            if shared == length and starts[following + 1] - starts[following] == length:
                longer[token, 0] = longer[following, 0]
        bounds[shared + 1 : length + 1] = place + 1
        begun[cut_starts[token] + 1 : cut_starts[token] + length, 1] = bounds[1:length]
        longer[token, 1] = bounds[length]


@njit
def _shared_bytes(one, other, data, starts):
    """How many bytes two tokens have in common at their beginnings."""
    most = min(starts[one + 1] - starts[one], starts[other + 1] - starts[other])
    for depth in range(most):
        if data[starts[one] + depth] != data[starts[other] + depth]:
            return depth
    return most


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
def further_pieces(ends, logprobs, row, end, span):
    """Probability that the source goes on to the end of ``span`` as the text does, once its first piece is said.

    Args:
        ends: int32 [sum S]; logprobs: float32 [sum S].
        row: the source's row before the span, or before the token inside which the span begins. end: the row after the
            passage's last one.

    Returns:
        The product over all pieces but the first; 0 if the span is one piece or none, or does not end with a piece.
    """
    begin, stop = span
    logprob, last = 0.0, row + 1
    while last < end and ends[last] < stop:
        logprob += logprobs[last]
        last += 1
    is_split = last > row + 1 and last < end and ends[last] == stop and stop > begin
    return np.exp(logprob) if is_split else 0.0


@njit
def continue_row(
    at, first, cut, label, share, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens, found, masses, size,
):  # fmt: skip
    """What one source says about the bytes after a target row, as target tokens.

    Each cover is a source row and the bytes since, its residual. It counts by the probability of the source's own
    tokens up to it, and of the entries that begin with its residual and go on. Of the mass beyond the kept entries as
    large a share is taken to do so as of the kept ones; only of the text's own next token the probability is known.

    Args:
        at: the source row that ``match_bytes`` found; first: the first row of its passage. cut: of ``match_bytes``.
        label, share: the next target token, where the source splits it, and the share of its first piece's mass that
            it gets; 0 elsewhere.
        token_ids, logprobs, topk_ids, topk_bits, exp: the source's rows, as in ``kernels.fuse_rows``.
        data to cut_tokens: ``Continuations``, taken apart.
        found: int32, masses: float64, filled from ``size`` on: target tokens, possibly several times, and their masses.

    Returns:
        Where the found ones end; the mass of all covers, by which the masses are to be divided; the mass of kept
        entries, with a target token or without; the mass beyond the kept entries.
    """
    total, certain, unknown = 0.0, 0.0, 0.0
    deepest = _deepest_cover(at, first, token_ids, starts)
    for cover in range(deepest + 1):
        row, weight = at - cover, 1.0
        for earlier in range(at - deepest, row):
            weight *= np.exp(logprobs[earlier])
        moved = 0.0
        if cover == 0 and cut == 0:
            piece = token_ids[at + 1] if share > 0.0 else -1
            size, kept, moved, is_kept = _take_all(
                row, weight, piece, share, topk_ids, topk_bits, exp, whole, found, masses, size
            )
            counted, own, rest = kept, 0.0, max(1.0 - kept, 0.0)
            if share > 0.0 and not is_kept:
                moved = share * min(np.exp(logprobs[row]), rest)
            estimate = rest
        else:
            low, high, length = _after_residual(
                at, cover, cut, token_ids, data, starts, order, longer, begun, cut_starts
            )  # fmt: skip
            if low >= high:
                continue
            following = token_ids[at + 1] if cover == 0 else -1
            size, kept, counted, moved, is_kept = _take_longer(
                row, weight, share, topk_ids, topk_bits, exp, rank, low, high, following,
                cut_starts, cut_tokens, length, found, masses, size,
            )  # fmt: skip
            own, rest = 0.0, max(1.0 - kept, 0.0)
            if following >= 0 and not is_kept:
                own = min(np.exp(logprobs[row]), rest)
                moved = own * share
                target = cut_tokens[cut_starts[following] + length]
                if target >= 0 and own > moved:
                    found[size], masses[size] = target, weight * (own - moved)
                    size += 1
            estimate = (rest - own) * counted / kept if kept > 0.0 else 0.0
        if moved > 0.0:
            found[size], masses[size] = label, weight * moved
            size += 1
        total += weight * (counted + own + estimate)
        certain += weight * (counted + own)
        unknown += weight * (rest - own)
    return size, total, certain, unknown


@njit
def _deepest_cover(at, first, token_ids, starts):
    """How many rows before ``at`` answer too: none before the passage or a token of no bytes."""
    deepest = 0
    while deepest + 1 < MOST_COVERS and at - deepest > first:
        token = token_ids[at - deepest]
        if starts[token + 1] == starts[token]:
            break
        deepest += 1
    return deepest


@njit
def _take_all(row, weight, piece, share, topk_ids, topk_bits, exp, whole, found, masses, size):
    """Take each entry of a row, weighted, ``piece`` less a share of its mass.

    Returns:
        Where the found ones end; the mass of all entries; the piece's mass that is not taken; whether it is kept.
    """
    kept, moved, is_kept = 0.0, 0.0, False
    for entry in range(topk_ids.shape[1]):
        token, mass = topk_ids[row, entry], exp[topk_bits[row, entry]]
        kept += mass
        if token == piece and token >= 0:
            moved, is_kept = mass * share, True
            mass -= moved
        if 0 <= token < whole.size and whole[token] >= 0 and mass > 0.0:
            found[size], masses[size] = whole[token], weight * mass
            size += 1
    return size, kept, moved, is_kept


@njit
def _take_longer(
    row, weight, share, topk_ids, topk_bits, exp, rank, low, high, following,
    cut_starts, cut_tokens, length, found, masses, size,
):  # fmt: skip
    """Take those entries of a row whose tokens have ranks from ``low`` to ``high``, cut by ``length`` bytes, weighted.

    ``following`` is taken less a share of its mass.

    Returns:
        Where the found ones end; the mass of all entries; of those with these ranks; the mass of ``following`` that is
        not taken; whether it is one of them.
    """
    kept, taken, moved, is_kept = 0.0, 0.0, 0.0, False
    for entry in range(topk_ids.shape[1]):
        token, mass = topk_ids[row, entry], exp[topk_bits[row, entry]]
        kept += mass
        if 0 <= token < rank.size and low <= rank[token] < high:
            taken += mass
            if token == following:
                moved, is_kept = mass * share, True
                mass -= moved
            target = cut_tokens[cut_starts[token] + length]
            if target >= 0 and mass > 0.0:
                found[size], masses[size] = target, weight * mass
                size += 1
    return size, kept, taken, moved, is_kept


@njit
def _after_residual(at, cover, cut, token_ids, data, starts, order, longer, begun, cut_starts):
    """The ranks of the tokens that begin with the residual of a cover and go on, and the residual's length."""
    if cover == 0:
        low, high = begun[cut_starts[token_ids[at + 1]] + cut]
        return low, high, cut
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
    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens,
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
                    first + match[row], first, cut[row], -1, 0.0, token_ids, logprobs, topk_ids, topk_bits, exp,
                    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens, found, masses, 0,
                )  # fmt: skip
                if certain <= least * (certain + unknown):
                    match[row], cut[row] = -1, 0
