"""Counts of one optimizer step: over this worker's blocks, then over all workers, then as the step's record."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from actors.training.collectives import of_all_workers
from actors.training.target_model import StepLosses
from engine.history.result import StepRecord
from engine.records import flat_values


class SourceCounts(NamedTuple):
    """Sums over the passages of one step for each source model, in the spec's order; float64 [N] each.

    Attributes:
        nats: cross-entropy in nats per byte times bytes, of the passages that the source has scored.
        bytes: of these passages.
        wins: shares of passages that the source has won.
        covered_rows: target rows for which the source has a row.
        left_out: passages that the source has not scored.
    """

    nats: np.ndarray
    bytes: np.ndarray
    wins: np.ndarray
    covered_rows: np.ndarray
    left_out: np.ndarray


class StepCounts(NamedTuple):
    """Sums over the training blocks of one step; ``places`` counts padding too."""

    tokens: int
    passages: int
    bytes: int
    places: int
    sources: SourceCounts


def count(table: pa.Table | None, num_sources: int) -> StepCounts:
    """Count this worker's blocks (``records.TRAINING_BLOCK``); None has no blocks."""
    if table is None:
        return StepCounts(0, 0, 0, 0, SourceCounts(*np.zeros((len(SourceCounts._fields), num_sources))))
    num_bytes = flat_values(table["passage_bytes"])[0]
    shape = (len(num_bytes), num_sources)
    cross_entropy = flat_values(table["cross_entropy"])[0].reshape(shape)
    scored = np.isfinite(cross_entropy)
    return StepCounts(
        tokens=int(flat_values(table["passage_tokens"])[0].sum()),
        passages=len(num_bytes),
        bytes=int(num_bytes.sum()),
        places=len(flat_values(table["input_ids"])[0]),
        sources=SourceCounts(
            nats=(np.where(scored, cross_entropy, 0.0) * num_bytes[:, None]).sum(0),
            bytes=(scored * num_bytes[:, None]).sum(0),
            wins=flat_values(table["win_share"])[0].reshape(shape).sum(0),
            covered_rows=flat_values(table["covered_rows"])[0].reshape(shape).sum(0),
            left_out=(~scored).sum(0),
        ),
    )


def over_workers(counts: StepCounts, wait_seconds: float, device: torch.device) -> tuple[StepCounts, float]:
    """Sum the counts over all workers and find the longest wait, in one collective; all workers call in step."""
    blocks = (counts.tokens, counts.passages, counts.bytes, counts.places)
    mine = torch.tensor([wait_seconds, *blocks, *np.concatenate(counts.sources)], dtype=torch.float64, device=device)
    every = of_all_workers(mine).cpu().numpy()
    sums = every[:, 1:].sum(axis=0)
    tokens, passages, num_bytes, places = (int(value) for value in sums[: len(blocks)])
    sources = SourceCounts(*sums[len(blocks) :].reshape(len(counts.sources), -1))
    return StepCounts(tokens, passages, num_bytes, places, sources), float(every[:, 0].max())


def step_record(
    step: int, losses: StepLosses, counts: StepCounts, seconds: float, wait_seconds: float, elapsed_seconds: float
) -> StepRecord:
    """The record of one step; ``losses`` and ``counts`` are those of all workers."""
    sources = counts.sources
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
        fusion_gain=losses.fusion_gain,
        fusion_weight=losses.fusion_weight,
        source_nats=_floats(sources.nats),
        source_bytes=_integers(sources.bytes),
        source_wins=_floats(sources.wins),
        source_covered_rows=_integers(sources.covered_rows),
        source_left_out=_integers(sources.left_out),
        elapsed_seconds=elapsed_seconds,
    )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _integers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
