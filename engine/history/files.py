"""The records of a run's steps in files of many steps, which do not change once a checkpoint counts on them.

A checkpoint holds the records after the last full file, so that neither its size nor the time to write it grows with
the run. A file is whole before the checkpoint is complete that counts on it. One that no complete checkpoint counts on
is left from a crash; the run comes to its steps again and replaces it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import fsspec

from engine.errors import StoreError
from engine.history.result import StepRecord
from engine.store import content

#: Steps of one file.
STEPS_IN_FILE = 1000


def steps_in_files(num_steps: int) -> int:
    """How many of a run's first steps are in full files; the last step never is, for it may be evaluated later."""
    return max(0, num_steps - 1) // STEPS_IN_FILE * STEPS_IN_FILE


def write_files(output_dir: str, first: int, records: Sequence[StepRecord]) -> None:
    """Write the records of full files.

    Args:
        output_dir: of the run; a path or fsspec URL.
        first: steps in the files before.
        records: of the steps after those; a multiple of ``STEPS_IN_FILE``.

    Raises:
        OSError: a file cannot be written.
    """
    for start in range(0, len(records), STEPS_IN_FILE):
        lines = [json.dumps(asdict(record)) for record in records[start : start + STEPS_IN_FILE]]
        filesystem, path = fsspec.core.url_to_fs(_file(output_dir, first + start))
        filesystem.makedirs(os.path.dirname(path), exist_ok=True)
        filesystem.pipe_file(f"{path}.part", "\n".join(lines).encode("utf8"))
        filesystem.mv(f"{path}.part", path)


def read_files(output_dir: str, num_steps: int, tries: int) -> list[StepRecord]:
    """The records of a run's first ``num_steps`` steps, which are in full files.

    Raises:
        StoreError: a file is missing, or its store has failed ``tries`` times.
    """
    records: list[StepRecord] = []
    for first in range(0, num_steps, STEPS_IN_FILE):
        path = _file(output_dir, first)
        lines = content(path, tries)
        if lines is None:
            raise StoreError(f"{path}: the run's last checkpoint counts on this file, and it is missing; restore it")
        records += [record_of(json.loads(line)) for line in lines.splitlines()]
    return records


def record_of(fields: dict[str, Any]) -> StepRecord:
    """A record as it was before JSON turned its tuples into lists."""
    return StepRecord(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _file(output_dir: str, steps_before: int) -> str:
    return os.path.join(output_dir, "history", f"steps-{steps_before + 1:08d}.jsonl")
