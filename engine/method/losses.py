"""Causal LM loss and fusion loss from hidden states, without dense targets and without dense logits.

Objective (FuseLLM, equation 5, with q the fused and p the target model's distribution, w = ``lm_loss_weight``):

    loss   = sum(b * lm) / N_lm + (1 - w) * sum(a * fusion) / N_fused
    lm     = -log p(label)                                              for rows with a label
    fusion = sum_k q_k log(q_k / p_k) + q_rest log(q_rest / p_rest)     for rows with a fused distribution

or another of the divergences in ``engine.method.divergences``, over the same kept entries and the rest. The weights a
and b of a row are in [0, 1] and have no gradient. In the paper a is 1 and b is w; ``engine.method.gain`` makes others.

N counts the rows of the whole step, over all workers and micro batches, and is known before the forward pass. So the
gradients are made in the forward pass, a chunk of rows at a time, inside the buffer that holds the chunk's logits:

    e_j    = exp(z_j), normalizer = sum of all e, rest = sum of e over what is not kept
    d lm / d z_j     = e_j / normalizer - [j = label]
    d fusion / d z_j = slope_j for kept j, e_j slope_rest / rest for all others

``rest`` is a sum of its own and never 1 - sum p: in float32 that would be 0 where the target is sure of the kept
entries.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from engine.method.divergences import divergence
from engine.records import NO_TOKEN
from engine.spec import Divergence

#: Logits of one chunk, by device: 64 MiB in float32 on a CPU, 512 MiB in bfloat16 on a GPU. With fewer, the sums over
#: the lm_head's gradient dominate, each of which reads and writes the whole of it; more cost memory.
CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}

#: Vocabulary rows whose gradient is made at once where it is summed in a wider type than it is made in.
SUMMED_ROWS = 4096

#: Stands in ``labels`` where a row has none.
NO_LABEL = -1


@dataclass(frozen=True)
class Targets:
    """The labels and fused distributions that the rows should predict.

    Attributes:
        labels: int64 [R], the token that follows, in [0, V); NO_LABEL in rows without one.
        fused_ids: int64 [R,K], tokens of the fused distribution in [0, V), no one twice in a row; NO_TOKEN elsewhere.
        fused_probs: float32 [R,K], their probabilities, in [0, 1]; what a row lacks to 1 is its rest mass.
        fusion_mask: bool [R], rows with a fused distribution.
        fusion_weights: float32 [R], in [0, 1], the weights of their fusion losses.
        lm_weights: float32 [R], in [0, 1], the weights of the LM losses.
    """

    labels: torch.Tensor
    fused_ids: torch.Tensor
    fused_probs: torch.Tensor
    fusion_mask: torch.Tensor
    fusion_weights: torch.Tensor
    lm_weights: torch.Tensor

    def at(self, places: torch.Tensor) -> Targets:
        """Single rows, by their places, int64."""
        return Targets(*(getattr(self, field.name)[places] for field in fields(self)))

    def rows(self, start: int, end: int) -> Targets:
        """A run of rows."""
        return Targets(
            self.labels[start:end],
            self.fused_ids[start:end],
            self.fused_probs[start:end],
            self.fusion_mask[start:end],
            self.fusion_weights[start:end],
            self.lm_weights[start:end],
        )


class LogitShape(NamedTuple):
    """The change an architecture makes to its logits after the lm_head: multiplied by ``scale``, then softly capped.

    A positive ``soft_cap`` makes them soft_cap * tanh(logits / soft_cap) (Gemma); 0 leaves them as they are.
    """

    scale: float = 1.0
    soft_cap: float = 0.0


#: Of most architectures.
PLAIN = LogitShape()


def objective(
    hidden: torch.Tensor,
    lm_head: torch.Tensor,
    bias: torch.Tensor | None,
    targets: Targets,
    lm_scale: float,
    fusion_scale: float,
    shape: LogitShape = PLAIN,
    kind: Divergence = "forward_kl",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted sum of both losses over all rows, differentiable in ``hidden``, ``lm_head`` and ``bias``.

    Logits are made in the type of ``lm_head``, as in the model's own forward pass; all that follows is float32, inside
    autocast too. Every row of ``lm_head`` takes part in the softmax, those that pad the vocabulary included.

    Args:
        hidden: [R,D], any float type.
        lm_head: [V,D]. bias: [V] or None.
        targets: of the R rows.
        lm_scale, fusion_scale: factors of the two sums, such as 1 / N_lm and (1 - w) / N_fused.
        shape: of the logits.
        kind: of divergence that is the fusion loss.

    Returns:
        The scaled loss, a float32 scalar whose backward pass may run once; float64 [2], the sums in nats of the
        weighted LM losses and of the weighted fusion losses; and float64 [R], each row's LM loss, 0 without a label.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedObjective.apply(hidden, lm_head, bias, targets, (lm_scale, fusion_scale), shape, kind)


class _ChunkedObjective(torch.autograd.Function):
    """Makes the gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(context, hidden, lm_head, bias, targets, scales, shape, kind):
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(lm_head, dtype=torch.float32)
        bias_gradient = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)
        label_nats = torch.empty(len(hidden), dtype=torch.float64, device=hidden.device)
        device = hidden.device.type
        chunks = (_GpuChunks if device == "cuda" else _Chunks)(
            lm_head, max(1, min(len(hidden), CHUNK_LOGITS[device] // len(lm_head)))
        )
        for start in range(0, len(hidden), chunks.rows):
            end = min(start + chunks.rows, len(hidden))
            rows = hidden[start:end].to(lm_head.dtype)
            part = targets.rows(start, end)
            (lm, fusion), gradient = chunks.losses_and_gradient(rows, bias, part, scales, shape, kind, bias_gradient)
            sums += torch.stack([(lm * part.lm_weights).sum(), fusion])
            label_nats[start:end] = lm
            hidden_gradient[start:end] = gradient @ lm_head
            _add_product(head_gradient, gradient, rows)
        context.has_bias = bias is not None
        gradients = [hidden_gradient, head_gradient.to(lm_head.dtype)]
        context.save_for_backward(*gradients, *([bias_gradient.to(bias.dtype)] if context.has_bias else []))
        context.mark_non_differentiable(sums, label_nats)
        return (sums[0] * scales[0] + sums[1] * scales[1]).float(), sums, label_nats

    @staticmethod
    def backward(context, loss_gradient, *_of_sums):
        # In place: [V,D] is too large for a second copy. Autograd notices should anyone come for them twice.
        hidden, lm_head, *bias = (gradient.mul_(loss_gradient) for gradient in context.saved_tensors)
        return hidden, lm_head, bias[0] if context.has_bias else None, None, None, None, None


class _Chunks:
    """Losses and gradients of one chunk after the other by PyTorch, in memory that all of them use.

    New memory for each chunk would be there beside the old, and cost its pages.

    Attributes:
        rows: of a chunk, at most.
    """

    def __init__(self, lm_head: torch.Tensor, rows: int):
        self.rows = rows
        self._lm_head = lm_head
        self._own = lm_head.new_empty(rows, len(lm_head))
        self._exact = self._own if lm_head.dtype == torch.float32 else torch.empty_like(self._own, dtype=torch.float32)

    def losses_and_gradient(self, rows, bias, targets, scales, shape, kind, bias_gradient):
        """Add the bias's gradient; return the losses and the gradient by the logits, [R,V].

        The losses are the LM loss of each row, float64 [R], and the sum of the fusion loss. The gradient has the type
        of the lm_head and is there until the next chunk's.
        """
        raw = raw_logits(rows, self._lm_head, bias, out=self._own[: len(rows)])
        logits, slope = shaped(raw if self._exact is self._own else self._exact[: len(rows)].copy_(raw), shape)
        losses, gradient = _losses_and_gradient(logits, targets, *scales, kind)
        gradient = gradient if slope is None else gradient.mul_(slope)
        if bias_gradient is not None:
            bias_gradient += gradient.sum(0)
        return losses, gradient if self._exact is self._own else raw.copy_(gradient)


class _GpuChunks:
    """The same by the kernels of ``loss_kernels``, which need no float32 copy of the logits.

    Attributes:
        rows: of a chunk, at most.
    """

    def __init__(self, lm_head: torch.Tensor, rows: int):
        self.rows = rows
        self._lm_head = lm_head
        self._own = lm_head.new_empty(rows, len(lm_head))

    def losses_and_gradient(self, rows, bias, targets, scales, shape, kind, bias_gradient):
        """See ``_Chunks``."""
        from engine.method import loss_kernels  # Triton, which a CPU does not need

        logits = raw_logits(rows, self._lm_head, bias, out=self._own[: len(rows)])
        losses = loss_kernels.losses_and_gradient(logits, targets, *scales, shape, kind)
        if bias_gradient is not None:
            bias_gradient += logits.sum(0, dtype=torch.float32)
        return losses, logits


def raw_logits(
    rows: torch.Tensor, lm_head: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """[R,V], made in the type of ``lm_head``; in ``out`` if there is one."""
    if bias is None:
        return torch.mm(rows, lm_head.T, out=out)
    return torch.addmm(bias, rows, lm_head.T, out=out)


def shaped(raw: torch.Tensor, shape: LogitShape) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float32 logits in a buffer that may be overwritten, and their derivative by ``raw``, None where it is 1."""
    logits = raw.float()
    if shape == PLAIN:
        return logits, None
    logits.mul_(shape.scale)
    if shape.soft_cap <= 0:
        return logits, torch.full_like(logits[:1, :1], shape.scale)
    logits.div_(shape.soft_cap).tanh_()
    slope = logits.square().neg_().add_(1.0).mul_(shape.scale)
    return logits.mul_(shape.soft_cap), slope


def _add_product(total: torch.Tensor, gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Add gradient^T @ rows to the float32 ``total``; in place where the types allow, else a part at a time."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, rows)
        return
    for part, columns in zip(total.split(SUMMED_ROWS), gradient.split(SUMMED_ROWS, dim=1), strict=True):
        part += columns.T @ rows


def _losses_and_gradient(
    logits: torch.Tensor, targets: Targets, lm_scale: float, fusion_scale: float, kind: Divergence
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The LM loss of each row and the sum of the fusion loss of a chunk, and the scaled objective's gradient by logits.

    Args:
        logits: float32 [R,V]; overwritten, the gradient lies in the same memory.
        targets: of the same rows.
    """
    has_label = (targets.labels != NO_LABEL)[:, None]
    labels = torch.where(has_label, targets.labels[:, None], 0)
    kept = (targets.fused_ids != NO_TOKEN) & targets.fusion_mask[:, None]
    ids = torch.where(kept, targets.fused_ids, 0)

    exponents = logits.sub_(logits.amax(-1, keepdim=True))
    label_exponents, kept_exponents = exponents.gather(-1, labels), exponents.gather(-1, ids)
    exponentials = exponents.exp_()
    kept_exponentials = torch.where(kept, exponentials.gather(-1, ids), 0.0)
    # An entry less itself is exactly 0, and less 0 is itself: so places without an id need no case of their own.
    exponentials.scatter_add_(-1, ids, -kept_exponentials)
    rest = exponentials.sum(-1, keepdim=True).clamp(min=torch.finfo(exponentials.dtype).tiny)

    # K + 1 buckets in float64, little work beside V: where the target is sure, slopes are differences of near equals.
    masses = torch.cat([kept_exponentials, rest], -1).double()
    normalizer = masses.sum(-1, keepdim=True)
    log_normalizer = normalizer.log()
    log_p = torch.cat([kept_exponents.double(), rest.double().log()], -1) - log_normalizer
    p = masses / normalizer * targets.fusion_mask[:, None]
    fusion, slopes = divergence(kind, fused_buckets(targets, kept), p, log_p)
    lm = torch.where(has_label, log_normalizer - label_exponents, 0.0)

    lm_weight = lm_scale * targets.lm_weights[:, None] * has_label
    slopes = fusion_scale * targets.fusion_weights[:, None] * slopes
    lm_share = lm_weight / normalizer
    gradient = exponentials.mul_((lm_share + slopes[:, -1:] / rest).float())
    gradient.scatter_add_(-1, ids, (masses[:, :-1] * lm_share + slopes[:, :-1]).float())
    losses = lm[:, 0], (fusion * targets.fusion_weights).sum()
    return losses, gradient.scatter_add_(-1, labels, -lm_weight)


def fused_buckets(targets: Targets, kept: torch.Tensor) -> torch.Tensor:
    """float64 [R,K+1], the fused distribution and then its rest mass; 0 in rows without one."""
    q = torch.where(kept, targets.fused_probs, 0.0).double()
    q_rest = torch.where(targets.fusion_mask[:, None], (1.0 - q.sum(-1, keepdim=True)).clamp(min=0.0), 0.0)
    return torch.cat([q, q_rest], -1)
