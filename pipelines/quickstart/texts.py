"""The standard library as two domains of text: ``docs``, its documentation, and ``code``, its source.

Both come from the folder of the running Python alone, so the build needs no network. Docs are documentation strings
and the language topics of ``pydoc``; code is source without comments and documentation strings, so that neither domain
contains the other. Text is split by *module*: docs and code of a module go to one part, so no model has read the
neighbour of a held-out passage. The price is 7 % of the text: parts of a module beyond the quota of its part, and
repetitions of an earlier part.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

DOMAINS = ("docs", "code")

#: Tests, tables, copies of other code, and modules that depend on the build of this Python.
LEFT_OUT = {"__phello__", "encodings", "ensurepip", "html/entities.py", "pydoc_data", "site-packages", "stringprep.py"}
LEFT_OUT |= {"distutils", "idle_test", "lib2to3", "msilib", "test", "tests", "this.py"}

TABLE_BYTES = 1000
"""A top-level assignment of more bytes than this is a table of data, not a program."""

DOCUMENT_BYTES = 1000
"""Neighbouring definitions or docstrings are joined until a document has this many bytes; a long one stays whole."""

SHORTEST_BYTES = 200
"""A shorter rest at the end of a module joins the document before it."""

LARGEST_SHARE = 3
"""A part takes no module larger than this fraction of its quota, so that no subject fills it."""

LONG_LINE_CHARACTERS = 30
LARGEST_COPIED_SHARE = 0.15
"""A document is dropped if an earlier part has more than this share of its long lines."""


@dataclass(frozen=True)
class Document:
    """One document; ``name`` is its module or topic and its number there, never a local path."""

    name: str
    domain: str
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode("utf8"))


def split_documents(quotas: dict[str, int], rest: str, seed: int) -> dict[str, list[Document]]:
    """Deal the modules out to named parts.

    Args:
        quotas: part to the number of bytes it takes of each domain; parts are filled in this order.
        rest: the part that takes all other modules.
        seed: of the order in which modules are dealt.

    Returns:
        Part to its documents, ordered by module and not shuffled.
    """
    parts: dict[str, list[Document]] = {name: [] for name in (*quotas, rest)}
    taken = {(name, domain): 0 for name in quotas for domain in DOMAINS}
    for module in _shuffled_modules(seed):
        part = next((name for name, quota in quotas.items() if _has_room(module, name, taken, quota)), rest)
        for document in module:
            if part == rest:
                parts[part].append(document)
            elif taken[part, document.domain] < quotas[part]:
                parts[part].append(document)
                taken[part, document.domain] += document.num_bytes
    return _without_copies(parts)


def _without_copies(parts: dict[str, list[Document]]) -> dict[str, list[Document]]:
    """Drop documents that repeat an earlier part: the library copies from itself in places."""
    earlier: set[str] = set()
    kept = {}
    for part, documents in parts.items():
        kept[part] = [document for document in documents if _copied_share(document, earlier) <= LARGEST_COPIED_SHARE]
        earlier.update(line for document in kept[part] for line in _long_lines(document))
    return kept


def _copied_share(document: Document, earlier: set[str]) -> float:
    lines = _long_lines(document)
    return sum(line in earlier for line in lines) / max(1, len(lines))


def _long_lines(document: Document) -> list[str]:
    """The lines that are long enough to identify their place."""
    lines = [line.strip() for line in document.text.split("\n")]
    return [line for line in lines if len(line) >= LONG_LINE_CHARACTERS]


def cut(text: str, sizes: Iterator[int]) -> Iterator[str]:
    """Cut a text into passages: each at most the next size in characters, and ending before white space if possible."""
    start = 0
    while start < len(text):
        end = start + next(sizes)
        if end < len(text):
            end = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end)) + 1 or end
            end -= text[end - 1].isspace()
        yield text[start:end]
        start = end


def _has_room(module: list[Document], part: str, taken: dict[tuple[str, str], int], quota: int) -> bool:
    """Whether the part still needs text of a domain of this module, and the module is not too large for it."""
    is_small = sum(document.num_bytes for document in module) * LARGEST_SHARE <= quota
    return is_small and any(taken[part, document.domain] < quota for document in module)


def _shuffled_modules(seed: int) -> list[list[Document]]:
    """All documents by module, in an order that depends on names and seed, never on the disk."""
    seen: set[str] = set()
    modules = []
    for name, documents in (*_library_modules(), *_topics()):
        fresh = [document for document in documents if _is_new(document.text, seen)]
        if fresh:
            modules.append((hashlib.sha256(f"{seed}/{name}".encode()).hexdigest(), fresh))
    return [documents for _, documents in sorted(modules, key=lambda item: item[0])]


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether this text is new, apart from white space and letter case."""
    digest = hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
    is_new = digest not in seen
    seen.add(digest)
    return is_new


