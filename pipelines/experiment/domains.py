"""The three domains of setting B, each cut into short documents and dealt out to parts that share no file.

By default they are docstrings and code of the running Python's standard library and the C++ headers of the installed
PyTorch, which every machine with the engine has; with ``--corpora`` the three largest files of a folder.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from engine.corpus.documents import read_documents
from engine.corpus.files import find_files, units_of
from pipelines.quickstart.texts import Document, cut, split_documents

#: Folders of PyTorch's hand-written headers; the others are generated or belong to other projects.
HEADER_FOLDERS = ("c10", "torch/csrc", "ATen/core", "ATen/native")

DOCUMENT_CHARACTERS = 1500
"""A longer document is cut, so that a part has many documents of many files."""

LARGEST_SHARE = 6
"""A file gives a part at most its quota divided by this."""

NUM_DOMAINS = 3

#: A domain's documents by file: files are dealt out whole, so that no two parts share one.
Files = Iterable[Sequence[Document]]


def deal(
    files: Files, quotas: Mapping[str, int], seed: int, largest_share: int = LARGEST_SHARE
) -> dict[str, list[Document]]:
    """Fill parts in order with the files of one domain; the order of the files depends on names and seed alone.

    Args:
        largest_share: a file gives a part at most its quota divided by this.
        quotas: part to bytes. A file that is too large for its part gives its beginning; the rest is left out.
    """
    parts: dict[str, list[Document]] = {name: [] for name in quotas}
    taken = dict.fromkeys(quotas, 0)
    named = [(hashlib.sha256(f"{seed}/{file[0].name}".encode()).hexdigest(), file) for file in files if file]
    for _, file in sorted(named, key=lambda item: item[0]):
        part = next((name for name, quota in quotas.items() if taken[name] < quota), None)
        if part is None:
            break
        sizes = itertools.accumulate(document.num_bytes for document in file)
        fitting = sum(size <= quotas[part] // largest_share for size in sizes)
        parts[part] += file[:fitting]
        taken[part] += sum(document.num_bytes for document in file[:fitting])
    return parts


def default_domains(quotas: Mapping[str, int], seed: int) -> dict[str, dict[str, list[Document]]]:
    """Domain to part to documents: ``docs`` and ``code`` of the standard library, ``headers`` of PyTorch."""
    # Both domains of a module go to one part, as in the quickstart.
    library = split_documents(dict(quotas), "left out", seed)
    found = {
        domain: {
            part: [piece for document in library[part] if document.domain == domain for piece in _pieces(document)]
            for part in quotas
        }
        for domain in ("docs", "code")
    }
    return found | {"headers": deal(_headers(), quotas, seed)}


def folder_domains(folder: Path, quotas: Mapping[str, int], seed: int) -> dict[str, dict[str, list[Document]]]:
    """Domain to part to documents: the three largest files of a folder; each needs a column ``text``.

    Raises:
        ValueError: the folder has fewer than three .parquet and .jsonl files.
    """
    paths = sorted(folder.glob("*.parquet")) + sorted(folder.glob("*.jsonl"))
    if len(paths) < NUM_DOMAINS:
        raise ValueError(f"{folder} has {len(paths)} .parquet and .jsonl files; setting B needs {NUM_DOMAINS} domains")
    largest = sorted(paths, key=lambda path: -path.stat().st_size)[:NUM_DOMAINS]
    return {path.stem: deal(rows_of(path), quotas, seed) for path in sorted(largest)}


def _headers() -> Iterator[list[Document]]:
    spec = find_spec("torch")
    include = Path(spec.origin).parent / "include"
    for path in sorted(itertools.chain.from_iterable((include / folder).rglob("*.h") for folder in HEADER_FOLDERS)):
        name = f"headers/{path.relative_to(include).as_posix()}"
        yield list(_pieces(Document(name, "headers", path.read_text(encoding="utf8", errors="ignore").strip())))


def rows_of(path: Path) -> Iterator[list[Document]]:
    """The rows of one file, each cut into short documents."""
    [file], _ = find_files([str(path)], "CORPORA")
    for unit in units_of(file):
        for found in read_documents(unit, "text"):
            yield list(_pieces(Document(f"{path.stem}/{found.row}", path.stem, found.text)))


def _pieces(document: Document) -> Iterator[Document]:
    for number, text in enumerate(cut(document.text, itertools.repeat(DOCUMENT_CHARACTERS))):
        if text.strip():
            yield Document(f"{document.name}/{number}", document.domain, text)
