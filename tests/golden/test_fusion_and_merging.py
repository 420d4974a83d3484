"""The authors' losses for four rows of three models, and their SCE merge, by worked figures."""

import math

import numpy as np
import pytest
import torch

from engine.method.fusion import fuse, source_weights
from engine.method.losses import NO_LABEL, Targets, objective
from engine.method.merging import dare, select_calculate_erase, slerp, ties
from engine.method.rows import FusedRows, SourceRows, TargetRows
from engine.spec import FusionRuleSpec

STUDENT = [[2.0, 1, 0, -1], [0, 0, 1, 0], [1, -1, 0.5, 0]]
BASE = [[0.7, 0.3, 0, 0], [0, 0.5, 0.5, 0], [1, 0, 0, 0]]
FIRST = [[0.1, 0.9, 0, 0], [0.2, 0.2, 0.6, 0], [0, 0, 1, 0]]
SECOND = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
CAUSAL_LM_LOSS, LM_LOSS_WEIGHT = 1.25, 0.9


def authors(rule: str = "min_ce") -> FusionRuleSpec:
    return FusionRuleSpec(rule=rule, top_k=4, arithmetic="fusellm")


def source(rows: list[list[float]], cross_entropy: float) -> SourceRows:
    """Three rows over four tokens, each in descending order, every own token costing ``cross_entropy``."""
    probs = np.array(rows)
    order = np.argsort(-probs, axis=1, kind="stable")
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.take_along_axis(probs, order, 1)).astype(np.float16)
    return SourceRows(
        np.array([0, 3]), np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32), order.astype(np.int32), logprobs,
        np.full(3, -cross_entropy, np.float32), np.arange(4, dtype=np.int32), np.array([0, 1, 2, -1], np.int32),
    )  # fmt: skip


def fused(cross_entropies: list[float], rule: str) -> FusedRows:
    sources = [source(rows, value) for rows, value in zip((BASE, FIRST, SECOND), cross_entropies, strict=True)]
    target = TargetRows(
        np.zeros(4, np.int32), np.arange(4, dtype=np.int32), np.array([0, 4]), np.array([4], np.int32),
        np.zeros(1, np.int32), np.ones(1, bool),
    )  # fmt: skip
    return fuse(target, sources, authors(rule), vocabulary=4)


def fusion_loss(ids: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """The mean over the rows of the cross-entropy against the student, and of the KL divergence."""
    count = len(ids)
    targets = Targets(
        torch.full((count,), NO_LABEL),
        torch.tensor(ids).long(),
        torch.tensor(probs.astype(np.float32)),
        torch.ones(count, dtype=torch.bool),
        torch.ones(count),
        torch.ones(count),
    )
    hidden = torch.tensor(STUDENT[:count])
    _, (_, total), _ = objective(hidden, torch.eye(4), None, targets, 0.0, 1.0 / count)
    kept = probs[probs > 0].astype(np.float64)
    entropy = -(kept * np.log(kept)).sum()
    return (total.item() + entropy) / count, total.item() / count


def loss(part: float) -> float:
    return LM_LOSS_WEIGHT * CAUSAL_LM_LOSS + (1 - LM_LOSS_WEIGHT) * part


@pytest.mark.parametrize(("rows", "expected"), [(BASE, 0.910142), (FIRST, 1.243475), (SECOND, 2.310142)])
def test_cross_entropy_of_one_models_rows(rows, expected):
    probs = np.array(rows)
    ids = np.where(probs > 0, np.arange(4), -1)
    assert fusion_loss(ids, probs)[0] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("cross_entropies", "winner", "expected"),
    [
        ([2.0, 1.5, 1.8], 1, 1.249348),
        ([1.0, 1.5, 1.8], 0, 1.216014),
        ([1.502, 1.500, 9.0], 0, 1.216014),  # the authors compare in bfloat16, where the first two tie
    ],
)
def test_min_ce(cross_entropies, winner, expected):
    rows = fused(cross_entropies, "min_ce")
    assert rows.win_share[0].argmax() == winner
    cross_entropy, divergence = fusion_loss(rows.ids[:3], rows.probs[:3])
    assert loss(cross_entropy) == pytest.approx(expected, abs=1e-4)
    if winner == 1:
        assert loss(divergence) == pytest.approx(1.206836, abs=1e-4)


