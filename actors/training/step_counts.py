"""What one optimizer step has learned, summed over its blocks and over all workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed

from actors.training.collectives import of_all_workers
from actors.training.target_model import StepLosses
from engine.history.result import StepRecord
from engine.records import flat_values


@dataclass(frozen=True)
class StepCounts:
    """Sums over the blocks of one step; ``per_source`` is [5, N]: nats, bytes, wins, covered rows, left out."""

    tokens: int
    passages: int
    bytes: int
    places: int
    per_source: np.ndarray


def count(table: pa.Table | None, num_sources: int) -> StepCounts:
    """The sums that a step's record shows, over this worker's blocks."""
    if table is None:
        return StepCounts(0, 0, 0, 0, np.zeros((5, num_sources)))
    num_bytes = flat_values(table["passage_bytes"])[0]
    shape = (len(num_bytes), num_sources)
    cross_entropy = flat_values(table["cross_entropy"])[0].reshape(shape)
    scored = np.isfinite(cross_entropy)
    per_source = np.stack(
        [
            (np.where(scored, cross_entropy, 0.0) * num_bytes[:, None]).sum(0),
            (scored * num_bytes[:, None]).sum(0),
            flat_values(table["win_share"])[0].reshape(shape).sum(0),
            flat_values(table["covered_rows"])[0].reshape(shape).sum(0),
            (~scored).sum(0),
        ]
    )
    return StepCounts(
        tokens=int(flat_values(table["passage_tokens"])[0].sum()),
        passages=len(num_bytes),
        bytes=int(num_bytes.sum()),
        places=len(flat_values(table["input_ids"])[0]),
        per_source=per_source,
    )


def over_workers(counts: StepCounts, wait_seconds: float, device: torch.device) -> tuple[StepCounts, float]:
    """Counts summed over the workers, and the longest wait."""
    scalars = [counts.tokens, counts.passages, counts.bytes, counts.places]
    mine = torch.tensor([wait_seconds, *scalars, *counts.per_source.ravel()], dtype=torch.float64, device=device)
    every = of_all_workers(mine).cpu().numpy()
    values = every[:, 1:].sum(axis=0)
    per_source = values[len(scalars) :].reshape(counts.per_source.shape)
    return StepCounts(*(int(value) for value in values[: len(scalars)]), per_source), float(every[:, 0].max())


def step_record_of(
    step: int, losses: StepLosses, counts: StepCounts, seconds: float, wait_seconds: float
) -> StepRecord:
    nats, num_bytes, wins, covered_rows, left_out = counts.per_source
    return StepRecord(
        step=step,
        loss=losses.loss,
        lm_loss=losses.lm_loss,
        fusion_loss=losses.fusion_loss,
        grad_norm=losses.grad_norm,
        learning_rate=losses.learning_rate,
        tokens=counts.tokens,
        passages=counts.passages,
        bytes=counts.bytes,
        seconds=seconds,
        wait_seconds=wait_seconds,
        padding=1.0 - counts.tokens / counts.places,
        fused_rows=losses.fused_rows,
        source_nats=tuple(float(value) for value in nats),
        source_bytes=_whole(num_bytes),
        source_wins=tuple(float(value) for value in wins),
        source_covered_rows=_whole(covered_rows),
        source_left_out=_whole(left_out),
    )


def _whole(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
