"""Checkpoints: sharded weights, optimizer and journal in one unit, through fsspec.

A checkpoint is a folder of torch DCP files and ``state.json``, which the first worker writes last. A folder without
``state.json`` is left from a crash and does not count. Training waits until its state is copied, not until it is on
disk.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, BinaryIO

import fsspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from actors.training.checkpoint_index import STATE_FILE, TRIES, complete, read_state
from actors.training.target_model import TargetModel
from engine.errors import StoreError, TrainingError
from engine.store import is_there, opened

#: The weights that are trained: of a model with adapters the adapters alone.
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)

#: The thread that waits until torch has written a checkpoint, then marks it complete.
_MARKING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")


class CheckpointWriter:
    """Writes a run's checkpoints while training goes on, one at a time; all workers call it at the same steps.

    Args:
        folder: of all checkpoints; local or an fsspec path.
        keep: number of complete checkpoints to keep.
        timeout_hours: the longest wait for the slowest worker's files.
        when_complete: called with the step of each complete checkpoint, on the first worker, in another thread.
    """

    def __init__(
        self, folder: str, keep: int, timeout_hours: float, when_complete: Callable[[int], None] = lambda step: None
    ):
        self._folder, self._keep, self._when_complete = folder, keep, when_complete
        # A group of its own, since its messages pass between those of training; on CPUs, where the copies are.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=timeout_hours))
        self._pending: Future[None] | None = None

    def save(self, target: TargetModel, state: dict[str, Any], before_complete: Callable[[], None]) -> None:
        """Begin a checkpoint of the target as it is now, after the last one is complete; see ``save``.

        Raises:
            OSError: the last one could not be written.
        """
        self.finish()
        folder = os.path.join(self._folder, f"step-{target.step:08d}")
        when_complete = partial(self._when_complete, target.step)
        self._pending = save(target, folder, state, self._group, before_complete, when_complete)

    def finish(self) -> None:
        """Wait until the last checkpoint is complete, then delete those that are too old.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None
            prune(self._folder, self._keep)


def save(
    target: TargetModel,
    folder: str,
    state: dict[str, Any],
    group: dist.ProcessGroup | None = None,
    before_complete: Callable[[], None] = lambda: None,
    when_complete: Callable[[], None] = lambda: None,
) -> Future[None]:
    """Copy the target's state and write it as one checkpoint in a thread; all workers take part.

    Args:
        folder: local or fsspec path, one for each step.
        state: values that JSON can hold, equal on all workers.
        group: of all workers, on CPUs; None takes the default group, which nothing else may use before the checkpoint
            is complete.
        before_complete: called on the first worker, in another thread, before the checkpoint counts; writes what the
            state refers to.
        when_complete: called on the first worker when the checkpoint is complete, in another thread.

    Returns:
        A future that is done when all workers have written; on the first worker, when the checkpoint is complete. Its
        error is an ``OSError``, not a ``FusionError``: Ray Train then tries again from the last complete checkpoint.
    """
    if dist.get_rank() == 0:
        _delete(folder)  # left by a start that came further: its old marker must not stand beside new files
    dist.barrier()
    written = dcp.async_save(_content(target), storage_writer=FsspecWriter(folder), process_group=group)
    own_state = {"step": target.step, "first_pass": target.first_pass.tolist()}
    journal = json.dumps({**state, **own_state}).encode("utf8")
    return _MARKING.submit(
        _mark_complete, written, folder, journal, dist.get_rank() == 0, before_complete, when_complete
    )


def _mark_complete(
    written: Future,
    folder: str,
    journal: bytes,
    is_first: bool,
    before_complete: Callable[[], None],
    when_complete: Callable[[], None],
) -> None:
    try:
        written.result()
        if is_first:
            before_complete()
            filesystem, path = fsspec.core.url_to_fs(folder)
            filesystem.pipe_file(os.path.join(path, STATE_FILE + ".part"), journal)
            filesystem.mv(os.path.join(path, STATE_FILE + ".part"), os.path.join(path, STATE_FILE))
            when_complete()
        return
    except (CheckpointException, OSError) as error:
        reason = str(_first_failure(error))
    # Without a cause: a person reads the innermost error, and this one names the place.
    raise OSError(f"checkpoint {folder}: cannot be written: {reason}")


