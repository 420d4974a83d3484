"""Counts what a reader takes from local files, in this process or in those of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec.implementations.local
import pyarrow as pa

from pipelines.stream.stages import PassageReaderStage

#: Variable of the environment: the folder in which a reader's process leaves its figure.
FIGURES = "KNOWLEDGE_FUSION_BYTES_READ"


class CountedBytes:
    """Counts the bytes of the lines that are read from local files in the meantime."""

    bytes = 0

    def __enter__(self) -> CountedBytes:
        self._opener = fsspec.implementations.local.LocalFileOpener
        self._readline = self._opener.__dict__.get("readline")

        def counted(file, *arguments):
            line = file.f.readline(*arguments)
            self.bytes += len(line)
            return line

        self._opener.readline = counted
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is None:
            del self._opener.readline
        else:
            self._opener.readline = self._readline


def first_row(rows: Iterator[pa.Table]) -> tuple[pa.Table, int]:
    """The first row of a reader that has read nothing yet, and the bytes of the lines that it reads for it."""
    with CountedBytes() as counted:
        return next(rows), counted.bytes


def count_first_reading() -> None:
    """Let a reader's process leave what it reads before its first row; called in every process of a run."""
    read = PassageReaderStage.__call__

    def counted(stage: PassageReaderStage, task: pa.Table) -> Iterator[pa.Table]:
        rows, figure = read(stage, task), Path(os.environ[FIGURES], str(os.getpid()))
        if not figure.exists():
            row, num_bytes = first_row(rows)
            figure.write_text(str(num_bytes))
            yield row
        yield from rows

    PassageReaderStage.__call__ = counted
