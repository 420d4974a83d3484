"""From a tokenizer's character offsets to byte end offsets, where its tokens' own bytes are not the text.

That is so where a tokenizer normalises the text, marks what it does not know, or drops spaces. Offsets are the
library's, in characters of the original text. A token that ends inside a character ends with it here; it comes before
the token that really ends there, and of tokens with one end only the last counts (``engine.method.alignment``).
"""

from __future__ import annotations

import unicodedata

import numpy as np

#: Categories of characters that a tokenizer may leave out: spaces, controls, formats, marks; BERT's kind leaves out
#: U+FFFD as well. They belong to the token that follows. Leaving out anything else would lose text.
_DROPPABLE = ("Z", "C", "M")
_REPLACEMENT = "\ufffd"


class LostTextError(ValueError):
    """A character that should be in a token is in none, or the tokens are out of order.

    Attributes:
        place: of the character. token: number of the token beside it.
    """

    def __init__(self, place: int, token: int):
        super().__init__(place, token)
        self.place = place
        self.token = token


def byte_lengths(text: str) -> np.ndarray:
    """UTF-8 bytes of each character, int64 [n]."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def end_bytes(text: str, offsets: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of ``text`` consumed after each token, int32 [n].

    Args:
        offsets: int64 [n,2], at least one: where each token begins and ends, in characters.

    Raises:
        LostTextError: the tokens do not cover the text.
    """
    ends = _with_composed(text, offsets)
    _check_cover(text, offsets[:, 0], ends)
    ends[ends == ends[-1]] = len(text)  # what is left out at the end belongs to the last token
    bytes_before = np.cumsum(np.append(0, byte_lengths(text)))
    return bytes_before[ends].astype(np.int32)


def _with_composed(text: str, offsets: np.ndarray) -> np.ndarray:
    """Ends of the tokens in characters, int64 [n]; what a character is composed with belongs to it.

    A normalizer that composes ``e`` and an accent, or the letters of a Korean syllable, reports the first place alone.
    """
    ends = offsets[:, 1].copy()
    next_start = len(text)
    for place in range(len(ends) - 1, -1, -1):
        start, first_end = offsets[place]
        while ends[place] < next_start and _is_composed(text[max(first_end - 1, 0) : ends[place] + 1]):
            ends[place] += 1
        if start < first_end and (place == 0 or offsets[place - 1, 1] <= start):
            next_start = start
    return ends


def _is_composed(cluster: str) -> bool:
    """Whether the last character of a cluster belongs to the one that begins it."""
    return unicodedata.category(cluster[-1])[0] == "M" or len(unicodedata.normalize("NFKC", cluster)) == 1 < len(
        cluster
    )


def _check_cover(text: str, starts: np.ndarray, ends: np.ndarray) -> None:
    consumed = 0
    for token, (start, end) in enumerate([*zip(starts, ends, strict=True), (len(text), len(text))]):
        lost = [place for place in range(consumed, start) if not _may_be_dropped(text[place])]
        if lost or end < consumed:
            raise LostTextError(lost[0] if lost else int(start), min(token, len(ends) - 1))
        consumed = end


def _may_be_dropped(character: str) -> bool:
    return character == _REPLACEMENT or unicodedata.category(character)[0] in _DROPPABLE
