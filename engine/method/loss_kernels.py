"""The loss's passes over a chunk's logits on a GPU: three Triton kernels that read or write each logit once.

``losses.py`` says what is computed. There, each operation of PyTorch reads and writes the whole chunk in float32: about
50 bytes a logit. Here the logits stay in the type of the lm_head, and a chunk takes three trips:

1. ``_take_kept`` moves the kept entries out of the chunk and leaves minus infinity in their places, so that no later
   sum over a row holds them: the rest mass is a sum of its own.
2. ``_sum_rest`` sums the exponentials of a row (Milakov and Gimelshein, arXiv 1805.02867).
3. ``_write_gradient`` writes the gradient over the logits, the kept entries and the label included.

Between them, everything of width K + 1 is plain PyTorch in float64, a hundredth of the work.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.method.divergences import divergence
from engine.method.losses import NO_LABEL, LogitShape, Targets, fused_buckets
from engine.records import NO_TOKEN
from engine.spec import Divergence

#: Logits that one program reads at once.
BLOCK = 4096

#: Stands for minus infinity in sums: a difference of two infinities would be no number.
_LOWEST = tl.constexpr(-1e30)


def losses_and_gradient(
    logits: torch.Tensor,
    targets: Targets,
    lm_scale: float,
    fusion_scale: float,
    shape: LogitShape,
    kind: Divergence,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the scaled objective's gradient over a chunk's raw logits; return the losses.

    They are the LM loss of each row, float64 [R], and the sum of the fusion loss.

    Args:
        logits: [R,V], any float type, rows one after the other in memory; overwritten.
        targets: of the same rows.
        lm_scale, fusion_scale, shape, kind: see ``losses.objective``.
    """
    has_label = (targets.labels != NO_LABEL)[:, None]
    labels = torch.where(has_label, targets.labels[:, None], 0)
    kept = (targets.fused_ids != NO_TOKEN) & targets.fusion_mask[:, None]
    ids = torch.where(kept, targets.fused_ids, NO_TOKEN)

    label_logits, label_slope = _shaped(logits.gather(-1, labels), shape)
    raw_kept, largest, total = _take_rest(logits, ids, shape)
    kept_logits, kept_slope = _shaped(raw_kept, shape)
    kept_logits = kept_logits.masked_fill(~kept, -torch.inf)

    # Relative to the row's largest logit, so that a rest mass of nothing has the logarithm of the least float32.
    top = torch.maximum(largest, kept_logits.amax(-1, keepdim=True)).double()
    least = torch.finfo(torch.float32).tiny
    log_rest = ((largest.double() - top).exp() * total.double()).clamp(min=least).log()
    log_masses = torch.cat([kept_logits.double() - top, log_rest], -1)
    log_normalizer = log_masses.logsumexp(-1, keepdim=True)
    p = (log_masses - log_normalizer).exp()
    log_p = (log_masses - log_normalizer).nan_to_num(neginf=0.0)  # of places without an entry, which have no mass
    fusion, slopes = divergence(kind, fused_buckets(targets, kept), p * targets.fusion_mask[:, None], log_p)
    log_label = label_logits.double() - top - log_normalizer
    lm = torch.where(has_label, -log_label, 0.0)

    lm_weight = lm_scale * targets.lm_weights[:, None].double() * has_label
    slopes = fusion_scale * targets.fusion_weights[:, None] * slopes
    # exp(logit - largest) times this is the gradient of an entry that is not kept.
    log_share = largest.double() - top - log_normalizer
    factor = lm_weight * log_share.exp() + slopes[:, -1:] * (largest.double() - top - log_rest).exp()
    is_label = (ids == labels) & has_label
    kept_gradients = (lm_weight * (p[:, :-1] - is_label.double()) + slopes[:, :-1]) * kept_slope
    label_gradients = ((label_logits - largest).double().exp() * factor - lm_weight) * label_slope
    lone_labels = torch.where(has_label & ~is_label.any(-1, keepdim=True), labels, NO_TOKEN)
    _put_gradient(logits, (largest, factor), (ids, kept_gradients), (lone_labels, label_gradients), shape)
    return lm[:, 0], (fusion * targets.fusion_weights).sum()


def _shaped(raw: torch.Tensor, shape: LogitShape) -> tuple[torch.Tensor, torch.Tensor | float]:
    """float32 logits of a few entries after the architecture's change, and their derivative by ``raw``."""
    logits = raw.float() * shape.scale
    if shape.soft_cap <= 0:
        return logits, shape.scale
    bent = (logits / shape.soft_cap).tanh()
    return bent * shape.soft_cap, (1.0 - bent.square()) * shape.scale


