"""The objective on a GPU: the dense float64 oracle's numbers, and not one moment in which the processor waits."""

from dataclasses import fields

import pytest
import torch

from engine.method import losses
from engine.method.gain import counted_rows, label_gains, passage_weights
from engine.method.losses import LogitShape, Targets, objective
from tests.support.dense_losses import assert_equals_oracle, dense_logits, dense_sums, random_targets

pytestmark = pytest.mark.timeout(120)

ROWS, SIZE, VOCABULARY = 40, 64, 5003  # no multiple of a kernel's block


def on_gpu(targets: Targets) -> Targets:
    return Targets(*(getattr(targets, field.name).cuda() for field in fields(targets)))


def parts(dtype: torch.dtype, with_bias: bool = False) -> tuple:
    torch.manual_seed(0)
    hidden, lm_head = torch.randn(ROWS, SIZE), torch.randn(VOCABULARY, SIZE) / 8
    bias = torch.randn(VOCABULARY) if with_bias else None
    return tuple(None if part is None else part.to("cuda", dtype) for part in (hidden, lm_head, bias))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Seven rows a chunk, the last one incomplete."""
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cuda", 7 * VOCABULARY)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("shape", [losses.PLAIN, LogitShape(1.5, 3.0)])
@pytest.mark.parametrize(("top_k", "with_bias"), [(10, False), (64, True), (128, False)])
def test_float32_equals_the_dense_oracle(top_k, with_bias, shape, kind):
    hidden, lm_head, bias = parts(torch.float32, with_bias)
    targets = on_gpu(random_targets(ROWS, VOCABULARY, top_k))
    assert_equals_oracle(hidden, lm_head, bias, targets, shape=shape, kind=kind)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_bfloat16_loses_no_more_than_its_own_rounding(kind):
    """Against the oracle on the same rounded inputs: logits and gradients are rounded to 8 bits each."""
    hidden, lm_head, _ = (None if part is None else part.requires_grad_() for part in parts(torch.bfloat16))
    targets = on_gpu(random_targets(ROWS, VOCABULARY, 64))
    loss, sums, _ = objective(hidden, lm_head, None, targets, 0.3 / ROWS, 0.7 / ROWS, kind=kind)
    gradients = torch.autograd.grad(loss, [hidden, lm_head])
    lm, fusion = dense_sums(dense_logits(hidden, lm_head, None, losses.PLAIN), targets, kind)
    expected = torch.autograd.grad((0.3 * lm + 0.7 * fusion) / ROWS, [hidden, lm_head])
    assert sums.tolist() == pytest.approx([lm.item(), fusion.item()], rel=5e-3)
    for gradient, right in zip(gradients, expected, strict=True):
        assert (gradient - right).norm() <= 1e-2 * right.norm()


def test_the_processor_never_waits_for_the_gpu():
    hidden, lm_head, _ = (None if part is None else part.requires_grad_() for part in parts(torch.bfloat16))
    targets = on_gpu(random_targets(ROWS, VOCABULARY, 64))
    objective(hidden, lm_head, None, targets, 0.5, 0.5)[0].backward()  # compiles the kernels
    hidden.grad = lm_head.grad = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective(hidden, lm_head, None, targets, 0.5, 0.5)[0].backward()
        gains = label_gains(hidden, lm_head, None, targets)
        weights = passage_weights(gains, counted_rows(targets), torch.arange(ROWS, device="cuda") // 8, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert gains.isfinite().all() and (weights <= 1.0).all()
    assert hidden.grad.isfinite().all() and lm_head.grad.isfinite().all()
