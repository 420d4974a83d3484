"""The files of a corpus, and the units that they are read in."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import fsspec
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from engine.errors import Fault, StoreError, first_line, printable
from engine.model_files.inspection import is_lfs_pointer
from engine.spec import CorpusSpec
from engine.store import NOT_THERE, opened, size_of

SUFFIXES = (".parquet", ".jsonl", ".txt")
COMPRESSIONS = (".gz", ".zst")

#: The folder of a disk's repairs at the root of the disk: only root may look into it, and no corpus is there.
LOST_AND_FOUND = "lost+found"


@dataclass(frozen=True)
class CorpusUnit:
    """A part of the corpus that is read from its beginning: a file, a row group, or the lines of a part of a file.

    Attributes:
        path: file or URL.
        row_group: of a Parquet file; -1 for a file of another kind.
        first_row: number of the unit's first row; rows count from 1 in a file, and in a part of a file.
        num_bytes: size of the file or part, or of the row group as Parquet counts it; 0 if it is not known.
        first_byte, end_byte: the unit has the lines that begin in this part of the file; -1 is the file's end.
        skipped_rows, skipped_bytes: rows at its beginning that are left out, and their bytes, where reading can begin
            after them without reading them.
    """

    path: str
    row_group: int = -1
    first_row: int = 1
    num_bytes: int = 0
    first_byte: int = 0
    end_byte: int = -1
    skipped_rows: int = 0
    skipped_bytes: int = 0

    @property
    def name(self) -> str:
        """The file, and where a part of it begins."""
        return f"{self.path} from byte {self.first_byte}" if self.first_byte else self.path

    @property
    def can_be_split(self) -> bool:
        """Whether reading may begin anywhere in the file."""
        return self.path.endswith(".jsonl")

    def after(self, rows: int, num_bytes: int) -> CorpusUnit:
        """The same unit without its first rows.

        Args:
            num_bytes: of these rows, as ``documents.read`` counts them.
        """
        return replace(self, skipped_rows=rows, skipped_bytes=num_bytes)


def find_corpus(corpus: CorpusSpec, may_be_elsewhere: bool = False) -> tuple[dict[str, list[str]], list[Fault]]:
    """Find the files of each domain of the corpus, which may not share one; see ``find_files``.

    Returns:
        Name to files of each domain in the order of their names, ``""`` for a corpus without domains; and the faults.
    """
    if not corpus.domains:
        files, faults = find_files(corpus.paths, "corpus.paths", may_be_elsewhere)
        return {"": files}, faults
    found: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    faults = []
    for domain in corpus.domain_names:
        where = f"corpus.domains.{domain}.paths"
        found[domain], of_domain = find_files(corpus.domains[domain].paths, where, may_be_elsewhere)
        faults += of_domain
        for name in found[domain]:
            owner = owners.setdefault(_identity(name), domain)
            if owner != domain:
                faults.append(Fault(where, f"{name!r} is in the domain {owner!r} too", "give every file to one domain"))
    return found, faults


def find_files(patterns: Sequence[str], where: str, may_be_elsewhere: bool = False) -> tuple[list[str], list[Fault]]:
    """Expand globs and check that every file exists, is of a kind that can be read and is named once.

    Args:
        patterns: paths, globs or URLs, each naming at least one file.
        where: dotted path of the spec's field, for the faults.
        may_be_elsewhere: pass over URLs, and over paths that lead to nothing on this machine.

    Returns:
        The files, each once, pattern by pattern, sorted within one; and the faults of the patterns.
    """
    files: dict[str, tuple[str, int]] = {}  # to the first name of a file and the index of its pattern
    faults: list[Fault] = []
    for index, pattern in enumerate(patterns):
        place = f"{where}.{index}"
        if may_be_elsewhere and "://" in pattern:
            continue
        try:
            found = _matches(pattern)
        except Exception as error:  # every filesystem has its own errors, and all of them belong to this path
            reason = f"{pattern!r} cannot be listed: {type(error).__name__}: {first_line(error)}"
            faults.append(Fault(place, reason, "check the path and who may read it, and a URL's fsspec package"))
            continue
        if not found and not may_be_elsewhere:
            faults.append(Fault(place, f"no file is at {pattern!r}", "give an existing path or glob"))
        again = []
        for name, kind in found:
            faults += _file_faults(place, name, kind)
            first = files.setdefault(_identity(name), (name, index))
            if first != (name, index):
                again.append((name, *first))
        if again:
            name, before, earlier = again[0]
            named = f"{where}.{earlier} ({patterns[earlier]!r}) has named" + (
                f" as {before!r}" if before != name else ""
            )
            faults.append(_named_again(place, name, named, len(again)))
    return [name for name, _ in files.values()], faults


def _matches(pattern: str) -> list[tuple[str, str]]:
    """Names and types (``file``, ``directory``) of the files at a path or glob, sorted.

    Brackets may be part of a name: a path with such a name is no glob, and where the brackets of a glob choose between
    characters without finding a file, they are taken as they are.
    """
    filesystem, path = fsspec.core.url_to_fs(pattern)
    if os.path.islink(path) and not os.path.exists(path):
        return [(path, "link")]  # to nothing
    try:
        found = {path: filesystem.info(path)}
    except NOT_THERE:
        found = _glob(filesystem, path)
    if not found and "[" in path:
        found = _glob(filesystem, path.replace("[", "[[]"))
    names = {filesystem.unstrip_protocol(name).removeprefix("file://"): info for name, info in found.items()}
    return [(name, "directory" if _is_folder(names[name]) else names[name]["type"]) for name in sorted(names)]


def _glob(filesystem: AbstractFileSystem, pattern: str) -> dict[str, dict[str, Any]]:
    """Name to what the filesystem knows of it, of all that a glob names. Only ``**`` follows no links.

    The filesystem's own glob would pass over folders that cannot be listed, and their text would be left out without a
    word. It is asked only for ``**`` in an object store, which lists everything as a whole.
    """
    parts = pattern.split("/")
    if "**" in parts and not isinstance(filesystem, LocalFileSystem):
        return filesystem.glob(pattern, detail=True)
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folders = ["/".join(parts[:fixed]) or filesystem.root_marker]
    found: list[dict[str, Any]] = []
    for depth, part in enumerate(parts[fixed:]):
        try:
            if part == "**":
                found = [info for folder in folders for info in _below(filesystem, folder)]
                folders += [info["name"] for info in found if info["type"] == "directory"]
            else:
                found = [info for folder in folders for info in _named(filesystem, folder, part)]
                folders = [info["name"] for info in found if _is_folder(info)]
        except FileNotFoundError:
            if depth:  # it was there a moment ago
                raise
            return {}
    return {info["name"]: info for info in found}


def _named(filesystem: AbstractFileSystem, folder: str, part: str) -> list[dict[str, Any]]:
    """What the filesystem knows of all in a folder that one part of a glob names."""
    if glob.has_magic(part):
        inside = [info for info in _entries(filesystem, folder) if _last_part(info) != LOST_AND_FOUND]
        return [info for info in inside if fnmatchcase(_last_part(info), part)]
    try:  # a folder that may not be listed can still be entered
        return [filesystem.info(f"{folder.rstrip('/')}/{part}")]
    except NOT_THERE:
        return []


def _below(filesystem: AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    """What the filesystem knows of all that lies in a folder, in its folders and so on; links are not followed."""
    found = _named(filesystem, folder, "*")
    inside = [_below(filesystem, info["name"]) for info in found if info["type"] == "directory"]
    return found + [info for infos in inside for info in infos]


def _entries(filesystem: AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    """What the filesystem knows of all that lies in a folder; stores may list the folder itself, too."""
    found = filesystem.ls(folder, detail=True)
    return [info for info in found if info["name"].rstrip("/") != folder.rstrip("/")]


def _is_folder(info: Mapping[str, Any]) -> bool:
    """Whether it is a folder, or a link to one, whose type is ``other`` on a local disk."""
    return info["type"] == "directory" or bool(info.get("islink") and os.path.isdir(info["name"]))


def _last_part(info: Mapping[str, Any]) -> str:
    return info["name"].rstrip("/").rsplit("/", 1)[-1]


def _identity(name: str) -> str:
    """One text for all names of a file: a path without links and ``..``, or the URL."""
    return name if "://" in name else os.path.realpath(name)


def _file_faults(where: str, name: str, kind: str) -> list[Fault]:
    """Everything that keeps a file from being read as a part of the corpus, as far as its name and its type show."""
    if kind == "directory":
        return [Fault(where, f"{name!r} is a folder", f"give the files in it, such as {name}/*.jsonl")]
    faults = [] if kind_of_file(name) in SUFFIXES else [_unknown_kind(where, name)]
    if printable(name) != name:
        faults.append(_not_utf8(where, name))
    return faults if "://" in name else faults + _local_file_faults(where, name)


def _local_file_faults(where: str, name: str) -> list[Fault]:
    if not os.path.exists(name):
        return [Fault(where, f"{printable(name)!r} is a link to nothing", "remove the link, or bring back its file")]
    if not os.path.isfile(name):
        return [Fault(where, f"{printable(name)!r} is no file, but a pipe or a device", "give a file")]
    try:
        is_pointer = is_lfs_pointer(name)
    except OSError as error:
        return [Fault(where, f"{printable(name)!r} cannot be read: {first_line(error)}", "check its permissions")]
    pointer = f"{name!r} is a Git LFS pointer, not the file"
    return [Fault(where, pointer, "fetch it with `git lfs pull`")] if is_pointer else []


def units_of(path: str) -> list[CorpusUnit]:
    """The units of one file; a damaged Parquet file is one unit, and reading it gives the reason.

    Raises:
        StoreError: the file's store has failed again and again.
    """
    if kind_of_file(path) != ".parquet":
        return [CorpusUnit(path, num_bytes=size_of(path))]
    try:
        with opened(path) as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
    except StoreError:
        raise
    except (OSError, pyarrow.ArrowException):
        return [CorpusUnit(path)]
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    return [
        CorpusUnit(path, number, 1 + sum(rows[:number]), group.total_byte_size) for number, group in enumerate(groups)
    ]


def _not_utf8(where: str, path: str) -> Fault:
    """A passage is known by its file's name, which travels as UTF-8."""
    return Fault(where, f"the name of {printable(path)} is not UTF-8", "rename the file")


def _named_again(where: str, name: str, earlier: str, count: int) -> Fault:
    more = f" (the first of {count} files that are named before)" if count > 1 else ""
    passes = "; corpus.passes repeats the whole corpus" if where.startswith("corpus.paths") else ""
    return Fault(where, f"names {name!r} again, which {earlier}{more}", "name every file once" + passes)


def _unknown_kind(where: str, path: str) -> Fault:
    return Fault(
        where, f"{path!r} is of no kind that can be read", "allowed: .parquet, .jsonl, .txt, also .gz and .zst"
    )


def kind_of_file(path: str) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    for suffix in COMPRESSIONS:
        path = path.removesuffix(suffix)
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")
