"""A sample of the corpus' text, spread evenly over its files."""

from __future__ import annotations

from collections.abc import Sequence

from engine.corpus.documents import Unreadable, read
from engine.corpus.files import CorpusUnit

#: Bytes that a sample takes from one unit at least.
SMALLEST_SHARE = 4096


def sample(units: Sequence[CorpusUnit], text_column: str, messages_column: str, num_bytes: int) -> list[str]:
    """About ``num_bytes`` of the corpus: an equal share from the beginning of every unit, or of as many as fill it.

    The same units give the same sample. It skips rows that cannot be read: the run itself reports them.
    """
    share = max(num_bytes // max(len(units), 1), SMALLEST_SHARE)
    texts: list[str] = []
    taken = 0
    for unit in units:
        if taken >= num_bytes:
            break
        of_unit = 0
        for document in read(unit, text_column, messages_column):
            if not isinstance(document, Unreadable):
                text = document.text[: share - of_unit]  # characters for bytes: near enough, and never half of one
                texts.append(text)
                of_unit += len(text.encode("utf8"))
            if of_unit >= share:
                break
        taken += of_unit
    return texts
