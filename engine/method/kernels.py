"""The inner loops, in numba: arrays and scalars in, arrays out. Each has a slow twin in ``tests/oracles.py``.

Ragged inputs are flat values with row offsets ``[B+1]``. Per-source inputs are named tuples of N arrays each, not N
named tuples: numba counts references when a loop takes a tuple out of a tuple.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.method.byte_matching import rows_at_zero
from engine.method.compiled import njit
from engine.method.continuations import further_pieces
from engine.method.top_entries import add, choosing_room, take_masses, write_top

#: exp of every float16, indexed by its bits. numba has no float16 on CPUs, and a look-up is faster than exp.
with np.errstate(over="ignore", invalid="ignore"):
    EXP_OF_FLOAT16_BITS = np.exp(np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64))


class Labels(NamedTuple):
    """The target's rows: int64 [B+1]; int32 [sum T]; int32 [sum T], the label of each row, -1 for none."""

    offsets: np.ndarray
    end_bytes: np.ndarray
    next_tokens: np.ndarray


class Sources(NamedTuple):
    """The rows of N sources, in each field one array a source; see ``rows.SourceRows``.

    Log-probabilities of kept entries are here as their float16 bits, uint16 [sum S, K].
    """

    match: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]
    end_bytes: tuple[np.ndarray, ...]
    token_ids: tuple[np.ndarray, ...]
    token_logprobs: tuple[np.ndarray, ...]
    topk_ids: tuple[np.ndarray, ...]
    topk_bits: tuple[np.ndarray, ...]
    mapping: tuple[np.ndarray, ...]


class Method(NamedTuple):
    """The settings of a fusion.

    Attributes:
        vocabulary: V of the target.
        product: whether a label that the source splits gets the mass of its first piece times the probabilities of the
            others, taken from the first piece; and, for rows conditioned on bytes, whether the mass of the text's own
            next source token is dealt out by two tokens (``continuations._deal_out``).
        first_wins: the authors' arithmetic: of entries that meet the first stays, the rest is scaled to 1.
    """

    vocabulary: int
    product: bool
    first_wins: bool


class Fused(NamedTuple):
    """The fused rows: int32 [sum T, K] filled with -1; float32 [sum T, K] filled with 0; bool [sum T] of False."""

    ids: np.ndarray
    probs: np.ndarray
    is_fused: np.ndarray


class Kept(NamedTuple):
    """The kept entries of one source row, int32 [K] and uint16 [K], and the source's mapping."""

    token_ids: np.ndarray
    bits: np.ndarray
    mapping: np.ndarray


@njit
def match_end_bytes(target_ends, target_offsets, source_ends, source_offsets, begins_alike, match):
    """Two pointers over the end offsets of each passage.

    Args:
        target_ends: int32 [sum T]; source_ends: int32 [sum S]; both ascending within a passage.
        target_offsets, source_offsets: int64 [B+1].
        begins_alike: bool [B], whether rows at byte 0 may match; they need as many of them on both sides besides.
        match: int32 [sum T], filled with the source row, counted within the passage, or -1. Of rows with one end offset
            only the last takes part, on both sides: the ones before it are followed by a token of no bytes. A passage's
            last target row has no label and stays -1.
    """
    for passage in range(target_offsets.size - 1):
        target_end = target_offsets[passage + 1] - 1
        first, source, end = source_offsets[passage], source_offsets[passage], source_offsets[passage + 1]
        target_beginnings = rows_at_zero(target_ends, target_offsets[passage], target_end)
        alike = begins_alike[passage] and target_beginnings == rows_at_zero(source_ends, first, end)
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            match[row] = -1
            if row >= target_end:
                continue
            if row + 1 < target_end and target_ends[row + 1] == target_ends[row]:
                continue
            if target_ends[row] == 0 and not alike:
                continue
            while source < end and source_ends[source] < target_ends[row]:
                source += 1
            while source + 1 < end and source_ends[source + 1] == target_ends[row]:
                source += 1
            if source < end and source_ends[source] == target_ends[row]:
                match[row] = source - first


