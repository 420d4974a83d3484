"""The target model in one process: masks, positions, schedule, checkpoints, export, and what it refuses."""

import json
import math
import threading
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CohereConfig, Gemma2Config, GraniteConfig, OPTConfig
from transformers.masking_utils import find_packed_sequence_indices

from actors.training import checkpoints
from actors.training import target_model as target_model_module
from actors.training.checkpoint_index import latest, read_state
from actors.training.export import export
from actors.training.target_model import Blocks, TargetModel, _positions, learning_rate_at
from engine.errors import FusionError, StoreError, TrainingError, causes
from engine.model_files.checkpoint import Checkpoint
from engine.records import flat_values
from engine.spec import LoraSpec, ObjectiveSpec, OptimizerSpec, TargetModelSpec, TrainingSpec
from tests.oracles import label_gain
from tests.support.failing_store import failing_store
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_with_bos
from tests.support.training_blocks import LENGTH, TOP_K, VOCABULARY, of_domain, training_blocks, with_bad_probability

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("process_group")]

TRAINING = TrainingSpec(
    block_length=LENGTH,
    global_batch_blocks=4,
    micro_batch_blocks=2,
    max_steps=20,
    optimizer=OptimizerSpec(learning_rate=3e-3, warmup_steps=4),
)

#: All weights are trained, no adapters.
WHOLE = LoraSpec()


def target(
    checkpoint: str, training: TrainingSpec = TRAINING, lora: LoraSpec = WHOLE, num_domains: int = 0
) -> TargetModel:
    section, objective = (
        TargetModelSpec(checkpoint=checkpoint, lora=lora),
        ObjectiveSpec(lm_loss_weight=0.5, full_gain=0.0),
    )
    return TargetModel(section, training, objective, TOP_K, torch.device("cpu"), num_domains)


