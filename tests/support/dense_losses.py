"""The objective by the book: dense logits in float64, row after row. And random rows to try it on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.method.divergences import FLOOR
from engine.method.losses import NO_LABEL, PLAIN, LogitShape, Targets, objective
from engine.records import NO_TOKEN


def random_targets(rows: int, vocabulary: int, top_k: int, seed: int = 0) -> Targets:
    """Targets as the stream makes them: float16 probabilities, NO_TOKEN after the last entry, masks of both kinds."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(vocabulary)[:top_k] for _ in range(rows)])
    probs = random.dirichlet(np.ones(top_k + 1), rows)[:, :top_k]
    is_empty = np.arange(top_k) >= random.integers(0, top_k + 1, (rows, 1))
    return Targets(
        labels=torch.from_numpy(np.where(random.random(rows) < 0.8, random.integers(0, vocabulary, rows), NO_LABEL)),
        fused_ids=torch.from_numpy(np.where(is_empty, NO_TOKEN, ids)),
        fused_probs=torch.from_numpy(np.where(is_empty, 0.0, probs).astype(np.float16)).float(),
        fusion_mask=torch.from_numpy(random.random(rows) < 0.7),
        fusion_weights=torch.from_numpy(random.random(rows).astype(np.float32)),
        lm_weights=torch.from_numpy(random.random(rows).astype(np.float32)),
    )


def one_row(ids: list[int], probs: list[float], label: int = NO_LABEL) -> Targets:
    ones = torch.ones(1)
    return Targets(torch.tensor([label]), torch.tensor([ids]), torch.tensor([probs]), torch.tensor([True]), ones, ones)


def dense_logits(hidden, lm_head, bias, shape: LogitShape):
    logits = hidden.double() @ lm_head.double().T + (0.0 if bias is None else bias.double())
    logits = logits * shape.scale
    return shape.soft_cap * torch.tanh(logits / shape.soft_cap) if shape.soft_cap else logits


def dense_sums(logits: torch.Tensor, targets: Targets, kind: str = "forward_kl") -> tuple[torch.Tensor, torch.Tensor]:
    """Both sums by the book, row after row, from a dense float64 [R,V] of logits."""
    log_p = logits.log_softmax(-1)
    lm = fusion = logits.new_zeros(())
    for row, label in enumerate(targets.labels.tolist()):
        if label != NO_LABEL:
            lm = lm - targets.lm_weights[row] * log_p[row, label]
        if targets.fusion_mask[row]:
            is_kept = targets.fused_ids[row] != NO_TOKEN
            ids, q = targets.fused_ids[row][is_kept], targets.fused_probs[row][is_kept].double()
            fusion = fusion + targets.fusion_weights[row] * by_the_book(kind, *dense_buckets(log_p[row], ids, q))
    return lm, fusion


def dense_buckets(log_p: torch.Tensor, ids: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and log p of the kept ids and, where there are other ids, of these together."""
    others = torch.ones(len(log_p), dtype=torch.bool, device=log_p.device)
    others[ids] = False
    if not others.any():
        return q, log_p[ids]
    rest = (1.0 - q.sum()).clamp(min=0.0)
    return torch.cat([q, rest[None]]), torch.cat([log_p[ids], log_p[others].logsumexp(0)[None]])


def by_the_book(kind: str, q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    if kind == "forward_kl":
        return torch.nn.functional.kl_div(log_p, q, reduction="sum")
    if kind == "reverse_kl":
        return torch.nn.functional.kl_div(q.clamp(min=FLOOR).log(), log_p, reduction="sum", log_target=True)
    log_m = ((log_p.exp() + q) / 2).log()
    of_p = torch.nn.functional.kl_div(log_m, log_p, reduction="sum", log_target=True)
    return (torch.nn.functional.kl_div(log_m, q, reduction="sum") + of_p) / 2


def assert_equals_oracle(
    hidden, lm_head, bias, targets, scales=(0.3, 0.7), shape=PLAIN, kind="forward_kl", tolerance=1e-5
) -> None:
    """Check sums, loss and gradients of ``objective`` against autograd through the dense float64 sums."""
    leaves = [tensor.requires_grad_() for tensor in (hidden, lm_head, bias) if tensor is not None]
    loss, sums, label_nats = objective(hidden, lm_head, bias, targets, *scales, shape, kind)
    gradients = torch.autograd.grad(loss * 2.0, leaves)
    lm, fusion = dense_sums(dense_logits(hidden, lm_head, bias, shape), targets, kind)
    expected_loss = scales[0] * lm + scales[1] * fusion
    expected = torch.autograd.grad(expected_loss * 2.0, leaves)
    np.testing.assert_allclose(sums.tolist(), [lm.item(), fusion.item()], rtol=tolerance, atol=1e-7)
    labels, log_p = targets.labels, dense_logits(hidden, lm_head, bias, shape).log_softmax(-1)
    of_labels = -log_p.gather(-1, labels.clamp(min=0)[:, None])[:, 0] * (labels != NO_LABEL)
    np.testing.assert_allclose(label_nats.tolist(), of_labels.tolist(), rtol=tolerance, atol=1e-5)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance, abs=1e-7)
    for gradient, right in zip(gradients, expected, strict=True):
        assert gradient.isfinite().all()
        assert (gradient - right).norm() <= tolerance * right.norm() + 1e-8
