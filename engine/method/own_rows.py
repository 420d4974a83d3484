"""What the target itself says at a few rows, beside what it is taught there."""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.method.gain import label_gains
from engine.method.losses import LogitShape, Targets, raw_logits, shaped

#: Entries shown of a distribution.
TOP = 5


class OwnRows(NamedTuple):
    """The target's rows: the top ids and their probabilities [R,5], the cost of the label in nats [R], the gain [R]."""

    ids: torch.Tensor
    probs: torch.Tensor
    costs: torch.Tensor
    gains: torch.Tensor


@torch.no_grad()
def own_rows(
    hidden: torch.Tensor, lm_head: torch.Tensor, bias: torch.Tensor | None, targets: Targets, shape: LogitShape
) -> OwnRows:
    """Look at rows that have labels, before the step that learns them.

    Args:
        hidden, lm_head, bias, targets, shape: see ``losses.objective``, of these rows alone.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        logits = shaped(raw_logits(hidden.to(lm_head.dtype), lm_head, bias), shape)[0]
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(min(TOP, logprobs.shape[-1]), dim=-1)
        costs = -logprobs.gather(-1, targets.labels[:, None])[:, 0]
    gains = label_gains(hidden, lm_head, bias, targets, shape)
    return OwnRows(top.indices, top.values.exp(), costs, gains)
