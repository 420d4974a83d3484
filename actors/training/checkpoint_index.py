"""The checkpoints of a run and their journals, read without the weights and without torch.

Ray Train's controller asks here what has been learned, and starts faster without torch.
"""

from __future__ import annotations

import json
import os
from typing import Any

import fsspec

from engine.history.ledger import Ledger
from engine.history.result import StepRecord

#: The journal of a checkpoint. It is written last: a folder without it is left from a crash.
STATE_FILE = "state.json"


def checkpoints_folder(output_dir: str) -> str:
    """The folder of a run's checkpoints."""
    return os.path.join(output_dir, "checkpoints")


def learned_blocks(output_dir: str) -> Ledger:
    """The ledger of the last complete checkpoint; an empty one if there is none."""
    folder = latest(checkpoints_folder(output_dir))
    return Ledger.of(read_state(folder)["learned"]) if folder else Ledger()


def recorded_steps(output_dir: str) -> list[StepRecord]:
    """The records of all steps up to the last complete checkpoint."""
    folder = latest(checkpoints_folder(output_dir))
    return [record_of(fields) for fields in read_state(folder)["history"]] if folder else []


def record_of(fields: dict[str, Any]) -> StepRecord:
    """A record as it was before JSON turned its tuples into lists."""
    return StepRecord(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def latest(folder: str) -> str | None:
    """The newest complete checkpoint below ``folder``, None if there is none."""
    found = complete(folder)
    return found[-1] if found else None


def complete(folder: str) -> list[str]:
    """Complete checkpoints, oldest first: their names hold the step in digits of one width."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    filesystem.invalidate_cache()
    if not filesystem.exists(path):
        return []
    # Listed, not globbed: a glob finds nothing in a folder with a bracket in its name, and the run would start over.
    names = sorted(name.rstrip("/") for name in filesystem.ls(path, detail=False))
    return [filesystem.unstrip_protocol(name) for name in names if filesystem.exists(os.path.join(name, STATE_FILE))]


def read_state(folder: str) -> dict[str, Any]:
    """The journal of a checkpoint."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    return json.loads(filesystem.cat_file(os.path.join(path, STATE_FILE)))
