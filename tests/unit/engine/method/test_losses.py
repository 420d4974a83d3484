"""The chunked, sparse losses against a dense oracle in float64: values and gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.training.target_model import TargetModel
from engine.method import losses
from engine.method.divergences import FLOOR
from engine.method.losses import NO_LABEL, LogitShape, Targets, objective
from engine.records import NO_TOKEN
from engine.spec import ObjectiveSpec, TargetModelSpec, TrainingSpec
from tests.support.dense_losses import assert_equals_oracle, dense_sums, one_row, random_targets
from tests.support.tiny_models import tiny_checkpoint
from tests.support.training_blocks import LENGTH, TOP_K, training_blocks

pytestmark = pytest.mark.timeout(60)

each_divergence = pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])


@pytest.fixture(scope="module")
def interpreted_kernels():
    """The kernels of a GPU, run by Triton's interpreter. It is chosen when they are defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from engine.method import loss_kernels

        patch.setattr(loss_kernels, "BLOCK", 16)  # several a row; the interpreter's time is that of the block
        yield


@pytest.fixture(params=["operations of PyTorch", "kernels of a GPU"])
def both_ways(request, monkeypatch):
    """The test runs both ways to the same numbers."""
    if request.param == "kernels of a GPU":
        request.getfixturevalue("by_kernels")


@pytest.fixture
def by_kernels(interpreted_kernels, monkeypatch):
    monkeypatch.setattr(losses, "_Chunks", losses._GpuChunks)


@pytest.fixture
def small_chunks(monkeypatch):
    """Three rows a chunk at V = 50, the last one incomplete."""
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", 150)


@pytest.mark.parametrize("shape", [losses.PLAIN, LogitShape(0.0625), LogitShape(1.0, 5.0), LogitShape(1.5, 3.0)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "top_k"), [(1, 4), (7, 1), (32, 10), (20, 49), (17, 50)])
@each_divergence
@pytest.mark.usefixtures("small_chunks")
def test_values_and_gradients_equal_the_dense_oracle(rows, top_k, with_bias, shape, kind):
    assert_random_rows_equal_oracle(rows, top_k, with_bias, shape, kind)


@pytest.mark.parametrize(("shape", "with_bias"), [(losses.PLAIN, False), (LogitShape(1.5, 3.0), True)])
@pytest.mark.parametrize(("rows", "top_k"), [(7, 1), (8, 10), (5, 50)])
@each_divergence
@pytest.mark.usefixtures("small_chunks", "by_kernels")
def test_the_kernels_of_a_gpu_equal_the_dense_oracle(rows, top_k, with_bias, shape, kind):
    assert_random_rows_equal_oracle(rows, top_k, with_bias, shape, kind)


def assert_random_rows_equal_oracle(rows, top_k, with_bias, shape, kind):
    torch.manual_seed(rows)
    hidden, lm_head = torch.randn(rows, 8), torch.randn(50, 8)
    bias = torch.randn(50) if with_bias else None
    # Where all of V is kept there are no other tokens for a rest mass to lie on.
    targets = whole_vocabulary(rows) if top_k == 50 else random_targets(rows, 50, top_k, seed=rows)
    assert_equals_oracle(hidden, lm_head, bias, targets, shape=shape, kind=kind)


def whole_vocabulary(rows: int) -> Targets:
    """K = V = 50, eighths that sum to 1 exactly in float16."""
    probs = torch.zeros(rows, 50)
    probs[:, :3] = torch.tensor([0.5, 0.375, 0.125])
    ids = torch.stack([torch.randperm(50) for _ in range(rows)])
    weights = torch.rand(2, rows)
    return Targets(torch.arange(rows), ids, probs, torch.ones(rows, dtype=torch.bool), *weights)


