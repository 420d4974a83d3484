"""The files of a corpus, and the units of work that readers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import pyarrow.parquet

from engine.errors import Fault, printable

SUFFIXES = (".parquet", ".jsonl", ".txt")
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True)
class CorpusUnit:
    """A part of the corpus that one reader takes at once.

    Attributes:
        path: file or URL.
        row_group: of a Parquet file; -1 for a whole file of another kind.
        first_row: number of the unit's first row in its file; rows count from 1.
        corpus_pass: number of the pass over the corpus, from 0.
    """

    path: str
    row_group: int = -1
    first_row: int = 1
    corpus_pass: int = 0


def find_files(patterns: Sequence[str], where: str) -> tuple[list[str], list[Fault]]:
    """Expand globs and check that every file exists, is of a kind that can be read and is named once.

    Args:
        patterns: paths, globs or URLs, each naming at least one file.
        where: dotted path of the spec's field, for the faults.

    Returns:
        The files, each once, pattern by pattern, sorted within one; and the faults of the patterns.
    """
    files: dict[str, int] = {}  # to the index of the pattern that named it first
    faults: list[Fault] = []
    for index, pattern in enumerate(patterns):
        try:
            filesystem, path = fsspec.core.url_to_fs(pattern)
            found = [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(path))]
        except Exception as error:  # every filesystem has its own errors, and all of them belong to this path
            faults.append(Fault(f"{where}.{index}", f"{pattern!r} cannot be listed: {type(error).__name__}: {error}"))
            continue
        found = [name.removeprefix("file://") for name in found]
        if not found:
            faults.append(Fault(f"{where}.{index}", f"no file is at {pattern!r}", "give an existing path or glob"))
        faults += [_unknown_kind(f"{where}.{index}", name) for name in found if kind_of_file(name) not in SUFFIXES]
        faults += [_not_utf8(f"{where}.{index}", name) for name in found if printable(name) != name]
        again = [name for name in found if name in files]
        if again:
            first = files[again[0]]
            faults.append(_named_again(f"{where}.{index}", again, f"{where}.{first} ({patterns[first]!r})"))
        for name in found:
            files.setdefault(name, index)
    return list(files), faults


def units_of(path: str) -> list[CorpusUnit]:
    """The units of one file; a file that cannot be opened is one unit, and reading it gives the reason."""
    if kind_of_file(path) != ".parquet":
        return [CorpusUnit(path)]
    try:
        with fsspec.open(path) as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
    except (OSError, pyarrow.ArrowException):
        return [CorpusUnit(path)]
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [CorpusUnit(path, group, 1 + sum(sizes[:group])) for group in range(len(sizes))]


def _not_utf8(where: str, path: str) -> Fault:
    """A passage is known by its file's name, which travels as UTF-8."""
    return Fault(where, f"the name of {printable(path)} is not UTF-8", "rename the file")


def _named_again(where: str, paths: Sequence[str], earlier: str) -> Fault:
    more = f" (the first of {len(paths)} files that are named before)" if len(paths) > 1 else ""
    passes = "; corpus.passes repeats the whole corpus" if where.startswith("corpus.paths") else ""
    return Fault(where, f"names {paths[0]!r} again, which {earlier} has named{more}", "name every file once" + passes)


def _unknown_kind(where: str, path: str) -> Fault:
    return Fault(
        where, f"{path!r} is of no kind that can be read", "allowed: .parquet, .jsonl, .txt, also .gz and .zst"
    )


def kind_of_file(path: str) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    for suffix in COMPRESSIONS:
        path = path.removesuffix(suffix)
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")
