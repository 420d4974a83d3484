"""The inner loops of fusion for source rows that are conditioned on the bytes so far, in numba.

Their slow twin is ``tests/oracles.py``.
"""

from __future__ import annotations

import numpy as np

from engine.method.canonical import (
    POSSIBLE,
    UNKNOWN_PAIR,
    merges_allow,
    pieces_allow,
    place_of,
    remember,
    remembered,
)
from engine.method.compiled import njit
from engine.method.continuations import continue_row, further_pieces, most_found
from engine.method.top_entries import add, choosing_room, take_masses, write_top

#: Rows of a passage that are fused at once: what sources say about them stays in the core's cache.
ROWS = 64


@njit
def fuse_byte_rows(weights, target, token_ids, sources, cut, tables, pairs, method, exp, fused):
    """As ``kernels.fuse_rows``, for source rows that are conditioned on the bytes so far (``continuations.py``).

    Args:
        token_ids: int32 [sum T], the target's tokens.
        sources: ``Sources``, whose mapping is not used.
        cut: int32 [sum T] of each source, see ``byte_matching.match_bytes``.
        tables: ``Continuations`` of N sources, in each field one array a source.
        pairs: ``canonical.Pairs``. Of the fused row, entries that cannot follow the target's token are left out, and
            what is left is scaled to one, the rest mass keeping its share. The label, which does follow, stays.
        method: ``kernels.Method``, without ``first_wins``.
    """
    tokens, splits, of_merges, of_pieces, places, answers = pairs
    token_ends, lasts, firsts, merges, partners = of_merges
    letters, spans, children, piece_scores, unknown, is_greedy = of_pieces
    offsets, target_ends, next_tokens = target.offsets, target.end_bytes, target.next_tokens
    ids, probs, is_fused = fused.ids, fused.probs, fused.is_fused
    num_sources, most = len(sources.match), most_found(ids.shape[1])
    found, masses = np.empty(ROWS * num_sources * most, np.int32), np.empty(ROWS * num_sources * most)
    ends, scales = np.zeros((num_sources, ROWS + 1), np.int64), np.zeros((num_sources, ROWS))
    totals = np.empty(ROWS)
    accumulator, touched = np.zeros(method.vocabulary), np.empty(num_sources * most, np.int64)
    follows = np.empty(touched.size, np.uint8)
    room = choosing_room(touched.size)
    for passage in range(offsets.size - 1):
        for begin in range(offsets[passage], offsets[passage + 1], ROWS):
            length = min(ROWS, offsets[passage + 1] - begin)
            totals[:] = 0.0
            for n in range(num_sources):
                _add_weights(begin, length, weights, n, sources.match[n], totals)
            # One source after the other: numba takes long to look up arrays in tuples.
            size = 0
            for n in range(num_sources):
                size = _continue_rows(
                    begin, length, target_ends, next_tokens, method.product, weights, n, totals,
                    sources.match[n], cut[n], sources.offsets[n][passage], sources.offsets[n][passage + 1],
                    sources.end_bytes[n], sources.token_ids[n], sources.token_logprobs[n], sources.topk_ids[n],
                    sources.topk_bits[n], exp,
                    tables.data[n], tables.starts[n], tables.order[n], tables.rank[n], tables.longer[n],
                    tables.begun[n], tables.whole[n], tables.cut_starts[n], tables.cut_tokens[n],
                    tables.first_bytes[n], tables.nodes[n], tables.children[n], tables.trie_tokens[n],
                    tables.bytes_after[n],
                    found, masses, size, ends, scales,
                )  # fmt: skip
            for place in range(length):
                row, count = begin + place, 0
                for n in range(num_sources):
                    for entry in range(ends[n, place], ends[n, place + 1]):
                        count = add(found[entry], masses[entry] * scales[n, place], accumulator, touched, count)
                if not count:
                    continue
                if tokens.size:
                    before = token_ids[row]
                    if token_ends.size:
                        _ask_merges(
                            before, touched, count, follows, places, answers,
                            tokens, splits, token_ends, lasts, firsts, merges, partners,
                        )  # fmt: skip
                    else:
                        _ask_pieces(
                            before, touched, count, follows, places, answers,
                            tokens, splits, letters, spans, children, piece_scores, unknown, is_greedy,
                        )  # fmt: skip
                    count, mass, whole = _take_possible(next_tokens[row], accumulator, touched, count, room[0], follows)
                else:
                    mass, whole = take_masses(accumulator, touched, count, room[0]), 1.0
                is_fused[row] = count > 0
                if count:
                    write_top(touched, count, room, 1.0 / max(mass, whole), ids, probs, row)


