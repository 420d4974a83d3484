"""Whether a pre-tokenizer may split a text between two tokens, asked once for each kind of characters that meet.

What a token ends with and what a token begins with are classes of characters: their Unicode category, or themselves
where pre-tokenizers look for them. For each pair of classes that occurs the tokenizer's own pre-tokenizer is asked, in
several surroundings. The answer is yes if it splits there in one of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import product

import numpy as np

from engine.text.tokenization import PassageTokenizer

#: Answers in ``Splits.table``: never split; may be split; not asked yet; wanted by a kernel.
NEVER, MAYBE, UNKNOWN, WANTED = 0, 1, -1, -2

#: The class of a boundary inside a character, where no pre-tokenizer splits.
INSIDE = 0

#: Characters on each side of a boundary that make its class.
TAIL, HEAD = 3, 2

#: Characters that pre-tokenizers name, and the letters of English contractions, which count after an apostrophe.
_NAMED = frozenset(" \n\r\t'\u2019_/")
_APOSTROPHES, _CONTRACTIONS = "'\u2019", frozenset("stremvldSTREMVLD")

#: What may stand around the two tokens.
_BEFORE = ("", "a", "1", "11", " ", "'", ".")
_AFTER = ("", "a", "1", " ", "\n", ".", "\u65e5")

#: Characters of more than one byte, of several kinds.
_ANY = "\xe9\xc9\u65e5\u05e2\u0301\xa0\u2014\u20ac\u0663\U0001f642"

#: Bytes that complete a character.
_CONTINUATIONS = (0x80, 0x90, 0x97, 0x9D, 0x9F, 0xA2, 0xB0, 0xBF)


class Splits:
    """The classes of a vocabulary's tokens, and the answers so far.

    Args:
        tokenizer: with or without pre-tokenizer; without one no text is ever split.

    Attributes:
        tails, heads: int32 [V], class of each token's last and of its first characters.
        table: int8 [classes of tails, classes of heads] of answers.
    """

    def __init__(self, tokenizer: PassageTokenizer):
        self._backend = tokenizer.backend
        size = tokenizer.vocab_size
        self.tails, self.heads = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self._tails: list[list[str]] = [[]]
        self._heads: list[list[str]] = [[]]
        if self._backend.pre_tokenizer is not None:
            self._classify(tokenizer)
        self.table = np.full((len(self._tails), len(self._heads)), UNKNOWN, np.int8)
        self.table[INSIDE], self.table[:, INSIDE] = NEVER, NEVER

    def _classify(self, tokenizer: PassageTokenizer) -> None:
        known: tuple[dict, dict] = ({}, {})
        for token, data in enumerate(tokenizer.token_bytes):
            tails, heads = _last_characters(data or b""), _first_characters(data or b"")
            if tails:
                self.tails[token] = _class(known[0], self._tails, tuple(map(_classes, tails)), tails)
            if heads:
                self.heads[token] = _class(known[1], self._heads, tuple(map(_classes, heads)), heads)

    def answer(self) -> bool:
        """Ask for all pairs of classes that are ``WANTED``; whether there were any."""
        wanted = np.argwhere(self.table == WANTED)
        for tail, head in wanted.tolist():
            texts = product(_BEFORE, self._tails[tail], self._heads[head], _AFTER)
            is_split = any(self._is_split(before + left, right + after) for before, left, right, after in texts)
            self.table[tail, head] = MAYBE if is_split else NEVER
        return len(wanted) > 0

    def _is_split(self, left: str, right: str) -> bool:
        normalizer = self._backend.normalizer
        if normalizer is not None:
            whole, left = normalizer.normalize_str(left + right), normalizer.normalize_str(left)
            if not whole.startswith(left):
                return False
        else:
            whole = left + right
        words = self._backend.pre_tokenizer.pre_tokenize_str(whole)
        return not any(start < len(left) < end for _, (start, end) in words)  # some drop the spaces between words


def _class(known: dict, examples: list[list[str]], key: object, example: list[str]) -> int:
    if key not in known:
        known[key] = len(examples)
        examples.append(example)
    return known[key]


def _classes(text: str) -> tuple[str, ...]:
    after_apostrophe = False
    found = []
    for character in text:
        is_contraction = after_apostrophe and character in _CONTRACTIONS
        found.append(character.lower() if is_contraction else _class_of(character))
        after_apostrophe = character in _APOSTROPHES or is_contraction
    return tuple(found)


def _class_of(character: str) -> str:
    if character in _NAMED:
        return character
    category = unicodedata.category(character)
    if category == "Lo":  # pre-tokenizers name scripts
        return f"{category}{ord(character) >> 8}"
    return (category[0] if category[0] in "PSC" else category) + "a" * character.isascii()


def _last_characters(data: bytes) -> list[str]:
    """The last whole characters; none if the bytes end inside a character.

    Where they are the end of a character that is begun elsewhere, some characters of all kinds.
    """
    for start in range(max(0, len(data) - 4 * TAIL), len(data)):
        try:
            return [data[start:].decode("utf8")[-TAIL:]]
        except UnicodeDecodeError:
            continue
    return list(_ANY) if data and all(byte & 0xC0 == 0x80 for byte in data[-3:]) else []


def _first_characters(data: bytes) -> list[str]:
    """The first whole characters; of a character that is only begun, some that begin so; none inside a character."""
    text = data[: 4 * HEAD + 3].decode("utf8", errors="ignore")[:HEAD]
    if text and data.startswith(text[0].encode("utf8")):
        return [text]
    return list({_class_of(character): character for character in _completions(data[:4])}.values())


def _completions(data: bytes) -> Iterator[str]:
    """Characters that begin with these bytes."""
    for first, further in product(_CONTINUATIONS, _CONTINUATIONS):
        for missing in (1, 2, 3):
            try:
                yield (data + bytes([first, further, further])[:missing]).decode("utf8")
                break
            except UnicodeDecodeError:
                continue
