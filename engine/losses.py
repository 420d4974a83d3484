"""Causal LM loss and fusion loss from hidden states, without dense targets and without dense logits.

The fused distribution stays sparse: K ids with probabilities and one rest bucket for everything else. The lm_head is
applied to a chunk of rows at a time, and the chunk's gradients are computed in the same sweep, while its logits are
there. So logits are made once, not twice, and no [rows, V] tensor outlives its chunk.

Objective (FuseLLM, equation 5, with q the fused and p the target model's distribution):

    loss = w * sum(lm) / N_lm + (1 - w) * sum(fusion) / N_fused

    lm     = -log p(label)                                     for rows with a label
    fusion = sum_k q_k log(q_k / p_k) + q_rest log(q_rest / p_rest)     for rows with a fused distribution

N counts the rows of the whole step, over all workers and micro batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Rows of one chunk: at V = 32k the float32 logits of a chunk take 32 MB.
CHUNK_ROWS = 256

#: Neither model may call anything impossible: keeps log(1 - sum p) finite when the kept entries hold all mass.
SMALLEST_MASS = 1e-7


@dataclass(frozen=True)
class Targets:
    """What the rows should predict.

    Attributes:
        labels: int64 [R], the token that follows; -1 in rows without a label.
        fused_ids: int64 [R,K], ids of the fused distribution, each at most once in a row; -1 behind the last.
        fused_probs: float32 [R,K], 0 where the id is -1.
        fusion_mask: bool [R], rows with a fused distribution.
    """

    labels: torch.Tensor
    fused_ids: torch.Tensor
    fused_probs: torch.Tensor
    fusion_mask: torch.Tensor

    def rows(self, start: int, end: int) -> Targets:
        """A run of rows."""
        return Targets(
            self.labels[start:end],
            self.fused_ids[start:end],
            self.fused_probs[start:end],
            self.fusion_mask[start:end],
        )


def row_losses(logits: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of each row.

    Args:
        logits: float32 [R,V].
        targets: of the same rows.

    Returns:
        lm float32 [R], 0 without a label; fusion float32 [R], 0 without a fused distribution; nats, not negative.
    """
    log_normalizer = logits.logsumexp(dim=-1)
    has_label = targets.labels >= 0
    label_logit = logits.gather(-1, targets.labels.clamp(min=0)[:, None])[:, 0]
    lm = torch.where(has_label, log_normalizer - label_logit, 0.0)

    kept = targets.fused_ids >= 0
    log_p = logits.gather(-1, targets.fused_ids.clamp(min=0)) - log_normalizer[:, None]
    q = torch.where(kept, targets.fused_probs, 0.0)
    q = q / q.sum(-1, keepdim=True).clamp(min=1.0)  # float16 rounding can carry the sum a little over 1
    divergence = torch.where(q > 0, q * (q.clamp(min=SMALLEST_MASS).log() - log_p), 0.0).sum(-1)

    q_rest = (1.0 - q.sum(-1)).clamp(min=0.0)
    p_rest = (1.0 - torch.where(kept, log_p.exp(), 0.0).sum(-1)).clamp(min=SMALLEST_MASS)
    rest = torch.where(q_rest > 0, q_rest * (q_rest.clamp(min=SMALLEST_MASS).log() - p_rest.log()), 0.0)
    return lm, torch.where(targets.fusion_mask, divergence + rest, 0.0)


def objective(
    hidden: torch.Tensor,
    lm_head: torch.Tensor,
    bias: torch.Tensor | None,
    targets: Targets,
    lm_scale: float,
    fusion_scale: float,
    logit_scale: float = 1.0,
    soft_cap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted sum of both losses over all rows, differentiable in ``hidden``, ``lm_head`` and ``bias``.

    Args:
        hidden: [R,D], any float type. lm_head: [V,D]; bias: [V] or None.
        targets: of the R rows.
        lm_scale, fusion_scale: factors of the two sums, such as w / N_lm and (1 - w) / N_fused.
        logit_scale: logits are multiplied by it (Cohere's ``logit_scale``).
        soft_cap: if positive, logits are soft_cap * tanh(logits / soft_cap) (Gemma).

    Returns:
        The scaled loss; and, for display, the plain sums of the LM loss and of the fusion loss, float32 scalars.
    """
    loss, sums = _ChunkedObjective.apply(
        hidden, lm_head, bias, targets, (lm_scale, fusion_scale), (logit_scale, soft_cap)
    )
    return loss, sums[0], sums[1]


class _ChunkedObjective(torch.autograd.Function):
    """Computes gradients in the forward pass, chunk by chunk; the backward pass only scales them."""

    @staticmethod
    def forward(context, hidden, lm_head, bias, targets, scales, logit_shape):
        inputs = [tensor for tensor in (hidden, lm_head, bias) if tensor is not None]
        hidden_gradient = torch.zeros_like(hidden)
        head_gradients = [torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device) for tensor in inputs[1:]]
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(hidden))
            leaves = [hidden[start:end].detach().requires_grad_(), *(t.detach().requires_grad_() for t in inputs[1:])]
            with torch.enable_grad():
                lm, fusion = row_losses(_logits(*leaves, *logit_shape), targets.rows(start, end))
                chunk_sums = torch.stack([lm.sum(), fusion.sum()])
                scaled = chunk_sums[0] * scales[0] + chunk_sums[1] * scales[1]
                gradients = torch.autograd.grad(scaled, leaves)
            hidden_gradient[start:end] = gradients[0]
            for total, gradient in zip(head_gradients, gradients[1:], strict=True):
                total += gradient
            sums += chunk_sums.detach()
        head_gradients = [
            gradient.to(tensor.dtype) for gradient, tensor in zip(head_gradients, inputs[1:], strict=True)
        ]
        context.save_for_backward(hidden_gradient, *head_gradients)
        context.mark_non_differentiable(sums)
        return sums[0] * scales[0] + sums[1] * scales[1], sums

    @staticmethod
    def backward(context, loss_gradient, _sums_gradient):
        hidden, lm_head, *bias = (gradient * loss_gradient for gradient in context.saved_tensors)
        return hidden, lm_head, bias[0] if bias else None, None, None, None


def _logits(hidden, lm_head, *rest):
    """float32 logits of one chunk; ``rest`` is the bias, if there is one, then the logit scale and the soft cap."""
    *bias, scale, soft_cap = rest
    logits = torch.nn.functional.linear(hidden, lm_head, *bias).float()
    if scale != 1.0:
        logits = logits * scale
    return soft_cap * torch.tanh(logits / soft_cap) if soft_cap > 0 else logits