def _take_rest(
    logits: torch.Tensor, ids: torch.Tensor, shape: LogitShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the kept entries out of the logits; sum the others.

    Returns:
        The kept entries' raw logits, float32 [R,K]; the largest shaped logit of the others, float32 [R,1]; the sum of
        their exponentials relative to it, float32 [R,1].
    """
    rows, vocabulary = logits.shape
    kept = torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    largest, total = torch.empty(2, rows, 1, dtype=torch.float32, device=logits.device)
    top_k = ids.shape[1]
    _take_kept[(rows,)](logits, logits.stride(0), ids, kept, top_k, triton.next_power_of_2(top_k))
    _sum_rest[(rows,)](logits, logits.stride(0), vocabulary, largest, total, *shape, BLOCK, num_warps=8)
    return kept, largest, total


def _put_gradient(logits: torch.Tensor, rest: tuple, kept: tuple, labels: tuple, shape: LogitShape) -> None:
    """Overwrite the logits [R,V] with their gradient.

    Args:
        rest: of all entries without a value of their own, the largest logit and the gradient at it, [R,1] each.
        kept: ids [R,K], NO_TOKEN where there is none, and their gradients.
        labels: ids [R,1] that are not kept, NO_TOKEN where there is none, and their gradients.
    """
    rows, vocabulary = logits.shape
    ids, kept_gradients = kept
    values = [value.float().contiguous() for value in (rest[1], kept_gradients, labels[1])]
    _write_gradient[(rows,)](
        *(logits, logits.stride(0), vocabulary, rest[0], values[0], *shape),
        *(ids, values[1], ids.shape[1], labels[0], values[2]),
        *(triton.next_power_of_2(ids.shape[1]), BLOCK),
        num_warps=8,
    )


@triton.jit
def _take_kept(logits, row_stride, ids, kept_logits, top_k, TOP_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, TOP_K)
    exists = places < top_k
    tokens = tl.load(ids + row * top_k + places, mask=exists, other=-1)
    addresses = logits + row * row_stride + tokens
    values = tl.load(addresses, mask=tokens >= 0, other=float("-inf")).to(tl.float32)
    tl.store(kept_logits + row * top_k + places, values, mask=exists)
    tl.store(addresses, float("-inf"), mask=tokens >= 0)


@triton.jit
def _sum_rest(logits, row_stride, vocabulary, largest, total, scale, soft_cap, BLOCK: tl.constexpr):
    """Keep a largest logit and a sum relative to it for each lane, so that the loop has no reduction."""
    row = tl.program_id(0).to(tl.int64)
    lane_largest = tl.full([BLOCK], _LOWEST, tl.float32)
    lane_total = tl.full([BLOCK], 0.0, tl.float32)
    for start in range(0, vocabulary, BLOCK):
        places = start + tl.arange(0, BLOCK)
        raw = tl.load(logits + row * row_stride + places, mask=places < vocabulary, other=float("-inf"))
        shaped, _ = _shape(raw.to(tl.float32), scale, soft_cap)
        larger = tl.maximum(lane_largest, shaped)
        lane_total = lane_total * tl.exp(lane_largest - larger) + tl.exp(shaped - larger)
        lane_largest = larger
    row_largest = tl.reduce(lane_largest, 0, _larger)
    tl.store(largest + row, row_largest)
    tl.store(total + row, tl.reduce(lane_total * tl.exp(lane_largest - row_largest), 0, _added))


@triton.jit
def _write_gradient(
    logits,
    row_stride,
    vocabulary,
    largest,
    factor,
    scale,
    soft_cap,
    ids,
    kept_gradients,
    top_k,
    labels,
    label_gradients,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * row_stride
    row_largest, row_factor = tl.load(largest + row), tl.load(factor + row)
    for start in range(0, vocabulary, BLOCK):
        places = start + tl.arange(0, BLOCK)
        raw = tl.load(row_logits + places, mask=places < vocabulary, other=float("-inf"))
        shaped, slope = _shape(raw.to(tl.float32), scale, soft_cap)
        gradient = tl.exp(shaped - row_largest) * row_factor * slope
        tl.store(row_logits + places, gradient.to(raw.dtype), mask=places < vocabulary)
    tl.debug_barrier()  # the loop wrote 0 where kept entries go
    places = tl.arange(0, TOP_K)
    exists = places < top_k
    tokens = tl.load(ids + row * top_k + places, mask=exists, other=-1)
    values = tl.load(kept_gradients + row * top_k + places, mask=exists, other=0.0)
    tl.store(row_logits + tokens, values.to(logits.dtype.element_ty), mask=tokens >= 0)
    label = tl.load(labels + row)
    tl.store(row_logits + label, tl.load(label_gradients + row).to(logits.dtype.element_ty), mask=label >= 0)


# Not tl.max and tl.sum: Triton's interpreter, by which tests on a CPU run these kernels, takes those only if it was
# chosen before Triton's first import in the process.
@triton.jit
def _larger(one, other):
    return tl.maximum(one, other)


@triton.jit
def _added(one, other):
    return one + other


@triton.jit
def _shape(raw, scale, soft_cap):
    """The architecture's change of raw logits, and its derivative; minus infinity stays below everything."""
    shaped = raw * scale
    slope = tl.full(raw.shape, 1.0, tl.float32) * scale
    if soft_cap > 0:
        bent = 1.0 - 2.0 / (tl.exp(2.0 * shaped / soft_cap) + 1.0)  # tanh
        shaped = bent * soft_cap
        slope = (1.0 - bent * bent) * scale
    return tl.where(raw == float("-inf"), _LOWEST, shaped), slope
