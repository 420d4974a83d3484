"""From documents to passages short enough for every tokenizer, cut on the original bytes.

A passage is a run of bytes of its document. Cuts lie where a token of *every* tokenizer ends, so that no model sees
half of its own token; nothing is decoded and encoded again, and every byte is covered exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engine.errors import RecordError
from engine.text.chat import Message
from engine.text.tokenization import PassageTokenizer

#: Text that is tokenized at once to find one cut, in bytes a token of the smallest window. Text that a tokenizer knows
#: has three to five bytes a token, so eight reach beyond the window; the cost is linear in the document's length.
LOOKAHEAD_BYTES_PER_TOKEN = 8


#: A row of ``records.PASSAGE``, and of a conversation ``records.MESSAGES``.
Passage = tuple[str, str, int, int, bool] | tuple[str, str, int, int, bool, list[Message]]


class PassageCutter:
    """Cuts documents so that each passage fits into the window of every tokenizer.

    Args:
        tokenizers: of the target model and all source models.
        windows: the number of text tokens (BOS and EOS not counted) that each model can take; at least 8.
        overlap_bytes: text before a passage that it repeats as context, at most.
    """

    def __init__(self, tokenizers: Sequence[PassageTokenizer], windows: Sequence[int], overlap_bytes: int = 0):
        self._tokenizers = list(zip(tokenizers, windows, strict=True))
        self._lookahead = LOOKAHEAD_BYTES_PER_TOKEN * min(windows)
        self._overlap_bytes = overlap_bytes

    def cut(self, document: str) -> Iterator[str]:
        """The passages of one document, in order; without overlap they join to the document."""
        return (passage for passage, _ in self.cut_with_context(document))

    def cut_with_context(self, document: str) -> Iterator[tuple[str, int]]:
        """Each passage, and how many bytes at its beginning are context; without these they join to the document."""
        data = document.encode("utf8")
        start = 0
        while start < len(data):
            passage, context_bytes = self._next(data, start)
            yield passage, context_bytes
            start += len(passage.encode("utf8")) - context_bytes

    def _next(self, data: bytes, start: int) -> tuple[str, int]:
        """The passage whose new text begins at ``start``, with context if every tokenizer has a token end there."""
        for begin in self._beginnings(data, start):
            end = _character_boundary(data, begin + self._lookahead)
            passage = self._longest_prefix(data[begin:end], end == len(data), start - begin)
            if begin == start or (passage and all(start - begin in ends for ends in self._ends(passage))):
                return passage, start - begin
        raise AssertionError("the last beginning is without context and always serves")

    def _beginnings(self, data: bytes, start: int) -> Iterator[int]:
        """Where a passage may begin: at the first blank within the overlap, or without context."""
        if self._overlap_bytes:
            for begin in range(max(0, start - self._overlap_bytes), start):
                if begin == 0 or data[begin : begin + 1].isspace():
                    yield begin
                    break
        yield start

    def _ends(self, text: str) -> list[np.ndarray]:
        return [tokenizer.encode(text)[1] for tokenizer, _ in self._tokenizers]

    def _longest_prefix(self, data: bytes, is_tail: bool, context_bytes: int) -> str:
        """The longest good beginning of ``data`` that fits every window; all of it if it is the tail and fits.

        Nothing if there is context and no more than that fits.
        """
        text = data.decode("utf8")
        ends = self._ends(text)
        fits = all(len(end) <= window for end, (_, window) in zip(ends, self._tokenizers, strict=True))
        if fits and is_tail:
            return text
        for cut in self._cuts(data, ends):
            prefix = data[:cut].decode("utf8")
            if cut > context_bytes and self._fits(
                prefix
            ):  # a beginning alone may tokenize into more than it did inside the longer text
                return prefix
        if context_bytes:
            return ""
        raise RecordError(f"no beginning of {text[:40]!r} fits every model's window; raise max_context_tokens")

    def _cuts(self, data: bytes, ends: Sequence[np.ndarray]) -> Iterator[int]:
        """Places to cut, best first: common token ends before a blank, any common token ends, any characters."""
        windows = [window for _, window in self._tokenizers]
        limit = min(int(end[min(len(end), window) - 1]) for end, window in zip(ends, windows, strict=True))
        common = ends[0]
        for other in ends[1:]:
            common = np.intersect1d(common, other, assume_unique=False)
        common = [int(cut) for cut in np.unique(common) if 0 < cut <= limit and _is_boundary(data, int(cut))]
        before_blank = [cut for cut in common if cut > limit // 2 and data[cut : cut + 1].isspace()]
        yield from reversed(before_blank)
        yield from reversed(common)
        while limit > 0:
            yield _character_boundary(data, limit)
            limit //= 2

    def _fits(self, text: str) -> bool:
        return all(len(tokenizer.encode(text)[0]) <= window for tokenizer, window in self._tokenizers)


def _is_boundary(data: bytes, position: int) -> bool:
    """Whether a character starts (or the text ends) at ``position``: UTF-8 continuation bytes are 0b10xxxxxx."""
    return position >= len(data) or data[position] & 0xC0 != 0x80


def _character_boundary(data: bytes, position: int) -> int:
    """The last character boundary at or before ``position``; the first one behind the start if there is none."""
    position = min(position, len(data))
    while not _is_boundary(data, position):
        position -= 1
    if position:
        return position
    return next(end for end in range(1, len(data) + 1) if _is_boundary(data, end))
