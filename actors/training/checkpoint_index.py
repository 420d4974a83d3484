"""The checkpoints of a run and their journals, read without the weights and without torch.

Ray Train's controller asks here what has been learned, and starts faster without torch. A store that gives no answer is
asked again for minutes: an error in the controller ends it, and a checkpoint that is only out of sight is not
missing, or training would start over.
"""

from __future__ import annotations

import json
import os
from typing import Any

import fsspec

from engine.history.files import read_files, record_of
from engine.history.ledger import Ledger
from engine.history.result import StepRecord
from engine.store import NOT_THERE, is_there, tried

#: The journal of a checkpoint. It is written last: a folder without it is left from a crash.
STATE_FILE = "state.json"

#: How often the store of the checkpoints is asked: for 255 s in all.
TRIES = 9


def checkpoints_folder(output_dir: str) -> str:
    """The folder of a run's checkpoints."""
    return os.path.join(output_dir, "checkpoints")


def learned_blocks(output_dir: str) -> Ledger:
    """The ledger of the last complete checkpoint; an empty one if there is none.

    Raises:
        StoreError: the store has failed for minutes.
    """
    state = _last_state(output_dir)
    return Ledger.of(state["learned"]) if state else Ledger()


def recorded_steps(output_dir: str) -> list[StepRecord]:
    """The records of all steps up to the last complete checkpoint.

    Raises:
        StoreError: the store has failed for minutes.
    """
    state = _last_state(output_dir)
    return history_of(output_dir, state) if state else []


def history_of(output_dir: str, state: dict[str, Any]) -> list[StepRecord]:
    """The records of all steps up to a checkpoint: those in files, and those that its journal ``state`` holds.

    Raises:
        StoreError: the store has failed for minutes, or a file is missing.
    """
    return [*read_files(output_dir, state["steps_in_files"], TRIES), *map(record_of, state["history"])]


def latest(folder: str) -> str | None:
    """The newest complete checkpoint below ``folder``, None if there is none.

    Raises:
        StoreError: the store has failed for minutes.
    """
    found = complete(folder)
    return found[-1] if found else None


def complete(folder: str) -> list[str]:
    """Complete checkpoints, oldest first: their names hold the step in digits of one width.

    Raises:
        StoreError: the store has failed for minutes.
    """
    return tried(lambda: _complete(folder), f"{folder}: the checkpoints cannot be listed", TRIES)


def read_state(folder: str) -> dict[str, Any]:
    """The journal of a checkpoint.

    Raises:
        StoreError: the store has failed for minutes.
    """
    return json.loads(tried(lambda: _journal(folder), f"checkpoint {folder}: its journal cannot be read", TRIES))


def _last_state(output_dir: str) -> dict[str, Any] | None:
    """The journal of the last complete checkpoint of a run; None if there is none."""
    folder = checkpoints_folder(output_dir)

    def journal() -> bytes | None:
        found = _complete(folder)  # looked for in each try: a run that goes on deletes its old ones
        return _journal(found[-1]) if found else None

    found = tried(journal, f"{folder}: the last checkpoint cannot be read", TRIES)
    return None if found is None else json.loads(found)


def _complete(folder: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(folder)
    filesystem.invalidate_cache()
    # Listed, not globbed: a glob finds nothing in a folder with a bracket in its name, and the run would start over.
    try:
        names = sorted(name.rstrip("/") for name in filesystem.ls(path, detail=False))
    except NOT_THERE:
        return []
    return [filesystem.unstrip_protocol(name) for name in names if is_there(filesystem, os.path.join(name, STATE_FILE))]


def _journal(folder: str) -> bytes:
    filesystem, path = fsspec.core.url_to_fs(folder)
    return filesystem.cat_file(os.path.join(path, STATE_FILE))