def load(target: TargetModel, folder: str) -> dict[str, Any]:
    """Load weights, optimizer and step on any number of workers; returns the state.

    Raises:
        TrainingError: the checkpoint is damaged or belongs to another model.
        StoreError: its store has failed for minutes, on this worker or another; Ray Train starts the workers again.
    """
    content = _content(target)
    _read(content, target, folder)
    set_state_dict(
        target.model,
        target.optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=_TRAINED,
    )
    state = read_state(folder)
    target.step = state["step"]
    if "first_pass" in state:  # else a checkpoint of before there were such sums: further passes learn the text alone
        target.first_pass.copy_(torch.tensor(state["first_pass"], dtype=torch.float64))
    return state


def _read(content: dict[str, Any], target: TargetModel, folder: str) -> None:
    """Fill tensors of this worker with what the checkpoint has for them."""
    try:
        dcp.load(content, storage_reader=_CheckpointReader(folder))
        return
    except CheckpointException as error:  # a BaseException, which no handler of Exception further up would catch
        failures = [failure for failure, _ in error.failures.values()]
        lost = next((failure for failure in failures if isinstance(failure, StoreError)), None)
        if lost is None:
            raise TrainingError(
                f"checkpoint {folder}: does not fit the target model {target.config.model_type}, or is damaged: "
                f"{_first_failure(error)}. Choose another run.output_dir, or delete this checkpoint to go on from "
                f"the one before"
            ) from error
    raise StoreError(str(lost))  # without a cause: a person reads the innermost error


class _CheckpointReader(FsspecReader):
    """Reads a checkpoint, each file again where its store has failed; torch's own has one try.

    Raises:
        StoreError: the store has failed for minutes.
    """

    def __init__(self, folder: str):
        super().__init__(folder)
        self.fs = _StoreFiles()
        # Read before torch asks for it: there any error of the store would become one of torch's own.
        with self.fs.create_stream(self._get_metadata_path(), "rb") as file:
            self._metadata = file.read()

    def read_metadata(self) -> Metadata:
        """The shards that the checkpoint has."""
        return pickle.loads(self._metadata)


class _StoreFiles(FileSystem):
    """The files of a store as torch asks for them, only to be read."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[BinaryIO]:
        """A file that is opened again after an error."""
        with opened(os.fspath(path), TRIES) as file:
            yield file


def _first_failure(error: BaseException) -> BaseException:
    """The error of the first worker that failed, without the traceback that torch writes into its message."""
    failures = getattr(error, "failures", {})
    return next((failure for failure, _ in failures.values()), error)


def _content(target: TargetModel) -> dict[str, Any]:
    """The shards of the trained weights and of the optimizer, which torch stores.

    States of random generators are left out: the training loop seeds them in every step, from the step's number.
    """
    weights, optimizer = get_state_dict(target.model, target.optimizer, options=_TRAINED)
    return {"model": weights, "optimizer": optimizer}


def prune(folder: str, keep: int) -> None:
    """Delete all but the newest ``keep`` complete checkpoints; the first worker works, the others wait for it."""
    if dist.get_rank() == 0:
        filesystem, path = fsspec.core.url_to_fs(folder)
        kept = {os.path.basename(name) for name in complete(folder)[-keep:]}
        for name in filesystem.ls(path, detail=False):
            if os.path.basename(name.rstrip("/")) not in kept:
                _delete(filesystem.unstrip_protocol(name))
    dist.barrier()


def _delete(folder: str) -> None:
    """Delete a checkpoint if it exists, its marker first: an interruption must not leave one that looks complete."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    marker = os.path.join(path, STATE_FILE)
    if is_there(filesystem, marker):
        filesystem.rm_file(marker)
    if is_there(filesystem, path):
        filesystem.rm(path, recursive=True)
