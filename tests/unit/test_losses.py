"""The sparse chunked losses equal a dense float64 oracle, in value and in every gradient."""

import math

import pytest
import torch

from engine.losses import SMALLEST_MASS, Targets, objective, row_losses

pytestmark = pytest.mark.timeout(60)


def random_case(rows: int, width: int, vocabulary: int, top_k: int, seed: int = 0, mass: float = 0.8):
    """Hidden states, an lm_head and targets with rows without label, without fusion, and with few entries."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=random)
    head = torch.randn(vocabulary, width, generator=random) / math.sqrt(width)
    labels = torch.randint(0, vocabulary, (rows,), generator=random)
    labels[::5] = -1
    ids = torch.stack([torch.randperm(vocabulary, generator=random)[:top_k] for _ in range(rows)])
    probs = torch.rand(rows, top_k, generator=random)
    probs = probs / probs.sum(-1, keepdim=True) * mass
    if top_k > 1:
        ids[1::4, top_k // 2 :] = -1
        probs[1::4, top_k // 2 :] = 0.0
    mask = torch.ones(rows, dtype=torch.bool)
    mask[2::7] = False
    ids[~mask], probs[~mask] = -1, 0.0
    return hidden, head, Targets(labels, ids, probs.half().float(), mask)


def dense_oracle(hidden, head, targets, lm_scale, fusion_scale):
    """The objective with full distributions: a column for each token, and the rest bucket spelled out, in float64."""
    logits = hidden.double() @ head.double().T
    p = logits.softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(hidden)):
        if targets.labels[row] >= 0:
            total = total - lm_scale * p[row, targets.labels[row]].log()
        if not targets.fusion_mask[row]:
            continue
        kept = [
            (int(token), float(q)) for token, q in zip(targets.fused_ids[row], targets.fused_probs[row]) if token >= 0
        ]
        mass = max(1.0, sum(q for _, q in kept))
        kept = [(token, q / mass) for token, q in kept]
        for token, q in kept:
            if q > 0:
                total = total + fusion_scale * q * (math.log(q) - p[row, token].log())
        rest = 1.0 - sum(q for _, q in kept)
        if rest > 1e-12:
            inside = p[row, [token for token, _ in kept]].sum()
            total = total + fusion_scale * rest * (math.log(rest) - (1.0 - inside).clamp(min=SMALLEST_MASS).log())
    return total


SHAPES = [  # rows, width, vocabulary, K
    (1, 8, 11, 1),
    (7, 8, 11, 3),
    (16, 4, 50, 10),
    (255, 8, 40, 5),
    (256, 8, 40, 5),
    (257, 8, 40, 5),
    (600, 16, 64, 16),
    (33, 32, 500, 128),
    (20, 8, 16, 15),
    (64, 8, 1000, 64),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_equal_the_dense_oracle(shape):
    hidden, head, targets = random_case(*shape)
    hidden, head = hidden.requires_grad_(), head.requires_grad_()
    loss, lm_sum, fusion_sum = objective(hidden, head, None, targets, 0.3, 0.7)
    loss.backward()
    copies = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    expected = dense_oracle(*copies, targets, 0.3, 0.7)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(0.3 * lm_sum + 0.7 * fusion_sum) == pytest.approx(float(expected), rel=1e-5)
    for found, oracle in zip((hidden, head), copies, strict=True):
        error = (found.grad.double() - oracle.grad).norm() / oracle.grad.norm()
        assert float(error) < 1e-5


def test_all_tokens_kept_and_no_rest_is_plain_divergence():
    hidden, head, targets = random_case(9, 8, 6, 6, mass=1.0)
    targets = Targets(targets.labels, torch.arange(6).expand(9, 6), torch.full((9, 6), 1 / 6), torch.ones(9).bool())
    _, fusion = row_losses(hidden @ head.T, targets)
    log_p = (hidden @ head.T).log_softmax(-1)
    torch.testing.assert_close(fusion, (1 / 6 * (math.log(1 / 6) - log_p)).sum(-1), rtol=1e-5, atol=1e-6)


def test_a_sum_a_little_over_one_is_float16_rounding_not_a_negative_rest():
    logits = torch.zeros(1, 4)
    probs = torch.tensor([[0.50048828, 0.50048828]])
    targets = Targets(torch.tensor([0]), torch.tensor([[0, 1]]), probs, torch.tensor([True]))
    _, fusion = row_losses(logits, targets)
    assert float(fusion) == pytest.approx(math.log(2), rel=1e-5)


def test_a_model_that_agrees_has_no_fusion_loss():
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(3))
    top = logits.softmax(-1).topk(7)
    targets = Targets(torch.full((5,), -1), top.indices, top.values, torch.ones(5).bool())
    lm, fusion = row_losses(logits, targets)
    assert float(fusion.abs().max()) < 1e-5
    assert not lm.any()


def test_rows_without_anything_give_zero_loss_and_zero_gradient():
    hidden, head, targets = random_case(12, 8, 30, 4)
    nothing = Targets(
        torch.full_like(targets.labels, -1), targets.fused_ids, targets.fused_probs, torch.zeros(12).bool()
    )
    hidden = hidden.requires_grad_()
    loss, *_ = objective(hidden, head, None, nothing, 1.0, 1.0)
    loss.backward()
    assert float(loss) == 0.0
    assert not hidden.grad.any()


def test_tied_weights_get_both_gradients():
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    _, _, targets = random_case(12, 8, 30, 4)
    tokens = torch.arange(12)

    def gradient(weights, dtype):
        weights = weights.detach().to(dtype, copy=True).requires_grad_()
        hidden = torch.tanh(weights[tokens])
        if dtype == torch.float64:
            dense_oracle(hidden, weights, targets, 0.5, 0.5).backward()
        else:
            objective(hidden, weights, None, targets, 0.5, 0.5)[0].backward()
        return weights.grad

    torch.testing.assert_close(
        gradient(table, torch.float32).double(), gradient(table, torch.float64), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("logit_scale", "soft_cap"), [(0.25, 0.0), (1.0, 5.0), (0.5, 3.0)])
def test_logit_scale_and_soft_cap_match_autograd(logit_scale, soft_cap):
    hidden, head, targets = random_case(40, 8, 30, 4)
    bias = torch.randn(30, generator=torch.Generator().manual_seed(2))
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, head, bias)]
    objective(*inputs, targets, 0.4, 0.6, logit_scale, soft_cap)[0].backward()
    plain = [tensor.clone().requires_grad_() for tensor in (hidden, head, bias)]
    logits = (plain[0] @ plain[1].T + plain[2]) * logit_scale
    logits = soft_cap * torch.tanh(logits / soft_cap) if soft_cap else logits
    lm, fusion = row_losses(logits, targets)
    (0.4 * lm.sum() + 0.6 * fusion.sum()).backward()
    for found, expected in zip(inputs, plain, strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_states_are_accumulated_in_float32():
    hidden, head, targets = random_case(300, 16, 64, 8)
    low = [tensor.bfloat16().requires_grad_() for tensor in (hidden, head)]
    loss, *_ = objective(*low, None, targets, 1 / 300, 1 / 300)
    exact, *_ = objective(hidden, head, None, targets, 1 / 300, 1 / 300)
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=1e-2)
    assert low[1].grad.dtype == torch.bfloat16
