"""The tokens of the target by their bytes, one byte after the other, for kernels.

They ask which target token the text's next two source tokens begin with: it may be longer than the first of them. Where
both begin with the token, a source that has it too would say it in one, and what it says by two is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit
from engine.method.pair_table import empty_table, slot_of
from engine.records import NO_TOKEN
from engine.text.tokenization import PassageTokenizer

#: No node: no token goes on so.
NO_NODE = -1

#: A token that the source has too is written as this number less the token.
SHARED = -2


class TokenTrie(NamedTuple):
    """A trie of the bytes of the target's vocabulary, for one source. Node 0 is the root, before any byte.

    Attributes:
        children: int64 [., 2], a hash table of nodes with a byte, and the node of both.
        tokens: int32 [nodes], the token whose bytes end at a node, or ``NO_TOKEN``; see ``SHARED``.
        bytes_after: uint64 [nodes, 4], one bit for each byte with which tokens go on.
        is_lacked: bool [nodes], whether tokens go on that the source lacks.
    """

    children: np.ndarray
    tokens: np.ndarray
    bytes_after: np.ndarray
    is_lacked: np.ndarray


#: Of no tokens.
NO_TRIE = TokenTrie(empty_table(0), np.full(1, NO_TOKEN, np.int32), np.zeros((1, 4), np.uint64), np.zeros(1, np.bool_))


def trie_of(target: PassageTokenizer, source_bytes: Sequence[bytes | None]) -> TokenTrie:
    """The trie of a target; of tokens with the same bytes the one that it would use.

    Args:
        source_bytes: the bytes of each of the source's tokens, None for one that has none.
    """
    pieces, shared = target.id_of_bytes, set(source_bytes)
    tokens = (SHARED - token if piece in shared else token for piece, token in pieces.items())
    return build_trie(list(pieces), np.fromiter(tokens, np.int32, len(pieces)))


def build_trie(pieces: list[bytes], tokens: np.ndarray) -> TokenTrie:
    """The trie of some runs of bytes, none empty and all different, and their tokens, int32; see ``SHARED``."""
    data = np.frombuffer(b"".join(pieces), np.uint8)
    starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    children = empty_table(len(data))
    most = len(data) + 1
    ends, bytes_after = np.full(most, NO_TOKEN, np.int32), np.zeros((most, 4), np.uint64)
    is_lacked = np.zeros(most, np.bool_)
    count = _grow(data, starts, tokens, children, ends, bytes_after, is_lacked)
    return TokenTrie(children, *(column[:count].copy() for column in (ends, bytes_after, is_lacked)))


@njit
def _grow(data, starts, tokens, children, ends, bytes_after, is_lacked):
    """Fill the trie; how many nodes it has."""
    count = 1
    for piece in range(tokens.size):
        node = 0
        for place in range(starts[piece], starts[piece + 1]):
            byte = np.int64(data[place])
            slot, key = slot_of(children, node, byte)
            if children[slot, 0] == -1:
                children[slot, 0], children[slot, 1] = key, count
                bytes_after[node, byte >> 6] |= np.uint64(1) << np.uint64(byte & 63)
                count += 1
            is_lacked[node] |= tokens[piece] > SHARED
            node = children[slot, 1]
        ends[node] = tokens[piece]
    return count


@njit
def find_nodes(data, starts, cut_starts, children, bytes_after, is_lacked, nodes):
    """Fill ``nodes``, int32 with the places of ``cut_starts``: the node of what is left of each source token.

    ``NO_NODE`` where no target token goes on with it, of a whole source token none that the source lacks.
    """
    for token in range(starts.size - 1):
        length = starts[token + 1] - starts[token]
        for cut in range(length):
            node = _node_of(data, starts[token] + cut, starts[token + 1], children)
            goes_on = node != NO_NODE and (is_lacked[node] if cut == 0 else bytes_after[node].any())
            nodes[cut_starts[token] + cut] = node if goes_on else NO_NODE


@njit
def _node_of(data, begin, end, children):
    node = 0
    for place in range(begin, end):
        slot, _ = slot_of(children, node, data[place])
        if children[slot, 0] == -1:
            return NO_NODE
        node = children[slot, 1]
    return node


@njit
def has_byte(bytes_after, node, byte):
    """Whether a token goes on from ``node`` with ``byte``."""
    return (bytes_after[node, byte >> 6] >> np.uint64(byte & 63)) & np.uint64(1) != 0


@njit
def longest_token(node, data, begin, end, children, tokens):
    """The longest token that goes on from ``node`` with some of the bytes ``data[begin:end]``, or ``NO_TOKEN``.

    See ``SHARED``.
    """
    found = NO_TOKEN
    for place in range(begin, end):
        slot, _ = slot_of(children, node, data[place])
        if children[slot, 0] == -1:
            break
        node = children[slot, 1]
        if tokens[node] != NO_TOKEN:
            found = tokens[node]
    return found