def test_positions_start_again_in_every_segment():
    segments = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    assert _positions(segments).tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_transformers_takes_each_place_of_padding_for_a_passage_by_itself():
    segments = torch.tensor([[1, 1, 1, 2, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
    found = find_packed_sequence_indices(_positions(segments)).tolist()
    assert found == [[0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]]


def test_padding_may_be_longer_than_the_models_context(tmp_path):
    checkpoint, lengths = tiny_checkpoint(tmp_path, "gpt2", positions=12), (9, 4)
    model, table = target(checkpoint), training_blocks(seed=2, lengths=lengths)
    model.model.eval()  # no dropout
    found = model.train_step(table)
    alone, nats = AutoModelForCausalLM.from_pretrained(checkpoint).eval(), 0.0
    for passage in torch.from_numpy(flat_values(table["input_ids"])[0][: sum(lengths)].copy()).long().split(lengths):
        with torch.no_grad():
            nats += float(alone(input_ids=passage[None], labels=passage[None]).loss) * (len(passage) - 1)
    assert found.lm_rows == sum(lengths) - 2
    assert found.lm_loss == pytest.approx(nats / found.lm_rows, rel=1e-6)
    _, of_a_worker_without_blocks, of_block, _ = model.model(model._blocks(None), (1.0, 1.0), torch.zeros(1))
    assert (of_a_worker_without_blocks.tolist(), of_block.tolist()) == ([0.0] * 6, [[0.0] * 3])


def test_the_causal_lm_loss_of_a_step_is_summed_domain_by_domain(tmp_path):
    """Each domain's nats are those of a step on its blocks alone."""
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    parts = {domain: of_domain(training_blocks(seed), domain) for domain, seed in ((0, 2), (2, 3))}
    both = target(checkpoint, num_domains=3).train_step(pa.concat_tables(parts.values()))
    alone = {domain: target(checkpoint).train_step(table) for domain, table in parts.items()}
    expected = [alone[domain].lm_loss * alone[domain].lm_rows if domain in alone else 0.0 for domain in range(3)]
    assert both.domain_lm_nats == pytest.approx(expected, rel=1e-6)
    assert alone[0].domain_lm_nats == ()


def test_a_gpu_copies_blocks_by_itself_and_a_cpu_copies_nothing():
    blocks = Blocks(*(mock.Mock() for _ in Blocks._fields))
    assert blocks.on(torch.device("cpu")) is blocks
    gpu = torch.device("cuda")
    for tensor, copy in zip(blocks, blocks.on(gpu), strict=True):
        pinned = tensor.pin_memory.return_value
        pinned.to.assert_called_once_with(gpu, non_blocking=True)
        assert copy is pinned.to.return_value


def test_a_look_at_rows_changes_no_loss_and_says_what_the_model_says(tmp_path):
    checkpoint, table = tiny_checkpoint(tmp_path, "llama"), training_blocks(seed=3)
    blind, looking = target(checkpoint), target(checkpoint)
    asked = np.flatnonzero(flat_values(table["loss_mask"])[0])[[0, 1, 5, 40, 41]]
    blocks = looking._blocks(table)
    with torch.no_grad():
        alone = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        logits = alone(input_ids=blocks.input_ids, position_ids=blocks.position_ids, use_cache=False).logits
        p = logits.flatten(0, 1)[asked].double().softmax(-1).numpy()
    for step in range(2):
        found = looking.train_step(table, asked)
        assert found._replace(own=None) == blind.train_step(table), "bit for bit"
        if step == 0:
            _check_own_rows(found.own, p, blocks, asked)
    assert blind.train_step(table, np.empty(0, np.int64)).own is None


def _check_own_rows(own, p, blocks, asked):
    """The target's rows equal its softmax ``p``, its gains the slow twin."""
    for row, place in enumerate(asked):
        label = int(blocks.labels.flatten()[place])
        assert own.ids[row].tolist() == np.argsort(-p[row], kind="stable")[:5].tolist()
        assert own.probs[row].tolist() == pytest.approx(sorted(p[row], reverse=True)[:5], rel=1e-4)
        assert float(own.costs[row]) == pytest.approx(-math.log(p[row][label]), rel=1e-4)
        if blocks.fusion_mask.flatten()[place]:
            ids, masses = (column.flatten(0, 1)[place].tolist() for column in (blocks.fused_ids, blocks.fused_probs))
            fused = {token: mass for token, mass in zip(ids, masses, strict=True) if token >= 0}
            assert float(own.gains[row]) == pytest.approx(label_gain(p[row], fused, label), abs=1e-3)
        else:
            assert float(own.gains[row]) == 0.0


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gpt-neox"])
def test_a_passage_does_not_see_its_neighbours(tmp_path, architecture):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path, architecture)).eval()
    random = torch.Generator().manual_seed(0)
    passages = [torch.randint(0, 400, (length,), generator=random) for length in (9, 14, 6)]
    segments = torch.tensor([[1] * 9 + [2] * 14 + [3] * 6] * 2)
    ids = torch.stack([torch.cat(passages), torch.cat([passages[0], torch.flip(passages[1], [0]), passages[2]])])
    with torch.no_grad():
        packed = model.base_model(input_ids=ids, position_ids=_positions(segments), use_cache=False).last_hidden_state
        alone = [model.base_model(input_ids=tokens[None]).last_hidden_state[0] for tokens in passages]
    for block in packed:
        torch.testing.assert_close(block[:9], alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(block[23:], alone[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[0, 9:23], alone[1], rtol=1e-4, atol=1e-4)


def test_every_micro_batch_leaves_its_gradients_sharded_and_in_float32(tmp_path):
    model = target(tiny_checkpoint(tmp_path, "llama"), TRAINING.model_copy(update={"precision": "bfloat16"}))
    shards = [parameter for group in model.optimizer.param_groups for parameter in group["params"]]
    before = []
    model.model.register_forward_pre_hook(
        lambda *_: before.append({None if shard.grad is None else shard.grad.dtype for shard in shards})
    )
    model.train_step(training_blocks(seed=1))
    assert before == [{None}, {torch.float32}]


def test_the_gradient_is_clipped_to_its_greatest_norm(tmp_path):
    checkpoint, table = tiny_checkpoint(tmp_path, "llama"), training_blocks(seed=1)

    def first_moment(max_grad_norm: float) -> tuple[float, float]:
        """The gradient's own norm, and that of what reached the optimizer."""
        optimizer = TRAINING.optimizer.model_copy(update={"max_grad_norm": max_grad_norm})
        model = target(checkpoint, TRAINING.model_copy(update={"optimizer": optimizer}))
        own = model.train_step(table).grad_norm
        moments = [state["exp_avg"].full_tensor().norm() for state in model.optimizer.state.values()]
        return own, float(torch.stack(moments).norm()) / (1.0 - optimizer.betas[0])

    own, unclipped = first_moment(1e9)
    assert unclipped == pytest.approx(own, rel=1e-4)
    assert own > 0.1
    assert first_moment(0.01) == pytest.approx((own, 0.01), rel=1e-3)


def test_the_moments_fade_as_betas_say(tmp_path):
    """After one step the first moment is 1 - beta of the gradient, the second 1 - beta of its square."""
    betas = (0.6, 0.7)
    optimizer = TRAINING.optimizer.model_copy(update={"betas": betas, "max_grad_norm": 1e9})
    model = target(tiny_checkpoint(tmp_path, "llama"), TRAINING.model_copy(update={"optimizer": optimizer}))
    model.train_step(training_blocks(seed=1))
    for state in model.optimizer.state.values():
        gradient = state["exp_avg"].full_tensor() / (1.0 - betas[0])
        torch.testing.assert_close(state["exp_avg_sq"].full_tensor(), (1.0 - betas[1]) * gradient**2)
    own = torch.stack([state["exp_avg"].full_tensor().norm() for state in model.optimizer.state.values()]).norm()
    again = target(tiny_checkpoint(tmp_path / "again", "llama"), TRAINING)
    assert float(own) / (1.0 - betas[0]) == pytest.approx(again.train_step(training_blocks(seed=1)).grad_norm, rel=1e-4)


@pytest.mark.parametrize(("full_gain", "weight"), [(0.5, 1.0), (0.0, 0.75)])  # the second is the paper's
def test_a_step_without_fused_rows_is_one_of_continued_training(tmp_path, full_gain, weight):
    table = training_blocks(seed=1)
    nothing = pa.array([[False] * LENGTH] * len(table), pa.large_list(pa.bool_()))
    table = table.set_column(table.column_names.index("fusion_mask"), "fusion_mask", nothing)
    section = TargetModelSpec(checkpoint=tiny_checkpoint(tmp_path, "llama"))
    objective = ObjectiveSpec(lm_loss_weight=0.75, full_gain=full_gain)
    model = TargetModel(section, TRAINING, objective, TOP_K, torch.device("cpu"))
    found = model.train_step(table)
    assert found.fused_rows == 0
    assert math.isnan(found.fusion_loss)
    assert found.lm_loss > 1.0
    assert found.loss == pytest.approx(weight * found.lm_loss, rel=1e-7)


@pytest.mark.parametrize("tied", [False, True])
def test_steps_lower_both_losses(tmp_path, tied):
    model = target(tiny_checkpoint(tmp_path, "llama", tied=tied))
    table = training_blocks(seed=1)
    losses = [model.train_step(table) for _ in range(15)]
    assert losses[-1].lm_loss < 0.9 * losses[0].lm_loss
    assert losses[-1].fusion_loss < 0.9 * losses[0].fusion_loss
    assert model.step == 15


def test_the_lm_loss_is_transformers_own(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "mistral")
    table = training_blocks(seed=2, lengths=[LENGTH] * 3)  # one passage a block: nothing is packed
    losses = target(checkpoint).train_step(table)
    ids = torch.from_numpy(np.stack([np.array(row) for row in table["input_ids"].to_pylist()])).long()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
    assert losses.lm_loss == pytest.approx(float(expected), rel=1e-5)
    assert losses.lm_rows == 3 * (LENGTH - 1)


def test_a_worker_without_blocks_takes_part_without_weight(tmp_path):
    model = target(tiny_checkpoint(tmp_path, "llama"))
    for nothing in (None, training_blocks(seed=0).slice(0, 0)):
        losses = model.train_step(nothing)
        assert losses.lm_rows == losses.fused_rows == 0


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_passages(tmp_path):
    model = target(tiny_checkpoint(tmp_path, "llama"))
    with torch.no_grad():
        next(model.model.parameters()).to_local().fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"step 1: not finite: LM loss nan, .* passages 0/a:1:0, 0/a:1:2"):
        model.train_step(training_blocks(seed=1))
    assert model.step == 0


def test_a_refused_step_leaves_no_trace(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    disturbed, undisturbed = target(checkpoint), target(checkpoint)
    good = training_blocks(seed=1)
    disturbed.train_step(good), undisturbed.train_step(good)
    with pytest.raises(TrainingError, match=r"step 2: not finite: LM loss \d.*, fusion loss nan"):
        disturbed.train_step(with_bad_probability(good))
    assert disturbed.train_step(good) == undisturbed.train_step(good)


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
SMALL = SIZES | {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.25, "pad_token_id": 0}


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**SMALL, logit_scale=0.25),
        GraniteConfig(**SMALL, logits_scaling=4.0),
        Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=2.0),
    ],
    ids=lambda config: config.model_type,
)
def test_what_an_architecture_does_behind_its_lm_head_is_in_the_loss(tmp_path, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    table = training_blocks(seed=2, lengths=[LENGTH] * 2)
    losses = target(str(tmp_path)).train_step(table)
    ids = torch.from_numpy(flat_values(table["input_ids"])[0].reshape(2, LENGTH).copy()).long()
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids, labels=ids).loss
    assert losses.lm_loss == pytest.approx(float(expected), rel=1e-5)


