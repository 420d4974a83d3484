"""The inner loops, in numba: arrays and scalars in, arrays out. Each has a slow twin in ``tests/oracles.py``.

Ragged inputs are flat values with row offsets ``[B+1]``. Per-source inputs are named tuples of N arrays each, not N
named tuples: numba counts references when a loop takes a tuple out of a tuple.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.method.canonical import MOST_REMEMBERED, POSSIBLE, UNKNOWN_PAIR, may_follow
from engine.method.compiled import njit
from engine.method.continuations import MOST_COVERS, continue_row, rows_at_zero

#: exp of every float16, indexed by its bits. numba has no float16 on CPUs, and a look-up is faster than exp.
with np.errstate(over="ignore", invalid="ignore"):
    EXP_OF_FLOAT16_BITS = np.exp(np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64))


#: Masses from 1 down to 2**-32 are dealt to buckets of a quarter of a factor of two.
BUCKETS, _BUCKET_SHIFT = 128, 50

#: So few entries are sorted at once.
FEW = 32
_BITS_OF_ONE = int(np.float64(1.0).view(np.int64)) >> _BUCKET_SHIFT


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
        product: whether a label that the source splits gets its pieces' product, taken from the first piece.
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

    Entries are in descending order of probability, ties by id. Rounded log-probabilities may add up to a little more
    than 1; such a row is scaled down to 1.

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
    room = _room(touched.size)
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
                    count = _add(label, weight, accumulator, touched, count)
                    continue
                at += offsets[n][passage]
                kept = Kept(topk_ids[n][at], topk_bits[n][at], mapping[n])
                if method.first_wins:
                    count = _add_first(kept, exp, weight, own, accumulator, touched, count)
                    continue
                path, piece = 0.0, -1
                if method.product and offsets[n][passage + 1] > at + 1:
                    span = target_ends[row], target_ends[row + 1]
                    path = _path_probability(ends[n], logprobs[n], at, offsets[n][passage + 1], span)
                    piece = tokens[n][at + 1]
                    count = _add(label, weight * path, accumulator, touched, count)
                count = _add_all(kept, exp, weight, piece, path, accumulator, touched, count)
            is_fused[row] = count > 0
            _write_top(accumulator, touched, count, room, 1.0, ids, probs, row)


@njit
def fuse_byte_rows(weights, target, token_ids, sources, cut, tables, pairs, vocabulary, exp, fused):
    """As ``fuse_rows``, for source rows that are conditioned on the bytes so far (``engine.method.continuations``).

    Args:
        token_ids: int32 [sum T], the target's tokens.
        sources: ``Sources``, whose mapping is not used.
        cut: int32 [sum T] of each source, see ``continuations.match_bytes``.
        tables: ``Continuations`` of N sources, in each field one array a source.
        pairs: ``canonical.Pairs``. Of the fused row, entries that cannot follow the target's token are left out, and
            what is left is scaled to one, the rest mass keeping its share. The label, which does follow, stays.
        vocabulary: V of the target.
    """
    tokens, splits, lasts, firsts, merges, partners, places, answers = pairs
    offsets, next_tokens = target.offsets, target.next_tokens
    ids, probs, is_fused = fused.ids, fused.probs, fused.is_fused
    num_sources, most = len(sources.match), MOST_COVERS * (ids.shape[1] + 1)
    longest = 0
    for passage in range(offsets.size - 1):
        longest = max(longest, offsets[passage + 1] - offsets[passage])
    found, masses = np.empty(longest * num_sources * most, np.int32), np.empty(longest * num_sources * most)
    ends, totals = np.zeros((num_sources + 1, longest), np.int64), np.empty(longest)
    accumulator, touched = np.zeros(vocabulary), np.empty(num_sources * most, np.int64)
    room = _room(touched.size)
    for passage in range(offsets.size - 1):
        begin, length = offsets[passage], offsets[passage + 1] - offsets[passage]
        totals[:] = 0.0
        for n in range(num_sources):
            _add_weights(begin, length, weights, n, sources.match[n], totals)
        # One source after the other: numba takes long to look up arrays in tuples.
        size = 0
        for n in range(num_sources):
            size = _continue_passage(
                begin, length, next_tokens, weights, n, totals, sources.match[n], cut[n], sources.offsets[n][passage],
                sources.token_ids[n], sources.token_logprobs[n], sources.topk_ids[n], sources.topk_bits[n], exp,
                tables.data[n], tables.starts[n], tables.order[n], tables.rank[n], tables.longer[n],
                tables.cut_starts[n], tables.cut_tokens[n], found, masses, size, ends,
            )  # fmt: skip
        for place in range(length):
            row, count = begin + place, 0
            for n in range(num_sources):
                first = ends[n, place - 1] if place else (ends[n - 1, length - 1] if n else 0)
                for entry in range(first, ends[n, place]):
                    count = _add(found[entry], masses[entry], accumulator, touched, count)
            if not count:
                continue
            left = 1.0
            if tokens.size:
                count, left = _drop_impossible(
                    token_ids[row], next_tokens[row], accumulator, touched, count,
                    tokens, splits, lasts, firsts, merges, partners, places, answers,
                )  # fmt: skip
            is_fused[row] = count > 0
            _write_top(accumulator, touched, count, room, left, ids, probs, row)


@njit
def _add_weights(begin, length, weights, n, match, totals):
    for place in range(length):
        if match[begin + place] >= 0:
            totals[place] += weights[begin + place, n]


@njit
def _continue_passage(
    begin, length, next_tokens, weights, n, totals, match, cut, first, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, cut_starts, cut_tokens, found, masses, size, ends,
):  # fmt: skip
    """What one source says about the target rows of one passage, weighted, after the first ``size`` entries.

    Args:
        ends: int64 [N, T], filled: where the entries of each row end.

    Returns:
        Where all entries end.
    """
    for place in range(length):
        row = begin + place
        at, weight = match[row], weights[row, n]
        if at >= 0 and weight > 0.0 and next_tokens[row] >= 0:
            count, total, _, _ = continue_row(
                first + at, first, cut[row], token_ids, logprobs, topk_ids, topk_bits, exp,
                data, starts, order, rank, longer, cut_starts, cut_tokens, found, masses, size,
            )  # fmt: skip
            scale = weight / totals[place] / total if total > 0.0 else 0.0
            for entry in range(size, size + count):
                masses[entry] *= scale
            size += count
        ends[n, place] = size
    return size


@njit
def _drop_impossible(
    before, label, accumulator, touched, count, tokens, splits, lasts, firsts, merges, partners, places, answers
):  # fmt: skip
    """Take out the tokens that cannot follow ``before``; how many are left, and the share of the mass."""
    kept, dropped, place = 0.0, 0.0, 0
    row = _place(before, places)
    for entry in range(count):
        token = touched[entry]
        mass = accumulator[token]
        column = _place(token, places)
        answer = answers[row, column] if row >= 0 and column >= 0 else UNKNOWN_PAIR
        if answer == UNKNOWN_PAIR:
            answer = may_follow(before, token, tokens, splits, lasts, firsts, merges, partners)
            if row >= 0 and column >= 0:
                answers[row, column] = answer
        if answer == POSSIBLE or token == label:
            touched[place] = token
            place += 1
            kept += mass
        else:
            accumulator[token] = 0.0
            dropped += mass
    return place, kept / (kept + dropped) if kept > 0.0 else 1.0


@njit
def _place(token, places):
    """The place of a token in the memory of answers, the next free one if it has none; -1 if all are taken."""
    place = places[token]
    if place < 0 and places[-1] < MOST_REMEMBERED:
        place = places[token] = places[-1]
        places[-1] += 1
    return place


@njit
def _room(size):
    """Room to sort one row's tokens.

    float64 [n], their masses, and these as int64; int64 [n], their buckets; int64 [BUCKETS+1], where buckets begin;
    int64 [n] and float64 [n], tokens and masses in order.
    """
    values = np.empty(size)
    places = np.empty(size, np.int64), np.empty(BUCKETS + 1, np.int64), np.empty(size, np.int64)
    return values, values.view(np.int64), *places, np.empty(size)


@njit
def _add_all(kept, exp, weight, piece, path, accumulator, touched, count):
    """Add one source row; ``path`` is taken from the source's token ``piece``, which begins it."""
    token_ids, bits, mapping = kept.token_ids, kept.bits, kept.mapping
    for entry in range(token_ids.size):
        token = token_ids[entry]
        if token < 0 or token >= mapping.size or mapping[token] < 0:
            continue
        prob = exp[bits[entry]]
        if token == piece:
            prob = max(prob - path, 0.0)
        count = _add(mapping[token], weight * prob, accumulator, touched, count)
    return count


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
            count = _add(mapping[token], weight * own[mapping[token]] / mass, accumulator, touched, count)
            own[mapping[token]] = 0.0
    return count


