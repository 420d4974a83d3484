"""Which token a WordPiece or Unigram model can write after another, where the text is not split between them.

Both look up pieces of their vocabulary in a word. WordPiece takes the longest piece at each place: it never writes a
token whose letters, or some of the first ones, would have made the piece before it longer. Unigram takes the pieces of
the highest joint probability: it never writes two tokens if other pieces of the letters of both are more probable, as
every part of a best path is the best between its ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.method.compiled import njit
from engine.method.pair_table import empty_table, slot_of
from engine.text.vocabulary_pieces import Pieces

#: Nats within which two paths are equal. A tie depends on how the sums before it were rounded, so both are possible.
TIE = 1e-6


class PieceTables(NamedTuple):
    """What ``writes_both`` looks up.

    Attributes:
        letters: int32, the code points of the tokens, one token after the other. spans: int64 [V, 3], where those of
            each token begin, without the prefix of WordPiece's continuing pieces, and end; and the node of its piece.
        children: int64 [., 2], a hash table of nodes of a trie of all pieces, the root being 0, with a letter, and the
            node of both.
        scores: float64 [nodes], the log-probability of the piece that ends at a node, minus infinity where none does.
        unknown: the log-probability of a character that is no piece. is_greedy: whether the model is WordPiece.
    """

    letters: np.ndarray
    spans: np.ndarray
    children: np.ndarray
    scores: np.ndarray
    unknown: float
    is_greedy: bool


#: Columns of ``PieceTables.spans``.
_BEGIN, _END, _NODE = range(3)

#: Of tokenizers of other kinds.
NO_PIECES = PieceTables(
    letters=np.zeros(0, np.int32),
    spans=np.zeros((0, 3), np.int64),
    children=np.zeros((0, 2), np.int64),
    scores=np.zeros(0),
    unknown=0.0,
    is_greedy=False,
)


def piece_tables(pieces: Pieces, is_greedy: bool) -> PieceTables:
    """The tables of a WordPiece model, which ``is_greedy``, or of a Unigram model."""
    children = empty_table(len(pieces.letters))
    scores = np.full(len(pieces.letters) + 1, -np.inf)
    nodes = np.zeros(len(pieces.scores), np.int64)
    count = _grow(pieces.letters, pieces.begins, pieces.scores, children, scores, nodes)
    spans = np.stack([pieces.begins[:-1] + pieces.marked, pieces.begins[1:], nodes], axis=1)
    return PieceTables(pieces.letters, spans, children, scores[:count].copy(), float(pieces.unknown), is_greedy)


@njit
def _grow(letters, begins, piece_scores, children, scores, nodes):
    """Fill the trie; how many nodes it has."""
    count = 1
    for token in range(nodes.size):
        node = 0
        for place in range(begins[token], begins[token + 1]):
            slot, key = slot_of(children, node, letters[place])
            if children[slot, 0] == -1:
                children[slot, 0], children[slot, 1] = key, count
                count += 1
            node = children[slot, 1]
        nodes[token] = node
        if node:
            scores[node] = piece_scores[token]  # of a piece that is listed twice the last one counts
    return count


@njit
def writes_both(before, token, letters, spans, children, scores, unknown, is_greedy):
    """Whether the model writes two tokens for the letters of both; ``PieceTables``, taken apart."""
    node = spans[before, _NODE]
    if is_greedy:
        return not _is_longer(node, spans[token, _BEGIN], spans[token, _END], letters, children, scores)
    own = scores[node] + scores[spans[token, _NODE]]
    return _best_score(before, token, letters, spans, children, scores, unknown) <= own + TIE


@njit
def _is_longer(node, begin, end, letters, children, scores):
    """Whether some of the letters from ``begin`` on make a piece of that of ``node``."""
    for place in range(begin, end):
        slot, _ = slot_of(children, node, letters[place])
        if children[slot, 0] == -1:
            return False
        node = children[slot, 1]
        if scores[node] > -np.inf:
            return True
    return False


@njit
def _best_score(before, token, letters, spans, children, scores, unknown):
    """The log-probability of the most probable pieces of the letters of two tokens (Viterbi)."""
    length = spans[before, _END] - spans[before, _BEGIN]
    size = length + spans[token, _END] - spans[token, _BEGIN]
    joined = np.empty(size, np.int32)
    joined[:length] = letters[spans[before, _BEGIN] : spans[before, _END]]
    joined[length:] = letters[spans[token, _BEGIN] : spans[token, _END]]
    best = np.full(size + 1, -np.inf)
    best[0] = 0.0
    for begin in range(size):
        node, is_known = 0, False
        for end in range(begin + 1, size + 1):
            slot, _ = slot_of(children, node, joined[end - 1])
            if children[slot, 0] == -1:
                break
            node = children[slot, 1]
            best[end] = max(best[end], best[begin] + scores[node])
            is_known = is_known or (end == begin + 1 and scores[node] > -np.inf)
        if not is_known:
            best[begin + 1] = max(best[begin + 1], best[begin] + unknown)
    return best[size]