def test_an_architecture_whose_attention_crosses_passages_is_refused(tmp_path):
    torch.manual_seed(0)
    config = OPTConfig(**{**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": LENGTH})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="OPTForCausalLM gives a passage other logits inside a training block"):
        target(str(tmp_path))


def test_bfloat16_rounds_the_model_but_not_its_targets(tmp_path, monkeypatch):
    seen = []

    def spy(hidden, lm_head, bias, targets, *rest):
        seen.append((hidden.dtype, lm_head.dtype, targets.fused_probs))
        return objective(hidden, lm_head, bias, targets, *rest)

    objective = target_model_module.objective
    monkeypatch.setattr(target_model_module, "objective", spy)
    checkpoint, table = tiny_checkpoint(tmp_path, "llama"), training_blocks(seed=1)
    low = target(checkpoint, TRAINING.model_copy(update={"precision": "bfloat16", "micro_batch_blocks": 9}))
    losses = low.train_step(table)
    hidden, lm_head, probs = seen[0]
    assert hidden == lm_head == torch.bfloat16
    np.testing.assert_array_equal(probs.flatten(), flat_values(table["fused_probs"])[0])
    assert {parameter.dtype for parameter in low.model.parameters()} == {torch.float32}
    exact = target(checkpoint).train_step(table)
    assert losses.lm_loss == pytest.approx(exact.lm_loss, rel=0.02)
    assert losses.fusion_loss == pytest.approx(exact.fusion_loss, rel=0.02)


def test_only_matrices_decay(tmp_path):
    decayed, free = target(tiny_checkpoint(tmp_path, "gpt2")).optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and {parameter.ndim for parameter in decayed["params"]} == {2}
    assert free["weight_decay"] == 0.0 and {parameter.ndim for parameter in free["params"]} == {1}


def test_the_schedule():
    rates = [learning_rate_at(step, TRAINING) / 3e-3 for step in range(21)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(0.1)
    linear = TRAINING.model_copy(update={"optimizer": OptimizerSpec(learning_rate=1.0, schedule="linear")})
    assert [learning_rate_at(step, linear) for step in (0, 10, 20)] == pytest.approx([1.0, 0.55, 0.1])
    constant = TRAINING.model_copy(update={"optimizer": OptimizerSpec(learning_rate=1.0, schedule="constant")})
    assert learning_rate_at(17, constant) == 1.0


def test_a_checkpoint_brings_everything_back(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama")
    model = target(checkpoint)
    for seed in range(3):
        model.train_step(training_blocks(seed=seed))
    folder = str(tmp_path / "checkpoints" / "step-00000003")
    checkpoints.save(model, folder, {"learned": ["a"]}).result()
    ahead = [model.train_step(training_blocks(seed=seed)).loss for seed in (3, 4)]
    again = target(checkpoint)
    assert latest(str(tmp_path / "checkpoints")) is not None
    state = checkpoints.load(again, folder)
    assert state["learned"] == ["a"]
    assert again.step == 3
    assert [again.train_step(training_blocks(seed=seed)).loss for seed in (3, 4)] == ahead


def test_half_a_checkpoint_counts_for_nothing_and_old_ones_go(tmp_path):
    model = target(tiny_checkpoint(tmp_path / "model", "llama"))
    folder = tmp_path / "checkpoints"
    assert latest(str(folder)) is None
    for step in (1, 2, 3):
        checkpoints.save(model, str(folder / f"step-{step:08d}"), {"at": step}).result()
    (folder / "step-00000003" / "state.json").unlink()
    assert read_state(latest(str(folder)))["at"] == 2
    checkpoints.prune(str(folder), keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama")
    model = target(checkpoint)
    model.train_step(training_blocks(seed=0))
    first_pass = model.first_pass.tolist()
    goes_on, write_data = threading.Event(), checkpoints.FsspecWriter.write_data

    def write_later(*arguments):
        assert goes_on.wait(60)
        return write_data(*arguments)

    monkeypatch.setattr(checkpoints.FsspecWriter, "write_data", write_later)
    writer = checkpoints.CheckpointWriter(str(tmp_path / "checkpoints"), keep=1, timeout_hours=1.0)
    written = []
    writer.save(model, {"at": 1}, lambda: written.append(latest(str(tmp_path / "checkpoints"))))
    ahead = [model.train_step(training_blocks(seed=seed)).loss for seed in (1, 2)]
    assert latest(str(tmp_path / "checkpoints")) is None
    goes_on.set()
    writer.finish()
    assert written == [None], "what the checkpoint refers to is written before it counts"
    again = target(checkpoint)
    state = checkpoints.load(again, latest(str(tmp_path / "checkpoints")))
    assert state == {"at": 1, "step": 1, "first_pass": first_pass}
    assert again.first_pass.tolist() == first_pass and first_pass[0][1] > 0
    assert [again.train_step(training_blocks(seed=seed)).loss for seed in (1, 2)] == ahead
    for _ in range(2):
        writer.save(model, {}, lambda: None)
        model.train_step(training_blocks(seed=3))
    writer.finish()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


EXPORTED = [("llama", True), ("mistral", False), ("gpt2", True), ("gpt-neox", False)]


@pytest.mark.parametrize(("architecture", "tied"), EXPORTED)
def test_the_export_is_what_transformers_loads(tmp_path, architecture, tied):
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    checkpoint = tiny_checkpoint(tmp_path / "model", architecture, tmp_path / "tokenizer", tied=tied)
    model = target(checkpoint)
    export(model, Checkpoint(checkpoint), str(tmp_path / "out" / "export"))
    places = (checkpoint, tmp_path / "out" / "export")
    before, after = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in places)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["export"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "export")
    assert tokenizer("the cat")["input_ids"] == AutoTokenizer.from_pretrained(checkpoint)("the cat")["input_ids"]
    config = json.loads((tmp_path / "out" / "export" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied


def test_a_save_that_breaks_off_over_an_older_checkpoint_leaves_none(tmp_path, monkeypatch):
    model = target(tiny_checkpoint(tmp_path / "model", "llama"))
    folder = tmp_path / "run [1]" / "checkpoints"
    checkpoints.save(model, str(folder / "step-00000001"), {"at": 1}).result()
    checkpoints.save(model, str(folder / "step-00000002"), {"at": 2}).result()

    def break_off(*_arguments, **_options):
        raise OSError("the disk is full")

    monkeypatch.setattr(checkpoints.FsspecWriter, "write_data", break_off)
    with pytest.raises(OSError, match=r"step-00000002: cannot be written: the disk is full") as raised:
        checkpoints.save(model, str(folder / "step-00000002"), {"at": 2}).result()
    assert not isinstance(raised.value, FusionError), "Ray Train tries again"
    assert list(causes(raised.value)) == [raised.value], "the one that a person reads at the end"
    assert read_state(latest(str(folder)))["at"] == 1


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    model = target(tiny_checkpoint(tmp_path / "llama", "llama"))
    checkpoints.save(model, str(tmp_path / "step-00000000"), {}).result()
    with pytest.raises(TrainingError, match=r"step-00000000: does not fit the target model gpt2"):
        checkpoints.load(target(tiny_checkpoint(tmp_path / "gpt2", "gpt2")), str(tmp_path / "step-00000000"))


def test_a_checkpoint_that_its_store_does_not_give_is_neither_damaged_nor_refused(tmp_path):
    model = target(tiny_checkpoint(tmp_path / "model", "llama"))
    folder = tmp_path / "step-00000000"
    checkpoints.save(model, str(folder), {"at": 1}).result()
    with failing_store() as store:
        for path in folder.iterdir():
            store.write(f"{folder.name}/{path.name}", path.read_bytes())
        url = f"failing://{folder.name}"
        store.fail()
        assert checkpoints.load(model, url) == {"at": 1, "step": 0, "first_pass": [[0.0, 0.0]]}
        reads = store.asked["read"]
        assert reads > 20
        store.fail(open={1, 2, 4}, read=range(1, reads, 5))
        assert checkpoints.load(model, url) == {"at": 1, "step": 0, "first_pass": [[0.0, 0.0]]}
        for first in (1, 2, reads // 2, reads):  # its metadata, its tensors and its journal
            store.fail(read=range(first, 10**9))
            with pytest.raises(StoreError, match=r"step-00000000.* cannot be read.*PayloadError.*tried 9") as raised:
                checkpoints.load(model, url)
            assert list(causes(raised.value)) == [raised.value], "the one that a person reads at the end"
        store.fail()
        for name in (".metadata", "__0_0.distcp"):
            whole = store.files[f"{folder.name}/{name}"]
            store.write(f"{folder.name}/{name}", whole[:50] + bytes(len(whole) - 50))
            with pytest.raises(TrainingError, match=r"step-00000000: does not fit .*, or is damaged"):
                checkpoints.load(model, url)
            store.write(f"{folder.name}/{name}", whole)


@pytest.mark.parametrize("tied", [False, True])
def test_the_export_holds_what_was_learned(tmp_path, tied):
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama", tmp_path / "tokenizer", tied=tied)
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    settings |= {"temperature": 0.6, "do_sample": False}  # as Llama 2's own, which transformers will not save
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    model = target(checkpoint)
    untrained = AutoModelForCausalLM.from_pretrained(checkpoint)
    folder = tmp_path / "export"
    export(model, Checkpoint(checkpoint), str(folder))
    for seed in range(3):
        model.train_step(training_blocks(seed=seed))
    export(model, Checkpoint(checkpoint), str(folder))  # a second one takes the first one's place
    live, reloaded = model.model.eval(), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        live.unshard()
        expected = live.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(reloaded(ids).logits, expected)
        assert (untrained(ids).logits - expected).abs().max() > 0.01
    assert reloaded.config.use_cache == untrained.config.use_cache
    assert reloaded.generation_config.temperature == 0.6
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_checkpoints_can_lie_at_any_fsspec_path(tmp_path):
    model = target(tiny_checkpoint(tmp_path, "llama"))
    checkpoints.save(model, "memory://runs/checkpoints/step-00000000", {"learned": []}).result()
    found = latest("memory://runs/checkpoints")
    assert found is not None
    assert checkpoints.load(model, found)["learned"] == []
