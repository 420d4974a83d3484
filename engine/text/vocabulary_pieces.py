"""The pieces of a WordPiece or Unigram tokenizer as arrays, read from the serialized tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.text.tokenization import PassageTokenizer

#: By how many nats a character that Unigram has no piece for is less probable than its rarest piece, in ``tokenizers``.
UNKNOWN_PENALTY = 10.0


@dataclass(frozen=True)
class Pieces:
    """The vocabulary of a model that looks pieces up in a text.

    Attributes:
        letters: int32, the code points of each piece as the vocabulary has it, one piece after the other. begins:
            int64 [V+1], where those of each token begin in it. Ids that the model does not have have none.
        marked: int64 [V], how many of a token's letters are the prefix of WordPiece's continuing pieces.
        scores: float64 [V], log-probabilities of Unigram's pieces; 0 in WordPiece.
        unknown: the log-probability of a character that is no piece.
        follow_any, precede_any: bool [V], tokens that can stand after, or before, any other.
    """

    letters: np.ndarray
    begins: np.ndarray
    marked: np.ndarray
    scores: np.ndarray
    unknown: float
    follow_any: np.ndarray
    precede_any: np.ndarray


def read_pieces(tokenizer: PassageTokenizer, model: Mapping[str, Any]) -> Pieces:
    """The pieces of a WordPiece or Unigram model.

    Args:
        model: the part ``model`` of the serialized tokenizer.
    """
    pieces, scores, unknown = [""] * tokenizer.vocab_size, np.zeros(tokenizer.vocab_size), -np.inf
    if model["type"] == "Unigram":
        for token, (piece, score) in enumerate(model["vocab"]):
            pieces[token], scores[token] = piece, score
        unknown = scores[: len(model["vocab"])].min() - UNKNOWN_PENALTY
    else:
        for piece, token in model["vocab"].items():
            pieces[token] = piece
    prefix = model.get("continuing_subword_prefix", "")
    marked = np.array([len(prefix) * piece.startswith(prefix) for piece in pieces], np.int64)
    follow_any, precede_any = _beside_any(tokenizer, pieces)
    if prefix:
        follow_any |= (marked == 0) | [_begins_word(tokenizer, piece, prefix) for piece in pieces]
    return Pieces(
        letters=np.frombuffer("".join(pieces).encode("utf-32-le", "surrogatepass"), np.int32),
        begins=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        marked=marked,
        scores=scores,
        unknown=unknown,
        follow_any=follow_any,
        precede_any=precede_any,
    )


def _beside_any(tokenizer: PassageTokenizer, pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that follow, and precede, any other: special, added and unknown ones, bytes, and parts of special ones.

    Where a text spells a special token that the model has among its pieces, ``PassageTokenizer.tokens`` takes it apart:
    what is made of its first character and of the others stands beside tokens that the model did not choose for that.
    """
    added = tokenizer.added_ids
    free = np.array(
        [
            token in added or not piece or not tokenizer.token_bytes[token] or tokenizer.is_byte_piece(token)
            for token, piece in enumerate(pieces)
        ]
    )
    follow, precede = free.copy(), free.copy()
    for special in tokenizer.special_tokens:
        piece = pieces[special["id"]]
        if len(piece) > 1:
            first, others = _tokens_of(tokenizer, piece[:1]), _tokens_of(tokenizer, piece[1:])
            follow[first], precede[first], precede[others[-1:]] = True, True, True
    return follow, precede


def _tokens_of(tokenizer: PassageTokenizer, word: str) -> list[int]:
    try:
        return [token.id for token in tokenizer.backend.model.tokenize(word)]
    except Exception:  # the library's only one: a character that is no piece, and no token for the unknown
        return []


def _begins_word(tokenizer: PassageTokenizer, piece: str, prefix: str) -> bool:
    """Whether a text that spells a continuing piece with its prefix has a word that begins so."""
    normalizer, pre_tokenizer = tokenizer.backend.normalizer, tokenizer.backend.pre_tokenizer
    text = piece if normalizer is None else normalizer.normalize_str(piece)
    words = [text] if pre_tokenizer is None else [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
    return any(word.startswith(prefix) and word != prefix for word in words)
