"""Whether a corpus holds anything that can be read, from its first rows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from engine.corpus.documents import Unreadable, read
from engine.corpus.files import CorpusUnit
from engine.errors import Fault
from engine.spec import CorpusSpec

#: Units of the corpus, and rows of each, that are read before a run starts.
SAMPLED_UNITS, SAMPLED_ROWS = 16, 8


def unreadable_corpus(corpus: CorpusSpec, units: Iterable[CorpusUnit]) -> list[Fault]:
    """A fault if a sample of the corpus holds no row that can be read, such as with a wrong ``text_column``."""
    columns = corpus.text_column, corpus.messages_column
    units = list(islice(units, SAMPLED_UNITS + 1))
    rows = [row for unit in units[:SAMPLED_UNITS] for row in islice(read(unit, *columns), SAMPLED_ROWS)]
    if any(not isinstance(row, Unreadable) for row in rows):
        return []
    if rows:
        reason = f"none of the first {len(rows)} rows can be read; the first one is {rows[0]}"
        return [Fault("corpus", reason, "correct corpus.paths, corpus.text_column or corpus.messages_column")]
    if len(units) > SAMPLED_UNITS:
        return []
    return [Fault("corpus.paths", f"{', '.join(corpus.paths)} hold no row", "name files that do")]