@pytest.mark.parametrize("scales", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
@each_divergence
@pytest.mark.usefixtures("small_chunks")
def test_either_loss_alone(scales, kind):
    torch.manual_seed(0)
    assert_equals_oracle(torch.randn(11, 8), torch.randn(50, 8), None, random_targets(11, 50, 5), scales, kind=kind)


@pytest.mark.parametrize(
    ("ids", "probs"),
    [
        ([3, 5, 7], [0.5, 0.25, 0.25]),  # no rest mass
        ([3, 5, 7], [0.5, 0.25, 0.2505]),  # a bit over 1, as float16 rounds
        ([3, NO_TOKEN, NO_TOKEN], [1.0, 0.0, 0.0]),  # one-hot
        ([0, NO_TOKEN, NO_TOKEN], [0.5, 0.0, 0.0]),  # the id that the empty places might fall on
        ([3, 0, NO_TOKEN], [0.5, 0.0, 0.0]),  # kept with probability 0
        ([3, 5, 7], [6e-8, 6e-8, 0.9]),  # the smallest float16
    ],
)
@pytest.mark.parametrize("label", [NO_LABEL, 3, 4])
@each_divergence
@pytest.mark.usefixtures("both_ways")
def test_odd_rows(ids, probs, label, kind):
    torch.manual_seed(1)
    assert_equals_oracle(torch.randn(1, 8), torch.randn(20, 8), None, one_row(ids, probs, label), kind=kind)


@each_divergence
def test_many_entries_of_a_larger_vocabulary(kind):
    torch.manual_seed(7)
    hidden, lm_head = torch.randn(40, 16), torch.randn(1000, 16) / 4
    assert_equals_oracle(hidden, lm_head, None, random_targets(40, 1000, 128), kind=kind)


@each_divergence
@pytest.mark.usefixtures("both_ways")
def test_rows_without_anything_give_zero_loss_and_zero_gradient(kind):
    hidden, lm_head = torch.randn(12, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    some = random_targets(12, 50, 4)
    nothing = replace(
        some, labels=torch.full_like(some.labels, NO_LABEL), fusion_mask=torch.zeros_like(some.fusion_mask)
    )
    loss, sums, _ = objective(hidden, lm_head, None, nothing, 1.0, 1.0, kind=kind)
    loss.backward()
    assert loss.item() == 0.0 and sums.tolist() == [0.0, 0.0]
    assert not hidden.grad.any() and not lm_head.grad.any()


@each_divergence
@pytest.mark.usefixtures("both_ways")
def test_a_fused_row_that_keeps_nothing_asks_for_nothing(kind):
    hidden, lm_head = torch.randn(1, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    loss, sums, _ = objective(hidden, lm_head, None, one_row([NO_TOKEN] * 3, [0.0] * 3), 1.0, 1.0, kind=kind)
    loss.backward()
    assert sums.tolist() == [0.0, 0.0]
    assert hidden.grad.abs().max() < 1e-6


@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0])
@each_divergence
@pytest.mark.usefixtures("both_ways")
def test_rest_mass_far_below_the_precision_of_one(gap, kind):
    """With 1 - sum p the rest of the target would be 0 from a gap of 17 on: no value, no gradient."""
    logits = torch.zeros(1, 8)
    logits[0, 2] = gap
    assert_equals_oracle(logits, torch.eye(8), None, one_row([2, NO_TOKEN], [0.75, 0.0]), kind=kind)


@pytest.mark.usefixtures("both_ways")
def test_a_target_without_any_rest_stays_finite():
    logits = torch.zeros(1, 8)
    logits[0, 2] = 500.0
    hidden, lm_head = logits.requires_grad_(), torch.eye(8).requires_grad_()
    loss, _, _ = objective(hidden, lm_head, None, one_row([2], [0.75]), 1.0, 1.0)
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all()
    assert hidden.grad[0, 2] == pytest.approx(0.25)  # away from the certainty, by the missing mass


@each_divergence
def test_the_divergence_of_equals_is_nothing(kind):
    torch.manual_seed(2)
    hidden, lm_head = torch.randn(6, 8), torch.randn(30, 8)
    probs, ids = (hidden @ lm_head.T).softmax(-1).topk(5)
    ones = torch.ones(6)
    targets = Targets(torch.full((6,), NO_LABEL), ids, probs, ones.bool(), ones, ones)
    hidden.requires_grad_()
    loss, sums, _ = objective(hidden, lm_head, None, targets, 1.0, 1.0, kind=kind)
    loss.backward()
    assert abs(sums[1].item()) < 1e-5
    assert hidden.grad.abs().max() < 1e-5


@each_divergence
def test_tied_weights_get_both_gradients(kind):
    torch.manual_seed(3)
    targets, tokens = random_targets(9, 40, 4), torch.randint(0, 40, (9,))
    weight = torch.randn(40, 8, requires_grad=True)
    loss, _, _ = objective(torch.tanh(weight[tokens]), weight, None, targets, 0.5, 0.5, kind=kind)
    lm, fusion = dense_sums(torch.tanh(weight[tokens].double()) @ weight.double().T, targets, kind)
    gradient, expected = (torch.autograd.grad(value, weight)[0] for value in (loss, 0.5 * (lm + fusion)))
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_the_sums_do_not_depend_on_the_chunks(monkeypatch):
    torch.manual_seed(4)
    hidden, lm_head, targets = torch.randn(40, 8), torch.randn(50, 8), random_targets(40, 50, 6)
    found = []
    for logits in (1, 50 * 7, 2**24):
        monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", logits)
        found.append(objective(hidden, lm_head, None, targets, 1.0, 1.0)[1].tolist())
    np.testing.assert_allclose(found, [found[0]] * 3, rtol=1e-6)


@each_divergence
@pytest.mark.usefixtures("both_ways")
def test_bfloat16_weights_lose_no_more_than_their_own_rounding(kind):
    """Oracle: float64 from the very logits, rounded to bfloat16, that a bfloat16 model gives out."""
    torch.manual_seed(5)
    hidden, lm_head = torch.randn(32, 8).bfloat16().requires_grad_(), torch.randn(50, 8).bfloat16().requires_grad_()
    targets = random_targets(32, 50, 6)
    loss, sums, _ = objective(hidden, lm_head, None, targets, 0.5, 0.5, kind=kind)
    loss.backward()
    lm, fusion = dense_sums((hidden @ lm_head.T).double(), targets, kind)
    np.testing.assert_allclose(sums.tolist(), [lm.item(), fusion.item()], rtol=1e-5)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, lm_head)]
    dense = dense_sums(exact[0] @ exact[1].T, targets, kind)
    torch.autograd.backward(0.5 * (dense[0] + dense[1]), inputs=exact)
    for tensor, right in zip((hidden, lm_head), exact, strict=True):
        assert tensor.grad.dtype == torch.bfloat16
        assert (tensor.grad.double() - right.grad).norm() < 0.01 * right.grad.norm()


