"""The gain of fused rows over the target on the labels, and the weights of passages: against the slow twins."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.training import target_model
from actors.training.target_model import StepLosses, TargetModel
from engine.method import gain
from engine.method.gain import (
    counted_rows,
    label_gains,
    mean_weights,
    passage_weights,
    remaining_lm_weights,
    repeated_weights,
)
from engine.method.losses import NO_LABEL, PLAIN, LogitShape
from engine.records import NO_TOKEN
from engine.spec import ObjectiveSpec, TargetModelSpec, TrainingSpec
from tests import oracles
from tests.support.dense_losses import dense_logits, one_row, random_targets
from tests.support.tiny_models import tiny_checkpoint
from tests.support.training_blocks import (
    LENGTH,
    TOP_K,
    VOCABULARY,
    of_domain,
    repeated,
    training_blocks,
    with_known_labels,
)

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("shape", [PLAIN, LogitShape(1.5, 3.0)])
@pytest.mark.parametrize(("rows", "top_k", "with_bias"), [(1, 4, False), (33, 1, True), (60, 12, False)])
def test_gains_equal_the_slow_twin(rows, top_k, with_bias, shape, monkeypatch):
    monkeypatch.setitem(gain.CHUNK_LOGITS, "cpu", 7 * 50)  # the last chunk is incomplete
    torch.manual_seed(rows)
    hidden, lm_head = torch.randn(rows, 8), torch.randn(50, 8)
    bias = torch.randn(50) if with_bias else None
    targets = random_targets(rows, 50, top_k, seed=rows)
    found = label_gains(hidden, lm_head, bias, targets, shape).tolist()
    p = dense_logits(hidden, lm_head, bias, shape).softmax(-1).tolist()
    for row, label in enumerate(targets.labels.tolist()):
        entries = zip(targets.fused_ids[row].tolist(), targets.fused_probs[row].tolist(), strict=True)
        fused = {token: prob for token, prob in entries if token != NO_TOKEN}
        counts = label != NO_LABEL and bool(targets.fusion_mask[row])
        assert found[row] == pytest.approx(oracles.label_gain(p[row], fused, label) if counts else 0.0, abs=1e-4)


def test_a_label_that_the_sources_find_impossible_costs_log_100_and_equals_gain_nothing():
    logits = torch.randn(1, 20)
    impossible = one_row([3, 5], [0.5, 0.5], label=4)
    assert label_gains(logits, torch.eye(20), None, impossible).item() == pytest.approx(-math.log(100), abs=1e-4)
    probs, ids = logits.softmax(-1).topk(5)
    for label in (ids[0, 2].item(), logits.argmin().item()):
        equal = replace(one_row([0], [0.0], label=label), fused_ids=ids, fused_probs=probs)
        assert label_gains(logits, torch.eye(20), None, equal).item() == pytest.approx(0.0, abs=1e-4)


def test_a_target_that_is_sure_of_another_token_has_a_finite_gain():
    logits = torch.zeros(1, 8)
    logits[0, 2] = 200.0
    for targets in (one_row([3], [0.75], label=3), one_row([2], [0.75], label=3)):
        assert label_gains(logits, torch.eye(8), None, targets).isfinite().all()


def test_weights_of_random_passages_equal_the_slow_twin():
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(1, 9, int(random.integers(1, 12)))
        passages = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        counts = torch.from_numpy(random.random(len(passages)) < 0.7)
        gains = torch.where(counts, torch.from_numpy(random.normal(0.2, 0.5, len(passages))).float(), 0.0)
        full_gain = float(random.choice([0.1, 0.5, 2.0]))
        found = passage_weights(gains, counts, passages, full_gain)
        for passage in range(len(lengths)):
            own = gains[(passages == passage) & counts].tolist()
            expected = oracles.passage_weight(own, full_gain)
            assert found[passages == passage].tolist() == pytest.approx([expected] * int(lengths[passage]), abs=1e-6)


def test_a_repeated_passage_has_its_domains_weight_if_anything_is_fused_for_it():
    random = np.random.default_rng(1)
    for _ in range(50):
        lengths = random.integers(1, 9, int(random.integers(1, 12)))
        passages = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        counts = torch.from_numpy(random.random(len(passages)) < 0.2)
        known = torch.from_numpy(random.random(len(lengths))).float()
        found = repeated_weights(known[passages], counts, passages)
        for passage in range(len(lengths)):
            is_fused = any(counts[passages == passage].tolist())
            expected = float(known[passage]) if is_fused else 0.0
            assert found[passages == passage].tolist() == [expected] * int(lengths[passage])


@pytest.mark.usefixtures("process_group")
def test_the_target_model_weighs_passages_and_reports_the_gain(tmp_path):
    """Random fused rows know nothing: their passages count for less, and what counts is the weighted mean."""
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    ungated, weighted = first_step(checkpoint, full_gain=0.0), first_step(checkpoint)
    assert ungated.fusion_weight == 1.0 and math.isnan(ungated.fusion_gain)
    assert 0.0 <= weighted.fusion_weight < 1.0 and -math.log(100) <= weighted.fusion_gain
    assert weighted.lm_loss == ungated.lm_loss and weighted.fusion_loss < ungated.fusion_loss
    assert weighted == first_step(checkpoint)
    assert ungated.loss == pytest.approx(0.2 * ungated.lm_loss + 0.8 * ungated.fusion_loss, rel=1e-6)


@pytest.mark.usefixtures("process_group")
def test_a_passage_of_a_part_of_the_full_gain_has_parts_of_both_losses(tmp_path):
    table, full_gain = with_known_labels(training_blocks(seed=1)), 2 * math.log(VOCABULARY)
    losses = first_step(tiny_checkpoint(tmp_path, "llama"), table, full_gain=full_gain)
    assert losses.fusion_weight == pytest.approx(losses.fusion_gain / full_gain, rel=0.01)
    assert 0.4 < losses.fusion_weight < 0.9
    lm_weight = (losses.loss - 0.8 * losses.fusion_loss) / losses.lm_loss
    assert lm_weight == pytest.approx(1.0 - 0.8 * losses.fusion_weight, rel=0.02)


@pytest.mark.usefixtures("process_group")
def test_text_of_which_the_sources_know_nothing_more_is_learned_as_in_continued_training(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    nothing_known = first_step(checkpoint, full_gain=1e9)  # every passage has the weight 0, all but
    continued = first_step(checkpoint, lm_loss_weight=1.0, full_gain=0.0)
    assert nothing_known.loss == pytest.approx(continued.loss, rel=1e-6)
    assert nothing_known.grad_norm == pytest.approx(continued.grad_norm, rel=1e-5)


@pytest.mark.usefixtures("process_group")
def test_text_that_is_read_again_has_the_weights_of_its_domain_in_the_first_pass(tmp_path):
    """The target has learned the labels by heart: what it says of them no longer says what it knows."""
    model = gated_target(tiny_checkpoint(tmp_path, "llama"), num_domains=3)
    known = of_domain(with_known_labels(training_blocks(seed=1)), 0)
    unknown = of_domain(training_blocks(seed=2), 2)
    first = {0: model.train_step(known), 2: model.train_step(unknown)}
    assert first[0].fusion_weight > 0.9 and first[2].fusion_weight < 0.5
    sums = model.first_pass.clone()
    assert sums[:, 1].tolist() == [first[0].fused_rows, 0, first[2].fused_rows]
    for domain, table in ((0, known), (2, unknown)):
        again = model.train_step(repeated(table))
        assert math.isnan(again.fusion_gain)
        assert again.fusion_weight == pytest.approx(first[domain].fusion_weight, rel=1e-6)
        assert model.first_pass.equal(sums)


@pytest.mark.usefixtures("process_group")
def test_a_block_with_new_and_repeated_passages_measures_the_new_ones_alone(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    new, old = training_blocks(seed=1, lengths=(LENGTH,)), training_blocks(seed=2, lengths=(LENGTH,))
    alone, mixed = gated_target(checkpoint), gated_target(checkpoint)
    mixed.first_pass[:] = torch.tensor([[30.0, 40.0]])
    of_new = alone.train_step(new)
    of_both = mixed.train_step(pa.concat_tables([new, repeated(old)]))
    assert of_both.fusion_gain == pytest.approx(of_new.fusion_gain, rel=1e-6)
    repeated_rows = of_both.fused_rows - of_new.fused_rows
    expected = of_new.fusion_weight * of_new.fused_rows + 0.75 * repeated_rows
    assert of_both.fusion_weight * of_both.fused_rows == pytest.approx(expected, rel=1e-6)
    rows = [30.0 + of_new.fusion_weight * of_new.fused_rows, 40.0 + of_new.fused_rows]
    assert mixed.first_pass[0].tolist() == pytest.approx(rows, rel=1e-6)


@pytest.mark.usefixtures("process_group")
def test_where_no_row_has_a_gain_none_is_looked_for(tmp_path, monkeypatch):
    model = gated_target(tiny_checkpoint(tmp_path, "llama"))
    monkeypatch.setattr(target_model, "label_gains", lambda *_: pytest.fail("a pass over the lm_head for nothing"))
    model.train_step(repeated(training_blocks(seed=1)))


@pytest.mark.usefixtures("process_group")
def test_repeated_text_that_nothing_is_fused_for_is_learned_in_full(tmp_path):
    """As where a source was retired, or has left the passage out."""
    checkpoint, table = tiny_checkpoint(tmp_path, "llama"), training_blocks(seed=1)
    nothing = pa.array([[False] * LENGTH] * len(table), pa.large_list(pa.bool_()))
    table = table.set_column(table.column_names.index("fusion_mask"), "fusion_mask", nothing)
    again, new = gated_target(checkpoint), gated_target(checkpoint)
    again.first_pass[:] = torch.tensor([[40.0, 40.0]])
    found, expected = again.train_step(repeated(table)), new.train_step(table)
    assert found.loss == expected.loss == pytest.approx(expected.lm_loss, rel=1e-6)
    assert found.grad_norm == expected.grad_norm


def test_the_mean_weight_of_a_domain_without_fused_rows_is_zero():
    assert mean_weights(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)).tolist() == [0.75, 0.0]


def gated_target(checkpoint: str, num_domains: int = 0) -> TargetModel:
    sections = TrainingSpec(block_length=LENGTH, micro_batch_blocks=2), ObjectiveSpec()
    section, device = TargetModelSpec(checkpoint=checkpoint), torch.device("cpu")
    return TargetModel(section, *sections, TOP_K, device, num_domains)


def first_step(checkpoint: str, table: pa.Table | None = None, **objective: float) -> StepLosses:
    sections = TrainingSpec(block_length=LENGTH, micro_batch_blocks=3), ObjectiveSpec(**objective)
    model = TargetModel(TargetModelSpec(checkpoint=checkpoint), *sections, TOP_K, torch.device("cpu"))
    return model.train_step(table or training_blocks(seed=1))


def test_the_lm_loss_gets_what_the_fusion_loss_of_a_passage_does_not():
    found = remaining_lm_weights(torch.tensor([0.0, 0.5, 1.0]), 0.2)
    assert found.tolist() == pytest.approx([1.0, 0.6, 0.2])


def test_rows_without_label_or_fused_distribution_do_not_count():
    targets = random_targets(40, 50, 3)
    assert counted_rows(targets).tolist() == [
        label != NO_LABEL and fused
        for label, fused in zip(targets.labels.tolist(), targets.fusion_mask.tolist(), strict=True)
    ]
