"""Whether a corpus holds anything that can be read, from its first rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from engine.corpus.documents import Unreadable, read
from engine.corpus.files import CorpusUnit
from engine.errors import Fault, StoreError
from engine.spec import CorpusSpec

#: Units of the corpus, and rows of each, that are read before a run starts.
SAMPLED_UNITS, SAMPLED_ROWS = 16, 8


def unreadable_corpus(corpus: CorpusSpec, domains: Mapping[str, Iterable[CorpusUnit]]) -> list[Fault]:
    """A fault for each domain of the corpus of which a sample shows that a run would end at it.

    It would where no row can be read, such as with a wrong ``text_column``; at the first row that cannot be read unless
    these are skipped; and where too much of a corpus that is all in the sample cannot be read.

    Args:
        domains: the units of each domain by its name, which is empty for a corpus without domains.
    """
    faults = []
    for name, units in domains.items():
        where = f"corpus.domains.{name}" if name else "corpus"
        faults += _faults(corpus, units, where, f"{where}.paths", corpus.most_skipped)
    return faults


def unreadable_domain(corpus: CorpusSpec, domain: str, units: Iterable[CorpusUnit]) -> list[Fault]:
    """A fault if a sample of a held-out domain shows that an evaluation would end at it, perhaps days later.

    Where rows are skipped any number of them may be, as long as one is left.
    """
    where = f"evaluation.corpora.{domain}"
    return _faults(corpus, units, where, where, most_skipped=1.0)


def _faults(
    corpus: CorpusSpec, units: Iterable[CorpusUnit], where: str, paths: str, most_skipped: float
) -> list[Fault]:
    """A fault at ``where``, whose files ``paths`` names, by the first rows of the first units."""
    columns = corpus.text_column, corpus.messages_column
    try:
        units = list(islice(units, SAMPLED_UNITS + 1))
        found = [list(islice(read(unit, *columns), SAMPLED_ROWS + 1)) for unit in units[:SAMPLED_UNITS]]
    except StoreError as error:
        return [Fault(paths, str(error))]
    is_whole = len(units) <= SAMPLED_UNITS and all(len(rows) <= SAMPLED_ROWS for rows in found)
    rows = [row for of_unit in found for row in of_unit[:SAMPLED_ROWS]]
    bad = [row for row in rows if isinstance(row, Unreadable)]
    remedy = f"correct {paths}, corpus.text_column or corpus.messages_column"
    if rows and len(bad) == len(rows):
        return [Fault(where, f"none of the first {len(rows)} rows can be read; the first one is {bad[0]}", remedy)]
    if bad and corpus.on_error == "fail":
        return [Fault(where, f"{bad[0]}", "fix it, or set corpus.on_error: skip to leave it out")]
    if is_whole and len(bad) > most_skipped * len(rows):
        reason = f"{len(bad)} of {len(rows)} rows cannot be read, corpus.most_skipped allows {most_skipped:.1%}"
        return [Fault(where, f"{reason}; the first one is {bad[0]}", f"{remedy}, or raise corpus.most_skipped")]
    if is_whole and not rows:
        names = ", ".join(dict.fromkeys(unit.path for unit in units))
        return [Fault(paths, f"{names} hold no row" if names else "no file holds a row", "name files that do")]
    return []