@njit
def _add(token, mass, accumulator, touched, count):
    """Add ``mass`` to a target token; the new number of tokens with mass."""
    if mass <= 0.0:
        return count
    if accumulator[token] == 0.0:
        touched[count] = token
        count += 1
    accumulator[token] += mass
    return count


@njit
def _path_probability(ends, logprobs, row, end, span):
    """Probability of the source's own tokens over the bytes of ``span``; 0 if they are one token or none."""
    begin, stop = span
    logprob, last = logprobs[row], row + 1
    while last < end and ends[last] < stop:
        logprob += logprobs[last]
        last += 1
    is_split = last > row + 1 and last < end and ends[last] == stop and stop > begin
    return np.exp(logprob) if is_split else 0.0


@njit
def _write_top(accumulator, touched, count, room, whole, ids, probs, row):
    """Write the top entries of one row of [T, K] by descending probability, ties by id; clear the accumulator.

    Where much is out of order, entries are dealt to buckets by the exponent of their mass and two more bits first, so
    that only those of one bucket are left to sort.

    Args:
        touched: int64, ``count`` target tokens with mass.
        room: ``_room`` for as many. whole: the mass that becomes 1, unless the tokens have more.
    """
    values = room[0]
    top_k = ids.shape[1]
    mass, descents = 0.0, 0
    for entry in range(count):
        value = accumulator[touched[entry]]
        accumulator[touched[entry]] = 0.0
        values[entry] = value
        mass += value
        if entry and value > values[entry - 1]:
            descents += 1
    scale = 1.0 / max(mass, whole)
    if count <= FEW or descents <= FEW // 4:  # sources' rows are sorted, and of one of them little is out of order
        sort_by_probability(touched, values, 0, count)
        for entry in range(min(count, top_k)):
            ids[row, entry], probs[row, entry] = touched[entry], values[entry] * scale
        return
    _, bits, buckets, begins, tokens, sorted_values = room
    end = _deal(touched, values, bits, count, buckets, begins, tokens, sorted_values, top_k)
    sort_by_probability(tokens, sorted_values, 0, end)
    for entry in range(min(end, top_k)):
        ids[row, entry], probs[row, entry] = tokens[entry], sorted_values[entry] * scale


