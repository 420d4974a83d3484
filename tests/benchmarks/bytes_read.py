"""Counts what a reader takes from files, in this process or in those of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa

from engine.corpus import documents
from pipelines.stream.stages import PassageReaderStage

#: Variable of the environment: the folder in which a reader's process leaves its figure.
FIGURES = "KNOWLEDGE_FUSION_BYTES_READ"


class CountedBytes:
    """Counts the bytes of the lines that are read in the meantime, of files in which reading can begin anywhere."""

    bytes = 0

    def __enter__(self) -> CountedBytes:
        self._open = documents._open

        @contextmanager
        def counted(path: str) -> Iterator[SimpleNamespace]:
            with self._open(path) as file:
                yield SimpleNamespace(seek=file.seek, readline=lambda: self._count(file.readline()))

        documents._open = counted
        return self

    def __exit__(self, *_: object) -> None:
        documents._open = self._open

    def _count(self, line: bytes) -> bytes:
        self.bytes += len(line)
        return line


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
