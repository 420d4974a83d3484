"""What a passage's fused distributions know more than the target model does, and the weight that this gives them.

A teacher that predicts the text no better than the target costs more than it teaches. So before the objective the
target's own predictions are compared with the fused ones on the labels, row by row:

    r    = q_b / p_b, where b is the bucket of the label: its own among the kept ones, or else the rest
    gain = log(0.99 r + 0.01)

the nats by which a mixture of 99 % fused distribution and 1 % target beats the target: a label that the sources find
impossible costs log 100 at most. The fusion loss of a passage has the weight

    min(max(mean gain of its rows / full_gain, 0), 1).

The mean over a passage says how much more is known there. A gate for each row would follow the luck of single labels:
it costs half of what fusion gains on small models (LOG.md).

Only text that the target reads for the first time says what the target knows. In a further pass over the corpus it
knows the labels by heart, and every teacher seems to know less. In that pass a passage has the mean weight of its
domain's fused rows in the first one, as far as that has been read.

What the fusion loss does not get, the LM loss gets: with w = ``lm_loss_weight`` the LM loss of a passage of weight a
has the weight 1 - (1 - w) a. So text of which the sources know nothing more is learned as in continued training, beside
text that they teach.
"""

from __future__ import annotations

import math

import torch

from engine.method.losses import NO_LABEL, PLAIN, LogitShape, Targets, raw_logits, shaped
from engine.records import NO_TOKEN

#: Share of the target in the mixture whose gain is measured.
TARGET_SHARE = 0.01

#: Logits of one chunk, by device: 64 MiB in float32 on a CPU, 256 MiB on a GPU. Each chunk reads the whole lm_head: at
#: a vocabulary of 128,000 once for every 131 rows on a CPU, for every 524 on a GPU.
CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**26}


def counted_rows(targets: Targets) -> torch.Tensor:
    """Rows that have a label and a fused distribution, bool [R]: only they have a gain."""
    return targets.fusion_mask & (targets.labels != NO_LABEL)


def mean_weights(first_pass: torch.Tensor) -> torch.Tensor:
    """The mean weight of each domain's fused rows in the first pass, float32 [D]; 0 where there are none.

    Args:
        first_pass: float64 [D,2], the sum of these rows' weights and their number.
    """
    weights, rows = first_pass.unbind(-1)
    return (weights / rows.clamp(min=1.0)).float()


@torch.no_grad()
def label_gains(
    hidden: torch.Tensor,
    lm_head: torch.Tensor,
    bias: torch.Tensor | None,
    targets: Targets,
    shape: LogitShape = PLAIN,
) -> torch.Tensor:
    """Nats by which the fused distribution beats the target on the label, float32 [R]; 0 in rows that do not count.

    Args:
        hidden, lm_head, bias, targets, shape: see ``losses.objective``; no gradient goes through them.
    """
    rows = max(1, CHUNK_LOGITS[hidden.device.type] // len(lm_head))
    gains = []
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), rows):
            logits = raw_logits(hidden[start : start + rows].to(lm_head.dtype), lm_head, bias)
            gains.append(_gains(shaped(logits, shape)[0], targets.rows(start, start + rows)))
    return torch.cat(gains)


def _gains(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """The gains of one chunk, from float32 logits [R,V]."""
    is_kept = targets.fused_ids != NO_TOKEN
    ids = torch.where(is_kept, targets.fused_ids, 0)
    labels = torch.where(targets.labels != NO_LABEL, targets.labels, 0)[:, None]
    log_normalizer = logits.logsumexp(-1, keepdim=True)
    kept_p = torch.where(is_kept, (logits.gather(-1, ids) - log_normalizer).exp(), 0.0)
    log_p = (logits.gather(-1, labels) - log_normalizer)[:, 0]
    q = torch.where(is_kept, targets.fused_probs, 0.0)
    is_label = is_kept & (ids == labels)
    # A difference from 1 is exact enough for a weight; the objective sums its own rest.
    log_p_rest = (1.0 - kept_p.sum(-1)).clamp(min=torch.finfo(torch.float32).eps).log()
    log_q_rest = (1.0 - q.sum(-1)).clamp(min=0.0).log()
    log_q = torch.where(is_label, q, 0.0).sum(-1).log()
    log_ratio = torch.where(is_label.any(-1), log_q - log_p, log_q_rest - log_p_rest)
    of_target = torch.full_like(log_ratio, math.log(TARGET_SHARE))
    gains = torch.logaddexp(log_ratio + math.log(1.0 - TARGET_SHARE), of_target)
    return torch.where(counted_rows(targets), gains, 0.0)


def passage_weights(gains: torch.Tensor, counts: torch.Tensor, passages: torch.Tensor, full_gain: float):
    """The weight of each row's fusion loss, that of its passage; float32 [R] in [0, 1].

    Args:
        gains: float32 [R], 0 in rows that do not count.
        counts: bool [R], rows that count.
        passages: int64 [R] in [0, R), the passage of each row.
        full_gain: nats, above 0; the mean gain from which on a passage has weight 1.
    """
    none = torch.zeros(len(gains), dtype=torch.float64, device=gains.device)
    totals = none.index_add(0, passages, gains.double())
    rows = none.index_add(0, passages, counts.double())
    return (totals / rows.clamp(min=1.0) / full_gain).clamp(0.0, 1.0).float()[passages]


def repeated_weights(known: torch.Tensor, counts: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """The weight of each row's fusion loss where its passage was read before; float32 [R] in [0, 1].

    Args:
        known: float32 [R], the mean weight of the row's domain in the first pass.
        counts: bool [R], rows that have a label and a fused distribution.
        passages: int64 [R] in [0, R), the passage of each row; one that nothing is fused for has the weight 0.
    """
    rows = torch.zeros(len(known), device=known.device).index_add(0, passages, counts.float())
    return torch.where(rows[passages] > 0.0, known, 0.0)


def remaining_lm_weights(weights: torch.Tensor, lm_loss_weight: float) -> torch.Tensor:
    """The weights of the rows' LM losses, float32 [R], from those of their passages' fusion losses."""
    return 1.0 - (1.0 - lm_loss_weight) * weights
