"""Canonical tokenization: which token a tokenizer can write after another.

The target has written token p because the text does not go on in a way that would have made its tokenizer write another
token there. So tokens that it never writes after p are impossible, whatever a source says: those that its model does
not write after p, given the text of both, where the text cannot be split between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from engine.method import merge_pairs, piece_pairs
from engine.method.compiled import njit
from engine.method.merge_pairs import NO_MERGES, MergeTables, merge_tables
from engine.method.piece_pairs import NO_PIECES, PieceTables, piece_tables
from engine.text.merges import read_merges
from engine.text.splits import MAYBE, NEVER, WANTED, Splits
from engine.text.token_bytes import part_types
from engine.text.tokenization import PassageTokenizer
from engine.text.vocabulary_pieces import read_pieces

#: Tokens between which answers are remembered; they come to 16 MiB at most.
MOST_REMEMBERED = 2**13

#: Answers of ``merges_allow`` and ``pieces_allow``.
UNKNOWN_PAIR, POSSIBLE, IMPOSSIBLE = 0, 1, 2

#: Pre-tokenizers that split where the characters on both sides do not show it.
_HIDDEN_SPLITS = ("CharDelimiterSplit", "FixedLength", "UnicodeScripts")


class Pairs(NamedTuple):
    """What kernels look up.

    Attributes:
        tokens: int32 [V, 4], of each token: whether any other may stand after it, whether it may stand after any other
            (special and added ones do both), and the classes of its end and its beginning (``engine.text.splits``).
        splits: int8, ``Splits.table``.
        merges: of a byte-pair model. pieces: of a WordPiece or Unigram model.
        places: int32 [V+1], the row and column of a token in ``answers``, -1 for none; last, how many are taken.
        answers: uint8 [MOST_REMEMBERED, MOST_REMEMBERED / 4], the answers so far for the tokens that came first, four
            in a byte: more of them fit into a processor's cache.
    """

    tokens: np.ndarray
    splits: np.ndarray
    merges: MergeTables
    pieces: PieceTables
    places: np.ndarray
    answers: np.ndarray


#: Columns of ``Pairs.tokens``.
_PRECEDES_ANY, _FOLLOWS_ANY, _TAIL, _HEAD = range(4)


#: Every pair is possible.
NO_PAIRS = Pairs(
    tokens=np.zeros((0, 4), np.int32),
    splits=np.zeros((0, 0), np.int8),
    merges=NO_MERGES,
    pieces=NO_PIECES,
    places=np.zeros(1, np.int32),
    answers=np.zeros((0, 0), np.uint8),
)


class CanonicalPairs:
    """The pairs of tokens that a tokenizer writes.

    Attributes:
        pairs: for kernels.
        unknown: why it is not known which pairs it never writes, and every pair is taken for possible; empty if it is.
    """

    def __init__(self, tokenizer: PassageTokenizer):
        layout = json.loads(tokenizer.backend.to_str())
        self.unknown = _why_unknown(layout)
        self.pairs = NO_PAIRS
        self._splits: Splits | None = None
        if self.unknown:
            return
        model = layout["model"]
        if model["type"] != "WordPiece":  # whose continuing pieces say that no split is before them
            self._splits = Splits(tokenizer)
        self.pairs = _pairs_of(tokenizer, model, self._splits)

    def answer(self) -> bool:
        """Ask the pre-tokenizer what kernels wanted; whether it wanted anything."""
        return self._splits is not None and self._splits.answer()


def why_unknown(tokenizer: PassageTokenizer) -> str:
    """Why it is not known which tokens a tokenizer never writes one after another; empty if it is known."""
    return _why_unknown(json.loads(tokenizer.backend.to_str()))


def _why_unknown(layout: Mapping[str, Any]) -> str:
    model = layout["model"]
    hidden = [part for part in part_types(layout["pre_tokenizer"], "pretokenizers") if part in _HIDDEN_SPLITS]
    if model["type"] == "WordPiece":
        return "" if model["continuing_subword_prefix"] else "its WordPiece does not mark pieces that continue a word"
    if model["type"] not in ("BPE", "Unigram"):
        return f"its model is {model['type']}, not BPE, Unigram or WordPiece"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its BPE marks the pieces of a word"
    return f"its pre-tokenizer {hidden[0]} splits where two tokens do not show it" if hidden else ""


def _pairs_of(tokenizer: PassageTokenizer, model: Mapping[str, Any], splits: Splits | None) -> Pairs:
    """The tables of a tokenizer.

    Args:
        model: the part ``model`` of the serialized tokenizer.
        splits: None where no split is between two tokens of which one cannot stand beside any other.
    """
    merges, pieces = NO_MERGES, NO_PIECES
    tokens = np.zeros((tokenizer.vocab_size, 4), np.int32)
    if model["type"] == "BPE":
        found = read_merges(tokenizer, model)
        merges = merge_tables(found)
        tokens[:, _PRECEDES_ANY] = tokens[:, _FOLLOWS_ANY] = np.diff(found.offsets) == 0
    else:
        found = read_pieces(tokenizer, model)
        pieces = piece_tables(found, is_greedy=model["type"] == "WordPiece")
        tokens[:, _PRECEDES_ANY], tokens[:, _FOLLOWS_ANY] = found.precede_any, found.follow_any
    if splits is not None:
        tokens[:, _TAIL], tokens[:, _HEAD] = splits.tails, splits.heads
    places = np.full(len(tokens) + 1, -1, np.int32)
    places[-1] = 0
    return Pairs(
        tokens=tokens,
        splits=splits.table if splits is not None else np.full((1, 1), NEVER, np.int8),
        merges=merges,
        pieces=pieces,
        places=places,
        answers=np.zeros((MOST_REMEMBERED, MOST_REMEMBERED // 4), np.uint8),
    )


@njit
def place_of(token, places):
    """The place of a token in the memory of answers, the next free one if it has none; -1 if all are taken."""
    place = places[token]
    if place < 0 and places[-1] < MOST_REMEMBERED:
        place = places[token] = places[-1]
        places[-1] += 1
    return place


@njit
def remembered(answers, row, column):
    """The answer for two places, ``UNKNOWN_PAIR`` where there is none."""
    if row < 0 or column < 0:
        return UNKNOWN_PAIR
    return (answers[row, column >> 2] >> (2 * (column & 3))) & 3


@njit
def remember(answer, answers, row, column):
    """Note the answer for two places that had none."""
    if row >= 0 and column >= 0:
        answers[row, column >> 2] |= np.uint8(answer << (2 * (column & 3)))


@njit
def merges_allow(before, token, tokens, splits, ends, lasts, firsts, merges, partners):
    """Whether a byte-pair tokenizer can write ``token`` after ``before``; ``Pairs`` and ``MergeTables``, taken apart.

    Where that depends on a split that has not been asked for, it becomes ``WANTED``, and the answer is unknown.
    """
    if _is_surely_possible(before, token, tokens, splits):
        return POSSIBLE
    if merge_pairs.writes_both(before, token, ends, lasts, firsts, merges, partners):
        return POSSIBLE
    return _answer_by_split(before, token, tokens, splits)


@njit
def pieces_allow(before, token, tokens, splits, letters, spans, children, scores, unknown, is_greedy):
    """As ``merges_allow``, of a WordPiece or Unigram tokenizer.

    The two have a function each, and so do the loops over them: in one function the longer half slows the shorter one.
    """
    if _is_surely_possible(before, token, tokens, splits):
        return POSSIBLE
    if piece_pairs.writes_both(before, token, letters, spans, children, scores, unknown, is_greedy):
        return POSSIBLE
    return _answer_by_split(before, token, tokens, splits)


@njit
def _is_surely_possible(before, token, tokens, splits):
    """Whether a pair is possible whatever the model says."""
    if tokens[before, _PRECEDES_ANY] or tokens[token, _FOLLOWS_ANY]:
        return True
    return splits[tokens[before, _TAIL], tokens[token, _HEAD]] == MAYBE


@njit
def _answer_by_split(before, token, tokens, splits):
    """The answer for a pair that the model does not write and that is not known to be split."""
    tail, head = tokens[before, _TAIL], tokens[token, _HEAD]
    if splits[tail, head] == NEVER:
        return IMPOSSIBLE
    splits[tail, head] = WANTED
    return UNKNOWN_PAIR
