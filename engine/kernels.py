"""The inner loops, in numba: arrays and scalars in, arrays out. Each has a slow twin in ``tests/oracles.py``.

Ragged inputs are flat values with row offsets ``[B+1]``; per-source inputs are tuples of N arrays of one type.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: exp of every float16, indexed by its bits. numba has no float16 on CPUs, and a look-up is faster than exp.
with np.errstate(over="ignore", invalid="ignore"):
    EXP_OF_FLOAT16_BITS = np.exp(np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64))


@njit(cache=True, nogil=True)
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
        target_beginnings = _rows_at_zero(target_ends, target_offsets[passage], target_end)
        alike = begins_alike[passage] and target_beginnings == _rows_at_zero(source_ends, first, end)
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


@njit(cache=True, nogil=True)
def _rows_at_zero(ends, start, end):
    count = 0
    while start + count < end and ends[start + count] == 0:
        count += 1
    return count


@njit(cache=True, nogil=True)
def nats_per_byte(source_ends, source_offsets, token_logprobs, num_bytes, first_byte, cross_entropy):
    """Cross-entropy of one source for each passage, over the bytes from ``first_byte`` on.

    Args:
        source_ends: int32 [sum S]; token_logprobs: float32 [sum S].
        num_bytes, first_byte: int32 [B].
        cross_entropy: float64 [B], filled; NaN where the source has scored no token behind ``first_byte``.
    """
    for passage in range(source_offsets.size - 1):
        nats = 0.0
        start = -1
        for row in range(source_offsets[passage], source_offsets[passage + 1]):
            consumed = source_ends[row]
            if consumed < first_byte[passage] or consumed >= num_bytes[passage]:
                continue  # before the common beginning, or followed by EOS
            if start < 0:
                start = consumed
            nats -= token_logprobs[row]
        cross_entropy[passage] = nats / (num_bytes[passage] - start) if start >= 0 else np.nan


@njit(cache=True, nogil=True)
def fuse_rows(
    weights, target_offsets, matches, source_offsets, topk_ids, topk_bits, mappings, exp, vocabulary, ids, probs, fused
):
    """Weighted sum of the mapped source rows of each target row; the likeliest K entries of it.

    Args:
        weights: float64 [B,N], 0 for a source that takes no part; renormalised over the sources with a row.
        target_offsets: int64 [B+1]. matches: N x int32 [sum T], see ``match_end_bytes``.
        source_offsets: N x int64 [B+1]. topk_ids: N x int32 [sum S, K]. topk_bits: N x uint16 [sum S, K], the float16
            bits of log-probabilities. mappings: N x int32 [V of the source], target ids or -1.
        exp: ``EXP_OF_FLOAT16_BITS``. vocabulary: V of the target.
        ids: int32 [sum T, K] filled with -1; probs: float32 [sum T, K] filled with 0; fused: bool [sum T] of False.
            Written: entries in descending order of probability, ties by id. Rounded log-probabilities may add up to a
            little more than 1; such a row is scaled down to 1.
    """
    top_k = ids.shape[1]
    num_sources = len(topk_ids)
    accumulator = np.zeros(vocabulary)
    touched = np.empty(num_sources * top_k, np.int64)
    for passage in range(target_offsets.size - 1):
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            total = 0.0
            for source in range(num_sources):
                if matches[source][row] >= 0:
                    total += weights[passage, source]
            if total <= 0.0:
                continue
            count, mass = 0, 0.0
            for source in range(num_sources):
                weight = weights[passage, source] / total
                if weight <= 0.0 or matches[source][row] < 0:
                    continue
                source_row = source_offsets[source][passage] + matches[source][row]
                mapping = mappings[source]
                for entry in range(top_k):
                    token = topk_ids[source][source_row, entry]
                    if token < 0 or token >= mapping.size or mapping[token] < 0:
                        continue
                    prob = weight * exp[topk_bits[source][source_row, entry]]
                    if prob <= 0.0:
                        continue
                    target = mapping[token]
                    if accumulator[target] == 0.0:
                        touched[count] = target
                        count += 1
                    accumulator[target] += prob
                    mass += prob
            sort_by_probability(touched, count, accumulator)
            for entry in range(min(count, top_k)):
                ids[row, entry] = touched[entry]
                probs[row, entry] = accumulator[touched[entry]] / max(mass, 1.0)
            for entry in range(count):
                accumulator[touched[entry]] = 0.0
            fused[row] = count > 0


@njit(cache=True, nogil=True)
def sort_by_probability(tokens, count, probability):
    """Sort ``tokens[:count]`` by descending probability, ties by ascending id.

    Shell sort with Ciura's gaps: nearly free for the rows of one source, which are sorted already, and far from
    quadratic for those of several, which are not.
    """
    for gap in (301, 132, 57, 23, 10, 4, 1):
        for index in range(gap, count):
            token = tokens[index]
            place = index
            while place >= gap and _comes_first(token, tokens[place - gap], probability):
                tokens[place] = tokens[place - gap]
                place -= gap
            tokens[place] = token


@njit(cache=True, nogil=True)
def _comes_first(token, other, probability):
    if probability[token] == probability[other]:
        return token < other
    return probability[token] > probability[other]
