"""What a source says about the bytes that come next, wherever it stands: rows conditioned on bytes.

A target row asks for the distribution of what follows the bytes so far. Where the source has a row at this very byte,
that row answers for the case that its last token has ended; its row before answers for the case that the text goes on
inside a longer token. Where the source has no row here, because the target stands inside a source token, its row before
answers alone. To answer, a row is conditioned on the *residual*, the bytes between it and the target: of its entries
those count that begin with the residual and go on, cut by it.

The source may say in two tokens what the target says in one. Of the text's own next source token the row after it tells
how the text goes on, so its mass is dealt out by two tokens: to the longest target token that begins both. It is not
where this token begins as the source's does and the source has it too: the source would have said it in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit
from engine.method.token_trie import NO_NODE, SHARED, TokenTrie, find_nodes, has_byte, longest_token

#: Rows of a source that answer together: the one at the target's byte and the ones before it.
MOST_COVERS = 2

#: Probability that a source's token has at least on the way to a row, so that what it says there is not lost.
LEAST_PATH = 1e-200


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
        first_bytes: uint8 [V], the first byte of each token, 0 of one without bytes.
        nodes: int32, with the places of ``cut_tokens`` the node of what is left in the target's ``TokenTrie``,
            ``NO_NODE`` where no target token goes on with it, of a whole token none that the source lacks.
        children, trie_tokens, bytes_after: the target's ``TokenTrie``.
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
    first_bytes: np.ndarray
    nodes: np.ndarray
    children: np.ndarray
    trie_tokens: np.ndarray
    bytes_after: np.ndarray


def build_continuations(
    token_bytes: Sequence[bytes | None], mapping: np.ndarray, cuts: np.ndarray, trie: TokenTrie
) -> Continuations:
    """The tables of one source.

    Args:
        token_bytes: the bytes of each token, None for one that has none.
        mapping: int32 [V], the target token of a whole token.
        cuts: ``vocabulary.build_cuts``.
        trie: of the target's tokens that may stand for two of the source; none of them in an empty one.
    """
    data, starts, order, rank = token_order(token_bytes)
    cut_starts = np.cumsum([0, *np.maximum(np.diff(starts), 1)], dtype=np.int64)
    longer, begun = np.zeros((len(starts) - 1, 2), np.int32), np.zeros((cut_starts[-1], 2), np.int32)
    find_ranges(data, starts, order, cut_starts, longer, begun)
    cut_tokens = cuts.copy()
    cut_tokens[cut_starts[:-1]] = mapping
    nodes = np.full(cut_starts[-1], NO_NODE, np.int32)
    find_nodes(data, starts, cut_starts, trie.children, trie.bytes_after, trie.is_lacked, nodes)
    first_bytes = np.fromiter((piece[0] if piece else 0 for piece in token_bytes), np.uint8, len(token_bytes))
    return Continuations(
        data, starts, order, rank, longer, begun, mapping, cut_starts, cut_tokens, first_bytes, nodes,
        trie.children, trie.tokens, trie.bytes_after,
    )  # fmt: skip


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
def most_found(top_k):
    """The most tokens that one source can find for one row: all entries of its covers, and of the row after them."""
    return (MOST_COVERS + 1) * (top_k + 1)


@njit
def continue_row(
    at, first, end, cut, goes_on, ends, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens,
    first_bytes, nodes, children, trie_tokens, bytes_after, found, masses, size,
):  # fmt: skip
    """What one source says about the bytes after a target row, as target tokens.

    Each cover is a source row and the bytes since, its residual. It counts by the probability of the source's own
    tokens up to it, and of the entries that begin with its residual and go on. Of the mass beyond the kept entries as
    large a share is taken to do so as of the kept ones; only of the text's own next token the probability is known.

    Args:
        at, cut: the source row, and what ``byte_matching.match_bytes`` found to cut. first, end: the first row of its
            passage, and the row after the last.
        goes_on: (label, share, within), how the text goes on: the next target token; the share that it gets of the
            mass of the source's next token, where the source splits it, 0 elsewhere; and whether it ends within the
            source's next two tokens. With a label of -1 nothing is dealt out by two tokens.
        ends, token_ids, logprobs, topk_ids, topk_bits, exp: the source's rows, as in ``kernels.fuse_rows``.
        data to bytes_after: ``Continuations``, taken apart.
        found: int32, masses: float64, filled from ``size`` on: target tokens, possibly several times, and their masses.

    Returns:
        Where the found ones end; the mass of all covers, by which the masses are to be divided; the mass of kept
        entries, with a target token or without; the mass beyond the kept entries.
    """
    total, certain, unknown = 0.0, 0.0, 0.0
    label, share, _ = goes_on
    deepest = _deepest_cover(at, first, end, ends, token_ids, starts)
    for cover in range(deepest + 1):
        row, weight = at - cover, 1.0
        for earlier in range(at - deepest, row):
            weight *= max(np.exp(np.float64(logprobs[earlier])), LEAST_PATH)
        following = token_ids[at + 1] if cover == 0 and at + 1 < end else -1
        own = 0.0
        if cover == 0 and cut == 0:
            length = 0
            size, kept, of_following = _take_all(
                row, weight, following, topk_ids, topk_bits, exp, whole, found, masses, size
            )
            counted, rest = kept, max(1.0 - kept, 0.0)
            if share > 0.0 and of_following == 0.0:
                found[size], masses[size] = label, weight * share * min(np.exp(np.float64(logprobs[row])), rest)
                size += 1
            estimate = rest
        else:
            low, high, length = _after_residual(
                at, cover, cut, token_ids, data, starts, order, longer, begun, cut_starts
            )  # fmt: skip
            if low >= high:
                continue
            size, kept, counted, of_following = _take_longer(
                row, weight, topk_ids, topk_bits, exp, rank, low, high, following,
                cut_starts, cut_tokens, length, found, masses, size,
            )  # fmt: skip
            counted, rest = counted + of_following, max(1.0 - kept, 0.0)
            if following >= 0 and of_following == 0.0:
                of_following = own = min(np.exp(np.float64(logprobs[row])), rest)
            estimate = (rest - own) * counted / kept if kept > 0.0 else 0.0
        if of_following > 0.0:
            size = _deal_out(
                weight * of_following, cut_starts[following] + length, length > 0, at + 1, end, goes_on,
                token_ids, topk_ids, topk_bits, exp, data, starts, cut_tokens,
                first_bytes, nodes, children, trie_tokens, bytes_after, found, masses, size,
            )  # fmt: skip
        total += weight * (counted + own + estimate)
        certain += weight * (counted + own)
        unknown += weight * (rest - own)
    return size, total, certain, unknown


@njit
def _deal_out(
    mass, place, is_cut, row, end, goes_on, token_ids, topk_ids, topk_bits, exp,
    data, starts, cut_tokens, first_bytes, nodes, children, trie_tokens, bytes_after, found, masses, size,
):  # fmt: skip
    """Deal out the mass of the text's own next source token by what the source says after it.

    The label gets its share. If it ends within two source tokens, it gets what is left of the second one's mass too: on
    this path the target has written the label. Other tokens after the first one give their mass to the longest target
    token that begins both, unless the source has it too and would have said it in one. What is left stays with the
    first one's target token.

    Args:
        place: of what is left of the first token, in ``cut_tokens`` and ``nodes``. is_cut: whether that is not all of
            it. row: the source row after it.

    Returns:
        Where the found ones end.
    """
    label, share, within = goes_on
    left, of_label = mass, mass * share
    if of_label > 0.0:
        found[size], masses[size] = label, of_label
        size, left = size + 1, mass - of_label
    following, node = token_ids[row + 1] if row + 1 < end else -1, nodes[place]
    for entry in range(topk_ids.shape[1] if label >= 0 and (node != NO_NODE or within) else 0):
        token = topk_ids[row, entry]
        if not 0 <= token < first_bytes.size:
            continue
        # Most tokens begin with a byte that no target token has there. To see that takes one look at each.
        is_following = token == following
        goes_on_so = node != NO_NODE and has_byte(bytes_after, node, first_bytes[token])
        if not (is_following or goes_on_so) or starts[token] == starts[token + 1]:
            continue
        target, part = -1, mass * exp[topk_bits[row, entry]]
        if is_following:
            part = max(part - of_label, 0.0)
        if is_following and within:
            target = label
        elif goes_on_so:
            target = longest_token(node, data, starts[token], starts[token + 1], children, trie_tokens)
            if target <= SHARED and is_cut:
                target = SHARED - target
        part = min(part, left)
        if target >= 0 and part > 0.0:
            found[size], masses[size] = target, part
            size, left = size + 1, left - part
    if left > 0.0 and cut_tokens[place] >= 0:
        found[size], masses[size] = cut_tokens[place], left
        size += 1
    return size


@njit
def _deepest_cover(at, first, end, ends, token_ids, starts):
    """How many rows before ``at`` answer too: none before the passage or a token of no bytes.

    None either before a token that has gone on beyond the end of an answer, into the source's template: the target has
    not read its bytes.
    """
    deepest = 0
    while deepest + 1 < MOST_COVERS and at - deepest > first:
        token, before = token_ids[at - deepest], at - deepest - 1
        length = starts[token + 1] - starts[token]
        if length == 0 or (ends[before + 1] == ends[end - 1] and length > ends[before + 1] - ends[before]):
            break
        deepest += 1
    return deepest


@njit
def _take_all(row, weight, following, topk_ids, topk_bits, exp, whole, found, masses, size):
    """Take each entry of a row, weighted, but not ``following``.

    Returns:
        Where the found ones end; the mass of all entries; the mass of ``following``, 0 if it is not kept.
    """
    kept, of_following = 0.0, 0.0
    for entry in range(topk_ids.shape[1]):
        token, mass = topk_ids[row, entry], exp[topk_bits[row, entry]]
        kept += mass
        if token == following and token >= 0:
            of_following = mass
        elif 0 <= token < whole.size and whole[token] >= 0 and mass > 0.0:
            found[size], masses[size] = whole[token], weight * mass
            size += 1
    return size, kept, of_following


@njit
def _take_longer(
    row, weight, topk_ids, topk_bits, exp, rank, low, high, following,
    cut_starts, cut_tokens, length, found, masses, size,
):  # fmt: skip
    """Take those entries of a row whose tokens have ranks from ``low`` to ``high``, cut by ``length`` bytes, weighted.

    Returns:
        Where the found ones end; the mass of all entries; of those with these ranks but ``following``; the mass of
        ``following``, 0 if it is not one of them.
    """
    kept, taken, of_following = 0.0, 0.0, 0.0
    for entry in range(topk_ids.shape[1]):
        token, mass = topk_ids[row, entry], exp[topk_bits[row, entry]]
        kept += mass
        if 0 <= token < rank.size and low <= rank[token] < high:
            if token == following:
                of_following = mass
                continue
            taken += mass
            target = cut_tokens[cut_starts[token] + length]
            if target >= 0 and mass > 0.0:
                found[size], masses[size] = target, weight * mass
                size += 1
    return size, kept, taken, of_following


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
    least, target_offsets, source_offsets, match, cut, ends, token_ids, logprobs, topk_ids, topk_bits, exp,
    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens,
    first_bytes, nodes, children, trie_tokens, bytes_after,
):  # fmt: skip
    """Take the source row from target rows inside source tokens of which the kept entries say too little.

    Args:
        least: the least share that kept entries have of the conditioned row, if all mass beyond them goes on with the
            residual too.
        match, cut: of ``byte_matching.match_bytes``, changed: -1 and 0 where there is less.
    """
    room = most_found(topk_ids.shape[1])
    found, masses = np.empty(room, np.int32), np.empty(room)
    for passage in range(target_offsets.size - 1):
        first = source_offsets[passage]
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            if match[row] >= 0 and cut[row] > 0:
                _, _, certain, unknown = continue_row(
                    first + match[row], first, source_offsets[passage + 1], cut[row], (-1, 0.0, False),
                    ends, token_ids, logprobs, topk_ids, topk_bits, exp,
                    data, starts, order, rank, longer, begun, whole, cut_starts, cut_tokens,
                    first_bytes, nodes, children, trie_tokens, bytes_after, found, masses, 0,
                )  # fmt: skip
                if certain <= least * (certain + unknown):
                    match[row], cut[row] = -1, 0
