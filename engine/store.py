"""Files at any path or fsspec URL, whose store may fail for a moment.

After an error a file is opened again, where its reading has come to: a reader neither loses anything nor reads anything
twice. A file here gives its bytes or raises a ``StoreError``, so any other error of a reader is one of the content. The
types of errors do not tell the two apart: Arrow raises an ``OSError`` for a damaged file, and clients of stores raise
errors that are none. A file that is not there is one that the store denies; where it gives no answer, none is guessed,
as ``exists`` of fsspec would.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

from engine.errors import NoStoreError, StoreError, first_line

Answer = TypeVar("Answer")

#: How often a store is asked, and the seconds until it is asked for the second time; each pause is twice the last one.
TRIES = 6
FIRST_PAUSE_SECONDS = 1.0

#: What stores raise for a file that is not there; any other error leaves open whether it is.
NOT_THERE = (FileNotFoundError, NotADirectoryError)

#: Bytes that are asked for at once where lines are read; stores read further ahead by themselves.
BUFFER_BYTES = 2**16


def located(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a path or URL, and the name in it.

    Raises:
        NoStoreError: the URL's protocol is not known here, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise NoStoreError(f"{url} cannot be reached: {reason}; give a path, or install the fsspec package of its protocol")


@contextmanager
def writing(place: str, what: str) -> Iterator[None]:
    """Say in a sentence why something cannot be written; every store has its own errors.

    Args:
        place: path or URL, and what lies there, for the message.

    Raises:
        StoreError: of any error within.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        remedy = "check its folder, its permissions and the room there, or choose another place"
        raise StoreError(f"{place}: {what} cannot be written: {reason}; {remedy}") from error


def opened(path: str, tries: int = TRIES) -> io.BufferedReader:
    """The bytes of a file; its methods raise a ``StoreError`` if the store fails ``tries`` times in a row."""
    return io.BufferedReader(StoreFile(path, tries), BUFFER_BYTES)


def content(path: str, tries: int = TRIES) -> bytes | None:
    """All bytes of a small file; None if there is none.

    Raises:
        StoreError: the store has failed ``tries`` times.
    """
    filesystem, name = located(path)

    def whole() -> bytes | None:
        try:
            return filesystem.cat_file(name)
        except NOT_THERE:
            return None

    return tried(whole, f"{path}: the file cannot be read", tries)


def is_there(filesystem: AbstractFileSystem, name: str) -> bool:
    """Whether a file or folder exists; an error of the store is no answer."""
    try:
        filesystem.info(name)
        return True
    except NOT_THERE:
        return False


def size_of(path: str) -> int:
    """Bytes of a file; 0 if its store does not know.

    Raises:
        StoreError: the store has failed again and again.
    """

    def size() -> int:
        filesystem, name = located(path)
        return int(filesystem.size(name) or 0)

    return tried(size, f"{path}: the size of the file cannot be read")


class StoreFile(io.RawIOBase):
    """A file that is opened again, where its reading has come to, when its store has failed.

    Args:
        path: file or URL.
        tries: how often it is asked for something before that is given up.
    """

    def __init__(self, path: str, tries: int = TRIES):
        self._path, self._tries = path, tries
        self._file: Any = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, counted as ``io.IOBase.seek`` counts.

        Raises:
            StoreError: the store has failed again and again.
        """
        starts = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: self.tell, os.SEEK_END: lambda: self._ask(_end)}
        self._position = starts[whence]() + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read on, as ``io.RawIOBase.readinto`` does.

        Raises:
            StoreError: the store has failed again and again.
        """
        data = self._ask(lambda file: _read(file, self._position, len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """What the open file answers; after an error another one is opened, whose state is sound."""

        def answer() -> Any:
            try:
                if self._file is None:
                    filesystem, name = located(self._path)
                    self._file = filesystem.open(name, "rb")
                return question(self._file)
            except Exception:
                self._drop()
                raise

        return tried(answer, f"{self._path}: the file cannot be read at byte {self._position}", self._tries)

    def _drop(self) -> None:
        with suppress(Exception):  # it may be broken, and is not used any more
            if self._file is not None:
                self._file.close()
        self._file = None


def _read(file: Any, position: int, count: int) -> bytes:
    """Up to ``count`` bytes of a store's file at a place; none at its end."""
    if file.tell() != position:  # a file that is only streamed cannot seek, not even to where it is
        file.seek(position)
    data = file.read(count)
    size = getattr(file, "size", None)
    if not data and size is not None and position < size:
        raise OSError(f"the file ends there, and should have {size} bytes")
    return data


def _end(file: Any) -> int:
    """Bytes of a store's file."""
    return file.seek(0, os.SEEK_END)


def tried(ask: Callable[[], Answer], failed: str, tries: int = TRIES) -> Answer:
    """What ``ask`` returns, once it raises no error; every store has its own errors, and all may pass.

    Args:
        failed: what is not possible without an answer, for the message.

    Raises:
        StoreError: it has failed ``tries`` times, or to ask again would not help.
    """
    for number in range(tries):
        if number:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (number - 1))
        try:
            return ask()
        except NoStoreError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
    # Outside of the handler, without a cause: a person reads the innermost error, and this one names the file.
    seconds = FIRST_PAUSE_SECONDS * (2 ** (tries - 1) - 1)
    raise StoreError(
        f"{failed}: {reason} (tried {tries} times in {seconds:.0f} s); check that it is there and that this machine "
        f"can read it"
    )