@njit
def _deal(touched, values, bits, count, buckets, begins, tokens, sorted_values, top_k):
    """Deal tokens to buckets, those of the highest masses first, until there are K; how many were dealt."""
    begins[:] = 0
    for entry in range(count):
        bucket = min(max(_BITS_OF_ONE - (bits[entry] >> _BUCKET_SHIFT), 0), BUCKETS - 1)
        buckets[entry] = bucket
        begins[bucket + 1] += 1
    for bucket in range(BUCKETS):
        begins[bucket + 1] += begins[bucket]
    last = 0
    while last < BUCKETS and begins[last] < top_k:
        last += 1
    end = begins[last]
    for entry in range(count):
        place = begins[buckets[entry]]
        if place < end:
            tokens[place], sorted_values[place] = touched[entry], values[entry]
            begins[buckets[entry]] = place + 1
    return end


@njit
def sort_by_probability(tokens, values, start, end):
    """Sort ``tokens[start:end]`` and their ``values`` by descending value, ties by ascending token, by insertion."""
    for index in range(start + 1, end):
        token, value = tokens[index], values[index]
        place = index
        while place > start and (
            value > values[place - 1] or (value == values[place - 1] and token < tokens[place - 1])
        ):
            tokens[place], values[place] = tokens[place - 1], values[place - 1]
            place -= 1
        tokens[place], values[place] = token, value
