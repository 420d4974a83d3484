"""Checkpoints: sharded weights, optimizer and journal in one unit, through fsspec; export to Hugging Face format.

A checkpoint is a folder of torch DCP files and ``state.json``, which the first worker writes last. A folder without it
is the remains of a crash and counts for nothing. Training waits until its state is copied, not until it is written.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fsspec
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from actors.training.checkpoint_index import STATE_FILE, complete, read_state
from actors.training.target_model import TargetModel
from engine.errors import TrainingError

#: The weights that are trained: with adapters, nothing of what they stand beside.
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


#: Waits for torch to have written, then says so.
_MARKING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")


class CheckpointWriter:
    """A run's checkpoints, written while training goes on, one at a time; all workers call it alike.

    Args:
        folder: of all checkpoints; local or an fsspec path.
        keep: so many complete ones stay.
    """

    def __init__(self, folder: str, keep: int):
        self._folder, self._keep = folder, keep
        # Its messages pass between the training's, so it has a group of its own; on CPUs, where the copies are.
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[None] | None = None

    def save(self, target: TargetModel, state: dict[str, Any]) -> None:
        """Begin a checkpoint of the target as it is now; waits for the one before.

        Raises:
            OSError: the one before could not be written.
        """
        self.finish()
        self._pending = save(target, os.path.join(self._folder, f"step-{target.step:08d}"), state, self._group)

    def finish(self) -> None:
        """Wait until the checkpoint is complete that was begun last, and delete those that are too old.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None
            prune(self._folder, self._keep)


def save(
    target: TargetModel, folder: str, state: dict[str, Any], group: dist.ProcessGroup | None = None
) -> Future[None]:
    """Copy what one checkpoint holds, and write it in a thread; all workers take part.

    Args:
        folder: local or fsspec path, one for each step.
        state: what JSON can hold; must be equal on all workers.
        group: of all workers, on CPUs; the default one if nothing else uses that until the checkpoint is complete.

    Returns:
        Done when all workers have written, and on the first one not before the checkpoint counts. An ``OSError`` if it
        could not be written: no ``FusionError``, so that Ray Train tries again from the checkpoint before.
    """
    if dist.get_rank() == 0:
        _delete(folder)  # a run that went back to an earlier step comes here again: no old marker beside new files
    dist.barrier()
    written = dcp.async_save(_content(target), storage_writer=FsspecWriter(folder), process_group=group)
    journal = json.dumps({**state, "step": target.step}).encode("utf8")
    return _MARKING.submit(_mark_complete, written, folder, journal, dist.get_rank() == 0)


def _mark_complete(written: Future, folder: str, journal: bytes, is_first: bool) -> None:
    try:
        written.result()
        if is_first:
            filesystem, path = fsspec.core.url_to_fs(folder)
            filesystem.pipe_file(os.path.join(path, STATE_FILE + ".part"), journal)
            filesystem.mv(os.path.join(path, STATE_FILE + ".part"), os.path.join(path, STATE_FILE))
        return
    except (CheckpointException, OSError) as error:
        reason = str(_first_failure(error))
    # Not from the error: the innermost one is what a person reads, and this one names the place.
    raise OSError(f"checkpoint {folder}: cannot be written: {reason}")


def load(target: TargetModel, folder: str) -> dict[str, Any]:
    """Bring weights, optimizer and step back, on any number of workers; returns the state.

    Raises:
        TrainingError: the checkpoint is damaged, or is one of another model.
    """
    content = _content(target)
    try:
        dcp.load(content, storage_reader=FsspecReader(folder))
    except CheckpointException as error:  # a BaseException: it would pass by every handler above
        raise TrainingError(
            f"checkpoint {folder}: does not fit the target model {target.config.model_type}, or is damaged: "
            f"{_first_failure(error)}. Choose another run.output_dir, or delete this checkpoint to go on from the one "
            f"before"
        ) from error
    set_state_dict(
        target.model,
        target.optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=_TRAINED,
    )
    state = read_state(folder)
    target.step = state["step"]
    return state


def _first_failure(error: BaseException) -> BaseException:
    """The error of the first worker that had one, without the traceback that torch writes into its own."""
    failures = getattr(error, "failures", {})
    return next((failure for failure, _ in failures.values()), error)


def _content(target: TargetModel) -> dict[str, Any]:
    """What torch stores: the shards of the trained weights and of the optimizer.

    No states of random generators: the trainer seeds them anew in every step, from the step.
    """
    weights, optimizer = get_state_dict(target.model, target.optimizer, options=_TRAINED)
    return {"model": weights, "optimizer": optimizer}


def prune(folder: str, keep: int) -> None:
    """Delete all but the newest ``keep`` complete checkpoints, and the remains of broken ones; one worker works."""
    if dist.get_rank() == 0:
        filesystem, path = fsspec.core.url_to_fs(folder)
        kept = {os.path.basename(name) for name in complete(folder)[-keep:]}
        for name in filesystem.ls(path, detail=False):
            if os.path.basename(name.rstrip("/")) not in kept:
                _delete(filesystem.unstrip_protocol(name))
    dist.barrier()


def _delete(folder: str) -> None:
    """Delete a checkpoint if it is there, its marker first: what an interruption leaves must not look complete."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    marker = os.path.join(path, STATE_FILE)
    if filesystem.exists(marker):
        filesystem.rm_file(marker)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