def test_autocast_changes_nothing():
    torch.manual_seed(6)
    hidden, lm_head, targets = torch.randn(9, 8), torch.randn(50, 8), random_targets(9, 50, 6)
    plain = objective(hidden, lm_head, None, targets, 1.0, 1.0)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(hidden, lm_head, None, targets, 1.0, 1.0)[1], plain)


@pytest.mark.parametrize("kind", ["reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("gap", [20.0, 500.0])
def test_a_target_sure_of_what_the_sources_exclude_pays_a_finite_price(kind, gap):
    """Kept with probability 0: 16.6 nats under reverse KL, by the floor; log 2 under Jensen and Shannon."""
    logits = torch.zeros(1, 8)
    logits[0, 2] = gap
    hidden, lm_head = logits.requires_grad_(), torch.eye(8)
    loss, sums, _ = objective(hidden, lm_head, None, one_row([2, 3], [0.0, 1.0]), 0.0, 1.0, kind=kind)
    loss.backward()
    assert hidden.grad.isfinite().all()
    assert sums[1].item() == pytest.approx(-np.log(FLOOR) if kind == "reverse_kl" else np.log(2), rel=1e-5)


def test_a_second_backward_pass_is_refused_not_scaled_twice():
    hidden, lm_head = torch.randn(4, 8, requires_grad=True), torch.randn(50, 8)
    loss, _, _ = objective(hidden, lm_head, None, random_targets(4, 50, 3), 1.0, 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_divergence
@pytest.mark.usefixtures("process_group")
def test_the_target_model_learns_by_the_divergence_of_the_spec(tmp_path, kind):
    checkpoint, table = tiny_checkpoint(tmp_path, "llama"), training_blocks(seed=1)
    sections = (
        TrainingSpec(block_length=LENGTH, micro_batch_blocks=8),
        ObjectiveSpec(lm_loss_weight=0.5, divergence=kind, full_gain=0.0),
    )
    model = TargetModel(TargetModelSpec(checkpoint=checkpoint), *sections, TOP_K, torch.device("cpu"))
    ids, positions, *targets, _is_repeated, _domains = model._blocks(table)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(checkpoint)
        logits = plain(input_ids=ids, position_ids=positions, use_cache=False).logits.flatten(0, 1).double()
    targets = [tensor.flatten(0, 1) for tensor in targets]
    every = targets[-1].float()
    targets = Targets(*targets, fusion_weights=every, lm_weights=torch.ones_like(every))
    expected = dense_sums(logits, targets, kind)[1] / targets.fusion_mask.sum()
    assert model.train_step(table).fusion_loss == pytest.approx(expected.item(), rel=1e-5)