@njit
def nats_per_byte(source_ends, source_offsets, token_logprobs, num_bytes, first_byte, cross_entropy):
    """Cross-entropy of one source for each passage, over the bytes from ``first_byte`` on.

    Args:
        source_ends: int32 [sum S]; token_logprobs: float32 [sum S].
        num_bytes, first_byte: int32 [B].
        cross_entropy: float64 [B], filled; NaN where the source has not scored all of these bytes, or there are none.
    """
    for passage in range(source_offsets.size - 1):
        rows = source_offsets[passage], source_offsets[passage + 1]
        span = first_byte[passage], num_bytes[passage]
        length = span[1] - span[0]
        nats = _nats_within(source_ends, token_logprobs, rows, num_bytes[passage], span)
        cross_entropy[passage] = nats / length if length > 0 else np.nan


@njit
def label_nats(target_ends, target_offsets, source_ends, source_offsets, token_logprobs, num_bytes, match, nats):
    """The cost of each target row's label to one source: what its tokens cost over the label's bytes.

    Args:
        target_ends: int32 [sum T]; source_ends: int32 [sum S]; token_logprobs: float32 [sum S]; num_bytes: int32 [B].
        match: int32 [sum T], see ``match_end_bytes``: a label of no bytes (EOS) costs what that row gave to its token.
        nats: float64 [sum T], filled; NaN where the source has not scored all bytes of the label.
    """
    for passage in range(target_offsets.size - 1):
        first, end = source_offsets[passage], source_offsets[passage + 1]
        source = first
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            nats[row] = np.nan
            if row + 1 >= target_offsets[passage + 1]:
                continue
            begin, stop = target_ends[row], target_ends[row + 1]
            if begin == stop:
                if match[row] >= 0:
                    nats[row] = -token_logprobs[first + match[row]]
                continue
            while source < end:
                following, token_stop = _next_end(source_ends, source, end, num_bytes[passage])
                if token_stop > begin:
                    break
                source = following
            nats[row] = _nats_within(source_ends, token_logprobs, (source, end), num_bytes[passage], (begin, stop))


@njit
def _nats_within(source_ends, token_logprobs, rows, num_bytes, span):
    """What one source's tokens cost over the bytes of ``span``; NaN where it has not scored all of them.

    The nats of a token are spread evenly over its bytes. A token of no bytes adds its nats to those of the next token
    that has bytes; after the last byte (EOS) there is none, and it costs nothing.

    Args:
        rows: the source's first row to look at, and the passage's end.
    """
    row, end = rows
    begin, stop = span
    if row >= end or source_ends[row] > begin:
        return np.nan
    nats, covered = 0.0, begin
    while row < end and covered < stop:
        following, token_stop = _next_end(source_ends, row, end, num_bytes)
        length, shared = token_stop - source_ends[row], min(stop, token_stop) - max(begin, source_ends[row])
        if shared > 0:
            for token in range(row, following):
                nats -= token_logprobs[token] * shared / length
            covered = min(stop, token_stop)
        row = following
    return nats if covered == stop else np.nan


@njit
def _next_end(source_ends, row, end, num_bytes):
    """The first row after ``row`` with another end, and that end; after the last row the text's.

    The rows before it predict the tokens that take the source there: all but the last of these have no bytes.
    """
    following = row + 1
    while following < end and source_ends[following] == source_ends[row]:
        following += 1
    return following, source_ends[following] if following < end else num_bytes