@njit
def _add_weights(begin, length, weights, n, match, totals):
    for place in range(length):
        if match[begin + place] >= 0:
            totals[place] += weights[begin + place, n]


@njit
def _continue_rows(
    begin, length, target_ends, next_tokens, product, weights, n, totals, match, cut, first, end,
    source_ends, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens,
    first_bytes, nodes, children, trie_tokens, bytes_after, found, masses, size, ends, scales,
):  # fmt: skip
    """What one source says about ``length`` target rows of one passage, after the first ``size`` entries.

    Args:
        ends: int64 [N, ROWS+1], filled: where the entries of each row begin, and the last ones end.
        scales: float64 [N, ROWS], filled: by what the masses of each row's entries are to be multiplied.

    Returns:
        Where all entries end.
    """
    ends[n, 0] = size
    for place in range(length):
        row = begin + place
        at, weight = match[row], weights[row, n]
        if at >= 0 and weight > 0.0 and next_tokens[row] >= 0:
            goes_on = (np.int64(-1), 0.0, False)
            if product:
                span = target_ends[row], target_ends[row + 1]
                share = further_pieces(source_ends, logprobs, first + at, end, span)
                goes_on = (np.int64(next_tokens[row]), share, _is_within(source_ends, first + at, end, span))
            size, total, _, _ = continue_row(
                first + at, first, end, cut[row], goes_on, source_ends, token_ids, logprobs, topk_ids, topk_bits, exp,
                data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens,
                first_bytes, nodes, children, trie_tokens, bytes_after, found, masses, size,
            )  # fmt: skip
            scales[n, place] = weight / totals[place] / total if total > 0.0 else 0.0
        ends[n, place + 1] = size
    return size


@njit
def _is_within(ends, row, end, span):
    """Whether the bytes of a span are some, and end within the source's next two tokens after a row."""
    begin, stop = span
    return stop > begin and row + 2 < end and ends[row + 2] >= stop


@njit
def _ask_merges(
    before, touched, count, follows, places, answers, tokens, splits, ends, lasts, firsts, merges, partners
):
    """Fill ``follows`` with the answers for ``touched`` tokens after ``before``, remembered ones if there are."""
    row = place_of(before, places)
    for entry in range(count):
        token = touched[entry]
        column = place_of(token, places)
        answer = remembered(answers, row, column)
        if answer == UNKNOWN_PAIR:
            answer = merges_allow(before, token, tokens, splits, ends, lasts, firsts, merges, partners)
            remember(answer, answers, row, column)
        follows[entry] = answer


@njit
def _ask_pieces(
    before, touched, count, follows, places, answers,
    tokens, splits, letters, spans, children, scores, unknown, is_greedy,
):  # fmt: skip
    """As ``_ask_merges``, of a WordPiece or Unigram model."""
    row = place_of(before, places)
    for entry in range(count):
        token = touched[entry]
        column = place_of(token, places)
        answer = remembered(answers, row, column)
        if answer == UNKNOWN_PAIR:
            answer = pieces_allow(before, token, tokens, splits, letters, spans, children, scores, unknown, is_greedy)
            remember(answer, answers, row, column)
        follows[entry] = answer


@njit
def _take_possible(label, accumulator, touched, count, values, follows):
    """As ``take_masses``, of the tokens that can follow; the label does.

    Returns:
        How many they are; their mass; and the share of all mass that they have.
    """
    kept, dropped, place = 0.0, 0.0, 0
    for entry in range(count):
        token = touched[entry]
        mass = accumulator[token]
        accumulator[token] = 0.0
        is_possible = (follows[entry] == POSSIBLE) | (token == label)
        touched[place], values[place] = token, mass  # written over next if it cannot follow
        place += is_possible
        kept += mass if is_possible else 0.0
        dropped += 0.0 if is_possible else mass
    return place, kept, kept / (kept + dropped) if kept > 0.0 else 1.0
