"""The journal: what a checkpoint carries beside the weights."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed

from actors.training import checkpoints
from actors.training.checkpoint_index import checkpoints_folder, latest
from actors.training.target_model import TargetModel
from engine.history.ledger import Ledger
from engine.history.result import StepRecord


@dataclass
class Journal:
    """What a checkpoint carries beside the weights.

    Attributes:
        history: the records of all steps.
        ledger: the passages of all checkpoints so far, over all workers.
        fresh: passages that this worker has learned since the last checkpoint.
        began: when the training would have begun, by ``time.monotonic``, had it never been interrupted.
    """

    history: list[StepRecord] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    fresh: list[str] = field(default_factory=list)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.monotonic() - (self.history[-1].elapsed_seconds if self.history else 0.0)


def restore(target: TargetModel, output_dir: str) -> Journal:
    """Bring the target to the last complete checkpoint and return its journal; a new one if there is none."""
    folder = latest(checkpoints_folder(output_dir))
    if folder is None:
        return Journal()
    state = checkpoints.load(target, folder)
    return Journal([_step_record(record) for record in state["history"]], Ledger(state["learned"]))


def commit(target: TargetModel, journal: Journal, writer: checkpoints.CheckpointWriter) -> None:
    """Save weights, optimizer and journal as one checkpoint; all workers take part."""
    shares: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, journal.fresh)
    for share in shares:
        journal.ledger.learn(share)
    journal.fresh.clear()
    history = [asdict(record) for record in journal.history]
    writer.save(target, {"history": history, "learned": journal.ledger.passage_ids()})


def _step_record(fields: dict[str, Any]) -> StepRecord:
    """A record as it was before JSON turned its tuples into lists."""
    return StepRecord(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