@njit
def fuse_rows(weights, target, sources, method, exp, fused):
    """Fill ``fused`` with the top K entries of the weighted sum of the mapped source rows of each target row.

    Entries are in no order; of equal ones those with the lower ids are the top. Rounded log-probabilities may add up to
    a little more than 1; such a row is scaled down to 1.

    Args:
        weights: float64 [sum T, N], 0 for a source that takes no part; renormalised over the sources with a row.
        target: ``Labels``. sources: ``Sources``; a match of -2 teaches the label. method: ``Method``.
        exp: ``EXP_OF_FLOAT16_BITS``.
        fused: ``Fused``.
    """
    # Named tuples are taken apart before the loops, here and below: numba counts references at each access to one.
    match, offsets, mapping = sources.match, sources.offsets, sources.mapping
    topk_ids, topk_bits = sources.topk_ids, sources.topk_bits
    ends, tokens, logprobs = sources.end_bytes, sources.token_ids, sources.token_logprobs
    target_offsets, target_ends, next_tokens = target.offsets, target.end_bytes, target.next_tokens
    ids, probs, is_fused = fused.ids, fused.probs, fused.is_fused
    accumulator, own = np.zeros(method.vocabulary), np.zeros(method.vocabulary)
    touched = np.empty(len(match) * (ids.shape[1] + 1), np.int64)
    room = choosing_room(touched.size)
    for passage in range(target_offsets.size - 1):
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            total = 0.0
            for n in range(len(match)):
                if match[n][row] != -1:
                    total += weights[row, n]
            if total <= 0.0 or next_tokens[row] < 0:
                continue
            count, label = 0, next_tokens[row]
            for n in range(len(match)):
                weight, at = weights[row, n] / total, match[n][row]
                if weight <= 0.0 or at == -1:
                    continue
                if at < 0:
                    count = add(label, weight, accumulator, touched, count)
                    continue
                at += offsets[n][passage]
                kept = Kept(topk_ids[n][at], topk_bits[n][at], mapping[n])
                if method.first_wins:
                    count = _add_first(kept, exp, weight, own, accumulator, touched, count)
                    continue
                share, piece, said = 0.0, -1, 0.0
                if method.product and offsets[n][passage + 1] > at + 1:
                    span = target_ends[row], target_ends[row + 1]
                    share = further_pieces(ends[n], logprobs[n], at, offsets[n][passage + 1], span)
                    piece, said = tokens[n][at + 1], np.exp(logprobs[n][at])
                count = _add_all(kept, exp, weight, piece, share, said, label, accumulator, touched, count)
            is_fused[row] = count > 0
            mass = take_masses(accumulator, touched, count, room[0])
            write_top(touched, count, room, 1.0 / max(mass, 1.0), ids, probs, row)


@njit
def _add_all(kept, exp, weight, piece, share, said, label, accumulator, touched, count):
    """Add one source row; of its token ``piece`` the label gets a share, and of ``said`` if it is not kept."""
    token_ids, bits, mapping = kept.token_ids, kept.bits, kept.mapping
    mass, moved, is_kept = 0.0, 0.0, False
    for entry in range(token_ids.size):
        token, prob = token_ids[entry], exp[bits[entry]]
        mass += prob
        if token == piece and token >= 0:
            moved, is_kept = prob * share, True
            prob -= moved
        if 0 <= token < mapping.size and mapping[token] >= 0:
            count = add(mapping[token], weight * prob, accumulator, touched, count)
    if share > 0.0 and not is_kept:
        moved = share * min(said, max(1.0 - mass, 0.0))
    return add(label, weight * moved, accumulator, touched, count)


@njit
def _add_first(kept, exp, weight, own, accumulator, touched, count):
    """Add one source row as the authors do: of entries that meet only the first, all scaled to 1.

    Args:
        own: float64 [V] of 0, left so.
    """
    token_ids, bits, mapping = kept.token_ids, kept.bits, kept.mapping
    mass = 0.0
    for entry in range(token_ids.size):
        token = token_ids[entry]
        if 0 <= token < mapping.size and mapping[token] >= 0 and own[mapping[token]] == 0.0:
            own[mapping[token]] = exp[bits[entry]]
            mass += own[mapping[token]]
    for entry in range(token_ids.size):
        token = token_ids[entry]
        if 0 <= token < mapping.size and mapping[token] >= 0 and own[mapping[token]] > 0.0:
            count = add(mapping[token], weight * own[mapping[token]] / mass, accumulator, touched, count)
            own[mapping[token]] = 0.0
    return count
