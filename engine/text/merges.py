"""The merges of a byte-pair tokenizer as arrays of ids, read from the serialized tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from engine.text.tokenization import PassageTokenizer


@dataclass(frozen=True)
class Merges:
    """What a byte-pair model does to the symbols of a text.

    Attributes:
        left, right, merged: int32 [M], the two symbols that each merge joins, and the result; first the one that comes
            first.
        symbols: int32, the symbols of each token before any merge, one token after the other. offsets: int64 [V+1],
            where each token begins in it. Tokens that no merge can touch (special and added ones) have none.
    """

    left: np.ndarray
    right: np.ndarray
    merged: np.ndarray
    symbols: np.ndarray
    offsets: np.ndarray


def read_merges(tokenizer: PassageTokenizer, model: Mapping[str, Any]) -> Merges:
    """The merges of a byte-pair model.

    Args:
        model: the part ``model`` of the serialized tokenizer, of type BPE.
    """
    ids: Mapping[str, int] = model["vocab"]
    rules = [tuple(rule.split(" ", 1)) if isinstance(rule, str) else rule for rule in model["merges"]]
    found = [(ids[left], ids[right], ids[left + right]) for left, right in rules]
    left, right, merged = np.array(found, np.int32).reshape(-1, 3).T
    symbols = _symbols(tokenizer, ids)
    return Merges(
        left=left,
        right=right,
        merged=merged,
        symbols=np.fromiter(chain.from_iterable(symbols), np.int32),
        offsets=np.cumsum([0, *map(len, symbols)], dtype=np.int64),
    )


def _symbols(tokenizer: PassageTokenizer, ids: Mapping[str, int]) -> list[Sequence[int]]:
    """The characters of each token as ids; a token with a character that is no token stands for itself."""
    found: list[Sequence[int]] = [()] * tokenizer.vocab_size
    added = tokenizer.added_ids
    for piece, token in ids.items():
        if token not in added and tokenizer.token_bytes[token]:
            characters = [ids.get(character, -1) for character in piece]
            found[token] = [token] if -1 in characters or tokenizer.is_byte_piece(token) else characters
    return found
