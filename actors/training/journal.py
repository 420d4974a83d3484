"""The journal of a run: what a checkpoint holds besides the weights."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch.distributed as dist

from actors.training.checkpoint_index import checkpoints_folder, history_of, latest
from actors.training.checkpoints import CheckpointWriter, load
from actors.training.target_model import TargetModel
from engine.history.files import steps_in_files, write_files
from engine.history.ledger import ENTRY_NUMBERS, Ledger
from engine.history.result import StepRecord


@dataclass
class Journal:
    """The steps and training blocks of a run so far, on one worker.

    Attributes:
        history: the records of all steps, the same on all workers.
        ledger: training blocks of the last checkpoint, over all workers.
        fresh: ledger entries of the blocks that this worker has learned since the last checkpoint, int64 [M,E] a step.
        saved_step: the step of the last checkpoint; 0 if there is none.
        in_files: how many of the first records are in files (``engine.history.files``).
        began: ``time.monotonic`` at which training would have begun without any interruption.
    """

    history: list[StepRecord] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    fresh: list[np.ndarray] = field(default_factory=list)
    saved_step: int = 0
    in_files: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.monotonic() - (self.history[-1].elapsed_seconds if self.history else 0.0)

    def add(self, record: StepRecord, entries: np.ndarray) -> None:
        """Add one step and the ledger entries of the blocks that this worker has learned in it."""
        self.history.append(record)
        self.fresh.append(entries)


def restore(target: TargetModel, output_dir: str) -> Journal:
    """Bring the target to the last complete checkpoint and return its journal; an empty one if there is none."""
    folder = latest(checkpoints_folder(output_dir))
    if folder is None:
        return Journal()
    state = load(target, folder)
    history, ledger = history_of(output_dir, state), Ledger.of(state["learned"])
    return Journal(history, ledger, saved_step=target.step, in_files=state["steps_in_files"])


def commit(target: TargetModel, journal: Journal, writer: CheckpointWriter, output_dir: str) -> None:
    """Save weights, optimizer and journal as one checkpoint; all workers take part."""
    own = np.concatenate([np.empty((0, ENTRY_NUMBERS), np.int64), *journal.fresh])
    of_workers: list[np.ndarray] = [own] * dist.get_world_size()
    dist.all_gather_object(of_workers, own)
    journal.ledger.learn(np.concatenate(of_workers))
    journal.fresh.clear()
    in_files = steps_in_files(len(journal.history))
    state = {
        "steps_in_files": in_files,
        "history": [asdict(record) for record in journal.history[in_files:]],
        "learned": journal.ledger.state(),
    }
    full = partial(write_files, output_dir, journal.in_files, journal.history[journal.in_files : in_files])
    writer.save(target, state, full)
    journal.saved_step, journal.in_files = target.step, in_files
