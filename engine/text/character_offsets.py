"""From a tokenizer's character offsets to byte end offsets, where its tokens' own bytes are not the text.

That is so where a tokenizer normalises the text, marks what it does not know, or drops spaces. Offsets are the
library's, in characters of the original text. A token that ends inside a character ends with it here; it comes before
the token that really ends there, and of tokens with one end only the last counts (``engine.method.alignment``). Where
the tokens' bytes are the character's, ``engine.text.tokenization`` tells their ends apart.
"""

from __future__ import annotations

import unicodedata

import numpy as np

#: Categories of characters that a tokenizer may leave out: spaces, controls, formats, marks; BERT's kind leaves out
#: U+FFFD as well. They belong to the token that follows. Leaving out anything else would lose text.
_DROPPABLE = ("Z", "C", "M")
_REPLACEMENT = "\ufffd"

#: No character before this one is composed with the one before it.
_FIRST_COMPOSED = 0x300


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
    return _byte_lengths(code_points(text))


def code_points(text: str) -> np.ndarray:
    """The code of each character, uint32 [n]."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _byte_lengths(codes: np.ndarray) -> np.ndarray:
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def end_bytes(text: str, offsets: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of ``text`` consumed after each token, int32 [n].

    Args:
        offsets: int64 [n,2], at least one: where each token begins and ends, in characters.

    Raises:
        LostTextError: the tokens do not cover the text.
    """
    codes = code_points(text)
    ends = _with_composed(text, codes, offsets)
    _check_cover(text, codes, offsets[:, 0], ends)
    ends[ends == ends[-1]] = len(text)  # what is left out at the end belongs to the last token
    bytes_before = np.cumsum(np.append(0, _byte_lengths(codes)))
    return bytes_before[ends].astype(np.int32)


def _with_composed(text: str, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Ends of the tokens in characters, int64 [n]; what a character is composed with belongs to it.

    A normalizer that composes ``e`` and an accent, or the letters of a Korean syllable, reports the first place alone.
    """
    starts, first_ends = offsets[:, 0], offsets[:, 1]
    ends = first_ends.copy()
    next_starts = _next_starts(starts, first_ends, len(text))
    following = np.append(codes, 0)[np.minimum(ends, len(text))]
    for place in np.flatnonzero((ends < next_starts) & (following >= _FIRST_COMPOSED)).tolist():
        first, end, next_start = max(int(first_ends[place]) - 1, 0), int(ends[place]), int(next_starts[place])
        while end < next_start and _is_composed(text[first : end + 1]):
            end += 1
        ends[place] = end
    return ends


def _next_starts(starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Where the text of the next token begins, int64 [n]; of the tokens inside one character the first counts."""
    count = len(starts)
    begins_text = (starts < ends) & (np.append(0, ends[:-1]) <= starts)
    places = np.where(begins_text, np.arange(count), count)
    following = np.append(np.minimum.accumulate(places[::-1])[::-1][1:], count)
    return np.append(starts, length)[following]


def _is_composed(cluster: str) -> bool:
    """Whether the last character of a cluster belongs to the one that begins it."""
    return unicodedata.category(cluster[-1])[0] == "M" or len(unicodedata.normalize("NFKC", cluster)) == 1 < len(
        cluster
    )


def _check_cover(text: str, codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Refuse tokens that leave out text that must not be dropped, or that are out of order."""
    consumed, starts = np.append(0, ends), np.append(starts, len(text))
    is_gap = starts > consumed
    gaps = np.zeros(len(text) + 1, np.int64)
    np.add.at(gaps, consumed[is_gap], 1)
    np.add.at(gaps, starts[is_gap], -1)
    left_out = np.flatnonzero(np.cumsum(gaps)[:-1])
    left_out = left_out[codes[left_out] != ord(" ")]
    is_lost = np.zeros(len(text) + 1, bool)
    is_lost[left_out] = [not _may_be_dropped(character) for character in map(chr, codes[left_out].tolist())]
    lost_before = np.append(0, np.cumsum(is_lost))
    loses = is_gap & (lost_before[np.maximum(starts, consumed)] > lost_before[consumed])
    is_back = np.append(ends, len(text)) < consumed
    faults = np.flatnonzero(loses | is_back)
    if len(faults):
        token = int(faults[0])
        place = int(consumed[token] + np.argmax(is_lost[consumed[token] :])) if loses[token] else int(starts[token])
        raise LostTextError(place, min(token, len(ends) - 1))


def _may_be_dropped(character: str) -> bool:
    return character == _REPLACEMENT or unicodedata.category(character)[0] in _DROPPABLE