def test_in_full_precision_the_better_source_wins():
    values = np.array([[1.502, 1.500, 9.0]])
    assert source_weights(values, authors()).argmax() == 0
    assert source_weights(values, FusionRuleSpec(rule="min_ce")).argmax() == 1


def test_avg_ce():
    weights = source_weights(np.array([[2.0, 1.5, 1.8]]), authors("avg_ce"))
    assert weights[0].tolist() == pytest.approx([0.3203, 0.3497, 0.3300], abs=5e-4)
    rows = fused([2.0, 1.5, 1.8], "avg_ce")
    assert loss(fusion_loss(rows.ids[:3], rows.probs[:3])[0]) == pytest.approx(1.27388, abs=2e-4)


def test_the_last_position_is_masked_with_us():
    """A passage's last row has no label: of three rows the third, which the authors teach, is left out."""
    rows = fused([2.0, 1.5, 1.8], "min_ce")
    assert rows.is_fused.tolist() == [True, True, True, False]
    assert loss(fusion_loss(rows.ids[:2], rows.probs[:2])[0]) == pytest.approx(1.249193, abs=1e-4)


PIVOT, TARGETS = np.zeros(4), [np.array(row) for row in ([1, 2, -1, 0.1], [2, -2, -1, 0.1], [0.5, 1, 3, 0.1])]


@pytest.mark.parametrize(
    ("select", "form", "expected"),
    [
        (1.0, "published_code", [1.1535, 1.3694, 3.0, 0.1]),
        (0.5, "published_code", [0.6818, 1.1, 3.0, 0.1]),
        (0.1, "published_code", [1.1667, 1.5, 3.0, 0.1]),  # nothing is selected: equal weights
        (0.5, "paper", [0, 0, 2.4545, 0]),
    ],
)
def test_select_calculate_erase(select, form, expected):
    merged = select_calculate_erase(PIVOT, TARGETS, select, form)
    assert merged.tolist() == pytest.approx(expected, abs=5e-5)


def test_slerp():
    """A quarter turn, half of it, and two vectors that point the same way."""
    first, second = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    assert slerp(first, second, 0.0).tolist() == [1.0, 0.0]
    assert slerp(first, second, 0.5).tolist() == pytest.approx([math.sqrt(0.5), 2 * math.sqrt(0.5)])
    assert slerp(first, second, 1 / 3).tolist() == pytest.approx([math.sin(math.pi / 3), 2 * math.sin(math.pi / 6)])
    assert slerp(first, 3 * first, 0.25).tolist() == [1.5, 0.0]
    assert slerp(first, 0 * first, 0.25).tolist() == [0.75, 0.0]


@pytest.mark.parametrize(
    ("weights", "keep", "expected"),
    [
        # Kept: 1 and 2 of the first, 2 and -2 of the second, 1 and 3 of the third.
        ([1, 1, 1], 0.5, [1.5, 1.5, 3.0, 0.0]),
        ([1, 4, 1], 0.5, [1.8, -2.0, 3.0, 0.0]),  # the second outvotes the others where they disagree
        ([1, 1, 1], 1.0, [7 / 6, 1.5, 3.0, 0.1]),
        ([1, 1, 1], 0.1, [2.0, 2.0, 3.0, 0.0]),  # one change of each: the first of the largest
    ],
)
def test_ties(weights, keep, expected):
    assert ties(PIVOT, TARGETS, weights, keep).tolist() == pytest.approx(expected)
    assert ties(PIVOT + 5, [target + 5 for target in TARGETS], weights, keep) - 5 == pytest.approx(expected)


def test_ties_scales_the_merged_change_alone():
    assert ties(PIVOT + 1, [target + 1 for target in TARGETS], [1, 1, 1], 1.0, scale=0.5).tolist() == pytest.approx(
        [1 + 7 / 12, 1.75, 2.5, 1.05]
    )


def test_dare():
    """Everything kept is the mean of the changes; a draw keeps its share of them, enlarged, so that the mean stays."""
    random = np.random.default_rng(0)
    assert dare(PIVOT, TARGETS, [1, 1, 2], 1.0, random).tolist() == pytest.approx([1.0, 0.5, 1.0, 0.1])
    base, changed = np.full(100_000, 3.0), np.full(100_000, 4.0)
    dropped = dare(base, [changed], [1.0], 0.25, random)
    assert set(dropped.tolist()) == {3.0, 7.0}
    assert dropped.mean() == pytest.approx(4.0, abs=0.03)
