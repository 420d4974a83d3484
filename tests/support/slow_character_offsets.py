"""The slow, obvious twin of ``engine.text.character_offsets``: token by token, character by character."""

from __future__ import annotations

import numpy as np

from engine.text.character_offsets import LostTextError, _is_composed, _may_be_dropped


def end_bytes(text: str, offsets: np.ndarray) -> np.ndarray:
    """As ``engine.text.character_offsets.end_bytes``."""
    ends = with_composed(text, offsets)
    check_cover(text, offsets[:, 0], ends)
    ends[ends == ends[-1]] = len(text)
    bytes_before = np.cumsum([0, *(len(character.encode("utf8")) for character in text)])
    return bytes_before[ends].astype(np.int32)


def with_composed(text: str, offsets: np.ndarray) -> np.ndarray:
    """Ends of the tokens in characters; what a character is composed with belongs to it."""
    ends = offsets[:, 1].copy()
    next_start = len(text)
    for place in range(len(ends) - 1, -1, -1):
        start, first_end = offsets[place]
        while ends[place] < next_start and _is_composed(text[max(first_end - 1, 0) : ends[place] + 1]):
            ends[place] += 1
        if start < first_end and (place == 0 or offsets[place - 1, 1] <= start):
            next_start = start
    return ends


def check_cover(text: str, starts: np.ndarray, ends: np.ndarray) -> None:
    """Raise the error of the first token that leaves out text or is out of order."""
    consumed = 0
    for token, (start, end) in enumerate([*zip(starts, ends, strict=True), (len(text), len(text))]):
        lost = [place for place in range(consumed, start) if not _may_be_dropped(text[place])]
        if lost or end < consumed:
            raise LostTextError(lost[0] if lost else int(start), min(token, len(ends) - 1))
        consumed = end
