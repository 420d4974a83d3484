"""Held-out loss during training: bits per byte of the sharded target model on text that it does not learn.

The text is packed into blocks like those of training, so that an evaluation needs no more memory than a step; each
worker scores its share. The number equals that of ``pipelines.evaluation.bits_per_byte`` up to ``training.precision``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from actors.training.target_model import Blocks, TargetModel
from engine.history.result import StepRecord
from engine.records import NO_TOKEN


class HeldOutBlocks(NamedTuple):
    """One domain: windows of text side by side, B blocks of L places.

    Attributes:
        input_ids: int32 [B,L]; each window begins with BOS if the model's tokenizer adds it.
        position_ids: int32 [B,L], from 0 in every window.
        labels: int32 [B,L], the next token; ``losses.NO_LABEL`` where none is scored.
        scored_bytes: of all labels together.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    labels: np.ndarray
    scored_bytes: int


def with_held_out_loss(
    record: StepRecord, target: TargetModel, domains: Mapping[str, HeldOutBlocks], micro_batch_blocks: int
) -> StepRecord:
    """Add the target's bits per byte in every domain to the record of its last step; all workers take part."""
    started = time.perf_counter()
    held_out = bits_per_byte(target, domains, micro_batch_blocks)
    return replace(record, held_out=held_out, held_out_seconds=time.perf_counter() - started)


@torch.no_grad()
def bits_per_byte(
    target: TargetModel, domains: Mapping[str, HeldOutBlocks], micro_batch_blocks: int
) -> dict[str, float]:
    """Bits per byte of each domain, in [0, inf), the same on all workers; NaN for a domain without a byte to score.

    Args:
        target: left in training mode.
        domains: equal on all workers.
        micro_batch_blocks: blocks in a worker's forward pass.
    """
    target.model.eval()
    nats = torch.stack([_nats(target, blocks, micro_batch_blocks) for blocks in domains.values()])
    target.model.train()
    dist.all_reduce(nats)
    return {
        domain: float(total) / math.log(2) / blocks.scored_bytes if blocks.scored_bytes else math.nan
        for total, (domain, blocks) in zip(nats, domains.items(), strict=True)
    }


def _nats(target: TargetModel, blocks: HeldOutBlocks, micro_batch_blocks: int) -> torch.Tensor:
    """Sum of ``-ln p`` over the labels of this worker's blocks; float64 scalar.

    Every worker makes as many forward passes as the one with the largest share: FSDP gathers the weights in each.
    """
    total = torch.zeros((), dtype=torch.float64, device=target.device)
    if not len(blocks.input_ids):
        return total
    workers = dist.get_world_size()
    largest_share = -(-len(blocks.input_ids) // workers)
    mine = _as_training_blocks(blocks, dist.get_rank(), workers, target.device)
    no_weights = torch.zeros(1, device=target.device)
    for index in range(-(-largest_share // micro_batch_blocks)):
        part = mine.micro_batch(index, micro_batch_blocks)
        _, sums, _, _ = target.model(part, (1.0, 0.0), no_weights, measures_gains=False)
        total += sums[0]
    return total


def _as_training_blocks(blocks: HeldOutBlocks, rank: int, workers: int, device: torch.device) -> Blocks:
    """This worker's blocks, every ``workers``-th one, without fused rows; a block without weight if it has none."""
    share = [torch.from_numpy(part[rank::workers]).to(device).long() for part in blocks[:3]]
    if not len(share[0]):
        return _as_training_blocks(blocks, 0, len(blocks.input_ids), device).without_weight()
    input_ids, position_ids, labels = share
    fused_ids = torch.full((*labels.shape, 1), NO_TOKEN, device=device)
    return Blocks(
        input_ids,
        position_ids,
        labels,
        fused_ids,
        fused_probs=torch.zeros_like(fused_ids).float(),
        fusion_mask=torch.zeros_like(labels).bool(),
        is_repeated=torch.zeros_like(labels).bool(),
        domains=torch.zeros_like(labels[:, 0]),
    )
