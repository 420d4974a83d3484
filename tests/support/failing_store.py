"""A store of files at ``failing://NAME`` that fails where a test says so, and works before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from engine import store

#: Bytes that a file of the store fetches at once, and that readers ask for, so that small files are many reads.
BLOCK_BYTES = 1000


class PayloadError(Exception):
    """As clients of stores raise them: no ``OSError``."""


class FailingStore(AbstractFileSystem):
    """Files in memory; all that it holds is of the class, for fsspec makes a filesystem for each thread.

    Attributes:
        files: name to bytes.
        asked: how often each kind of question was asked since a test chose what fails: ``info``, ``list``,
            ``open`` and ``read``.
        failing: kind of question to the numbers, from 1, of those that fail.
        error: that they raise.
    """

    protocol = "failing"
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[Counter[str]] = Counter()
    failing: ClassVar[dict[str, Collection[int]]] = {}
    error: ClassVar[Exception] = PayloadError()

    @classmethod
    def write(cls, name: str, data: bytes) -> str:
        """Add a file; returns its URL."""
        cls.files[name] = data
        return f"{cls.protocol}://{name}"

    @classmethod
    def fail(cls, error: Exception | None = None, **failing: Collection[int]) -> None:
        """From now on, let the questions of some kinds fail that have these numbers."""
        cls.asked.clear()
        cls.failing = failing
        cls.error = error or PayloadError("Response payload is not completed")

    @classmethod
    def answer(cls, kind: str) -> None:
        """Count a question, and fail where a test says so."""
        cls.asked[kind] += 1
        if cls.asked[kind] in cls.failing.get(kind, ()):
            raise cls.error

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.answer("info")
        name = self._strip_protocol(path)
        if any(other.startswith(f"{name}/") for other in self.files):
            return {"name": name, "size": 0, "type": "directory"}
        if name not in self.files:
            raise FileNotFoundError(name)
        return {"name": name, "size": len(self.files[name]), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self.answer("list")
        folder = f"{self._strip_protocol(path)}/"
        inside = [(name, name.removeprefix(folder).split("/")) for name in self.files if name.startswith(folder)]
        found = {
            folder + first: {"name": folder + first, "type": "directory", "size": 0}
            if rest
            else {"name": name, "type": "file", "size": len(self.files[name])}
            for name, (first, *rest) in inside
        }
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> FailingFile:
        self.answer("open")
        if path not in self.files:
            raise FileNotFoundError(path)
        return FailingFile(self, path, mode, block_size=BLOCK_BYTES, size=len(self.files[path]))


class FailingFile(AbstractBufferedFile):
    """A file of the store; after an error it is of no use any more, like a lost connection."""

    is_broken = False

    def read(self, length: int = -1) -> bytes:
        """Less than is asked for, as a connection gives it."""
        return super().read(BLOCK_BYTES if length > BLOCK_BYTES else length)

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self.is_broken:
            raise ValueError("read of a broken file")
        self.is_broken = True
        self.fs.answer("read")
        self.is_broken = False
        return self.fs.files[self.path][start:end]


@contextmanager
def failing_store() -> Iterator[type[FailingStore]]:
    """An empty store, which readers ask again without a pause."""
    fsspec.register_implementation(FailingStore.protocol, FailingStore, clobber=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "FIRST_PAUSE_SECONDS", 0.0)
        patch.setattr(store, "BUFFER_BYTES", BLOCK_BYTES)
        FailingStore.files.clear()
        FailingStore.fail()
        yield FailingStore