def _topics() -> Iterator[tuple[str, list[Document]]]:
    for name, text in sorted(topics.items()):
        yield f"topic/{name}", _documents(f"topic/{name}", "docs", text.strip().split("\n\n"), "\n\n")


def _library_modules() -> Iterator[tuple[str, list[Document]]]:
    """Name and documents of every module of the standard library that can be read and parsed."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.isdisjoint((*relative.parts, relative.as_posix())) and not relative.name.startswith("_sysconfig"):
            source = _read(path)
            if source is not None:
                yield relative.as_posix(), _module_documents(relative.as_posix(), source)


def _read(path: Path) -> str | None:
    """The module's text; None for the few files that are broken on purpose or in an old encoding."""
    try:
        source = path.read_text(encoding="utf8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return None
    return source.expandtabs()


def _module_documents(name: str, source: str) -> list[Document]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    docs = _documents(name, "docs", [inspect.cleandoc(node.value) for node in _docstrings(tree)], "\n\n")
    return docs + _documents(name, "code", _definitions(source, tree), "\n")


def _documents(name: str, domain: str, pieces: Iterable[str], joint: str) -> list[Document]:
    """Pieces of one module, joined in order to documents of a useful size."""
    texts: list[str] = []
    pending: list[str] = []
    for piece in filter(str.strip, pieces):
        pending.append(piece.rstrip())
        if len(joint.join(pending)) >= DOCUMENT_BYTES:
            texts.append(joint.join(pending))
            pending = []
    remainder = joint.join(pending)
    if texts and len(remainder) < SHORTEST_BYTES:
        texts[-1] = joint.join([texts[-1], *pending])
    elif len(remainder) >= SHORTEST_BYTES:
        texts.append(remainder)
    return [Document(f"{domain}/{name}/{number}", domain, text.strip("\n")) for number, text in enumerate(texts)]


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """The documentation strings of a module and of its definitions, in the order of the text."""
    found = [owner.body[0].value for owner in _owners(tree)]
    yield from sorted(found, key=lambda constant: constant.lineno)


def _owners(tree: ast.Module) -> list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The module, classes and functions that begin with a documentation string."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node) is not None]


def _definitions(source: str, tree: ast.Module) -> Iterator[str]:
    """Top-level statements as they stand in the file, without comments, documentation strings and tables."""
    lines = _without_remarks(source, tree)
    for node in tree.body:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        text = "\n".join(line for line in lines[first - 1 : node.end_lineno] if line is not None)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield "\n" + text
        elif len(text) <= TABLE_BYTES or not isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
            yield text


def _without_remarks(source: str, tree: ast.Module) -> list[str | None]:
    """The lines of a module, None for lines of comments and documentation strings alone."""
    original = source.split("\n")
    lines: list[str | None] = list(original)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() or None
    for owner in _owners(tree):
        constant = owner.body[0].value
        first = constant.lineno - 1
        if original[first][: constant.col_offset].strip():
            continue  # on the line of its ``def``
        lines[first : constant.end_lineno] = [None] * (constant.end_lineno - first)
        if len(owner.body) == 1:  # a body must not become empty
            lines[first] = " " * constant.col_offset + "pass"
    return lines
