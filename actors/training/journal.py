"""The journal of a run: what a checkpoint holds besides the weights."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import torch.distributed as dist

from actors.training.checkpoint_index import checkpoints_folder, latest, record_of
from actors.training.checkpoints import CheckpointWriter, load
from actors.training.target_model import TargetModel
from engine.history.ledger import Ledger
from engine.history.result import StepRecord


@dataclass
class Journal:
    """The steps and passages of a run so far, on one worker.

    Attributes:
        history: the records of all steps, the same on all workers.
        ledger: passages of the last checkpoint, over all workers.
        fresh: passages that this worker has learned since the last checkpoint.
        saved_step: the step of the last checkpoint; 0 if there is none.
        began: ``time.monotonic`` at which training would have begun without any interruption.
    """

    history: list[StepRecord] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    fresh: list[str] = field(default_factory=list)
    saved_step: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.monotonic() - (self.history[-1].elapsed_seconds if self.history else 0.0)

    def add(self, record: StepRecord, passage_ids: Iterable[str]) -> None:
        """Add one step and the passages that this worker has learned in it."""
        self.history.append(record)
        self.fresh += passage_ids


def restore(target: TargetModel, output_dir: str) -> Journal:
    """Bring the target to the last complete checkpoint and return its journal; an empty one if there is none."""
    folder = latest(checkpoints_folder(output_dir))
    if folder is None:
        return Journal()
    state = load(target, folder)
    history = [record_of(fields) for fields in state["history"]]
    return Journal(history, Ledger(state["learned"]), saved_step=target.step)


def commit(target: TargetModel, journal: Journal, writer: CheckpointWriter) -> None:
    """Save weights, optimizer and journal as one checkpoint; all workers take part."""
    shares: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, journal.fresh)
    for share in shares:
        journal.ledger.learn(share)
    journal.fresh.clear()
    history = [asdict(record) for record in journal.history]
    writer.save(target, {"history": history, "learned": journal.ledger.passage_ids()})
    journal.saved_step = target.step
