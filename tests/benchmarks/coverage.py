"""How many target rows each way of aligning uses, and how many of them wrongly.

    python -m tests.benchmarks.coverage CORPUS_FILE ...

For every ordered pair of real tokenizers and every file: ``bytes`` (rows that have a source row to be conditioned on,
before the check of kept mass, which needs scores) and ``byte_offset`` on the whole file, in windows of 512 target
tokens, the latter beside its upper bound (end offsets that both sides share, found with sets); ``min_edit`` and
``exact`` on the first windows. A row is used wrongly if the source row that it takes has consumed other bytes. Prints a
table, and one JSON line for each way.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from engine.method.alignment import ByteMatcher, Matcher, match_bytes, matcher
from engine.method.continuations import token_order
from engine.method.vocabulary import load_or_build
from engine.text.tokenization import PassageTokenizer
from tests.benchmarks.figures import say
from tests.benchmarks.passages import documents, target_rows, windows
from tests.support import real_tokenizers

WINDOW = 512
#: Windows of each file on which the slow ways are tried.
EDIT_WINDOWS = 24
CACHE = "~/.cache/knowledge-fusion-engine"


@dataclass
class Rows:
    """Labelled target rows, those for which a source row is used, and those of them that take a wrong one."""

    labelled: int = 0
    used: int = 0
    wrong: int = 0

    def __iadd__(self, other: Rows) -> Rows:
        self.labelled, self.used, self.wrong = (
            self.labelled + other.labelled, self.used + other.used, self.wrong + other.wrong
        )  # fmt: skip
        return self


def main(paths: list[Path]) -> None:
    """All pairs on all files."""
    by_pair: dict[tuple[str, str, str], Rows] = {}
    by_file: dict[tuple[str, str], Rows] = {}
    for path in paths:
        for target, source, way, rows in of_file(path):
            by_pair.setdefault((target, source, way), Rows()).__iadd__(rows)
            by_file.setdefault((path.stem, way), Rows()).__iadd__(rows)
    print("target <- source | bytes used | byte_offset used | exact used, wrong | min_edit used, wrong")
    for target, source in itertools.permutations(real_tokenizers.NAMES, 2):
        print(f"{target} <- {source} | {cells(by_pair, (target, source))}")
    for path in paths:
        print(f"{path.stem} | {cells(by_file, (path.stem,))}")
    for way in ("bytes", "byte_offset", "exact", "min_edit"):
        total = Rows()
        for (*_, name), rows in by_file.items():
            if name == way:
                total += rows
        say(
            f"coverage_{way}", total.used / total.labelled, "share of target rows", "rows used wrongly",
            total.wrong / max(total.used, 1), files=[path.name for path in paths], target_rows=total.labelled,
        )  # fmt: skip


def cells(table: dict, key: tuple[str, ...]) -> str:
    """The shares of the four ways, in percent."""
    ways = ("bytes", "byte_offset", "exact", "min_edit")
    given_bytes, byte_offset, exact, min_edit = (table[(*key, way)] for way in ways)
    return (
        f"{100 * given_bytes.used / given_bytes.labelled:.1f} | "
        f"{100 * byte_offset.used / byte_offset.labelled:.1f} | "
        f"{100 * exact.used / exact.labelled:.1f}, {100 * exact.wrong / exact.labelled:.1f} | "
        f"{100 * min_edit.used / min_edit.labelled:.1f}, {100 * min_edit.wrong / min_edit.labelled:.1f}"
    )


def of_file(path: Path) -> Iterator[tuple[str, str, str, Rows]]:
    """Target, source, way and rows of every ordered pair on one file."""
    texts = documents([path])
    length = sum(map(len, texts))
    for name in real_tokenizers.NAMES:
        target = real_tokenizers.load(name)
        whole = windows(texts, target, WINDOW, max(1, length // (4 * WINDOW)))
        for other in real_tokenizers.NAMES:
            if other == name:
                continue
            source = real_tokenizers.load(other)
            yield name, other, "byte_offset", count(target, source, ByteMatcher(source, target), whole, insist=True)
            yield name, other, "bytes", count_given_bytes(target, source, whole)
            mapping = load_or_build(source, target, "min_edit", CACHE)
            for way in ("exact", "min_edit"):
                edits = matcher(source, target, way, mapping)
                yield name, other, way, count(target, source, edits, whole[:EDIT_WINDOWS], insist=False)


def count(
    target: PassageTokenizer,
    source: PassageTokenizer,
    align: Matcher,
    texts: list[str],
    insist: bool,
) -> Rows:
    """Rows over some passages; ``insist`` that all end offsets that both sides share are used."""
    rows, scored = target_rows(target, texts), scored_tokens(source, texts)
    ends, offsets = scored.end_bytes, scored.offsets
    match = align(texts, rows, scored)
    found = Rows(labelled=len(match) - len(texts))
    for passage in range(len(texts)):
        where = slice(rows.offsets[passage], rows.offsets[passage + 1])
        source_ends = ends[offsets[passage] : offsets[passage + 1]]
        used = match[where] >= 0
        taken = source_ends[match[where][used]]
        found.used += int(used.sum())
        found.wrong += int((taken != rows.end_bytes[where][used]).sum())
        if insist:
            shared = set(rows.end_bytes[where][:-1].tolist()) & set(source_ends.tolist()) - {0}
            assert set(rows.end_bytes[where][used].tolist()) - {0} == shared, "every shared end offset is used"
    return found


def count_given_bytes(target: PassageTokenizer, source: PassageTokenizer, texts: list[str]) -> Rows:
    """Rows that have a source row to be conditioned on; none of them is wrong."""
    rows, scored = target_rows(target, texts), scored_tokens(source, texts)
    data, starts, *_ = token_order(source.token_bytes)
    alike = ByteMatcher(source, target).begins_alike(texts, rows, scored)
    match, _ = match_bytes(texts, rows, scored, alike, SimpleNamespace(data=data, starts=starts))
    return Rows(labelled=len(match) - len(texts), used=int((match >= 0).sum()))


def scored_tokens(source: PassageTokenizer, texts: list[str]) -> SimpleNamespace:
    """The tokens that a source's rows follow, as ``rows.TokenRows``."""
    encoded = [source.encode_with_roles(text, source.bos_id >= 0, True) for text in texts]
    return SimpleNamespace(
        token_ids=np.concatenate([ids[:-1] for ids, _ in encoded]),
        end_bytes=np.concatenate([ends[:-1] for _, ends in encoded]),
        offsets=np.cumsum([0, *(len(ids) - 1 for ids, _ in encoded)], dtype=np.int64),
    )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
