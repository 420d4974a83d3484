"""How a target model comes to its weights and adapters, and what recomputation and compilation leave as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.training import checkpoints
from actors.training.export import export
from actors.training.loading import empty_causal_lm, read_causal_lm
from actors.training.target_model import TargetModel
from engine.errors import TrainingError
from engine.model_files import saving
from engine.model_files.checkpoint import Checkpoint
from engine.spec import LoraSpec, ObjectiveSpec, OptimizerSpec, TargetModelSpec, TrainingSpec
from engine.text.tokenization import PassageTokenizer
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_with_bos
from tests.support.training_blocks import LENGTH, TOP_K, training_blocks

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("process_group")]

ADAPTED = LoraSpec(rank=4, alpha=8.0)


@pytest.fixture
def checkpoint(tmp_path) -> str:
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    return tiny_checkpoint(tmp_path / "model", "llama", tmp_path / "tokenizer")


def target(checkpoint: str, lora: LoraSpec = LoraSpec(), **training) -> TargetModel:  # noqa: B008
    rates = OptimizerSpec(learning_rate=3e-3)
    section = TrainingSpec(
        block_length=LENGTH, global_batch_blocks=4, micro_batch_blocks=2, optimizer=rates, **training
    )
    model = TargetModelSpec(checkpoint=checkpoint, lora=lora)
    return TargetModel(model, section, ObjectiveSpec(lm_loss_weight=0.5, full_gain=0.0), TOP_K, torch.device("cpu"))


def losses(model: TargetModel, steps: int = 4) -> list[float]:
    return [model.train_step(training_blocks(seed=seed)).loss for seed in range(steps)]


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("gpt2", True), ("gpt-neox", False)])
def test_the_model_begins_without_memory_and_gets_the_checkpoints_weights_bit_for_bit(tmp_path, architecture, tied):
    folder = tiny_checkpoint(tmp_path, architecture, tied=tied)
    section = TargetModelSpec(checkpoint=folder)
    empty, whole = empty_causal_lm(section), AutoModelForCausalLM.from_pretrained(folder)
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    filled = target(folder).model.model
    assert {name for name, _ in filled.named_parameters()} == {name for name, _ in whole.named_parameters()}
    for name, parameter in whole.named_parameters():
        assert torch.equal(filled.get_parameter(name).full_tensor(), parameter), name
    for name, buffer in whole.named_buffers():
        assert torch.equal(filled.get_buffer(name), buffer), name
    is_tied = filled.get_output_embeddings().weight is filled.get_input_embeddings().weight
    assert is_tied == tied


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
def test_recomputation_changes_no_loss(tmp_path, architecture):
    folder = tiny_checkpoint(tmp_path, architecture)
    assert losses(target(folder, activation_checkpointing=True)) == losses(target(folder))


@pytest.mark.timeout(300)  # a C++ compiler works for half a minute of CPU time
def test_compilation_changes_no_loss(tmp_path):
    folder = tiny_checkpoint(tmp_path, "llama")
    torch.compiler.reset()
    counters.clear()
    assert losses(target(folder, compile=True), 2) == pytest.approx(losses(target(folder), 2), rel=2e-5)
    assert counters["stats"]["unique_graphs"] > 0


def test_recomputation_keeps_fewer_activations(tmp_path):
    folder = tiny_checkpoint(tmp_path, "llama")

    def kept_bytes(**training) -> int:
        model, total = target(folder, **training), 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(model._blocks(training_blocks(seed=0)), (0.1, 0.1), torch.zeros(1))
        return total

    plain, recomputed = kept_bytes(), kept_bytes(activation_checkpointing=True)
    assert recomputed < 0.5 * plain


def test_the_export_of_an_fp8_checkpoint_does_not_claim_to_be_fp8(tmp_path, checkpoint):
    path = Path(checkpoint) / "config.json"
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": fp8}))
    export(target(checkpoint), Checkpoint(checkpoint), str(tmp_path / "export"))
    assert "quantization_config" not in json.loads((tmp_path / "export" / "config.json").read_text())
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert {parameter.dtype for parameter in exported.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("stored", "wanted", "written"),
    [("bfloat16", "auto", torch.bfloat16), ("float32", "auto", torch.float32), ("bfloat16", "float32", torch.float32)],
)
def test_the_export_has_the_checkpoints_type_or_the_specs_in_files_of_a_bounded_size(
    tmp_path, checkpoint, stored, wanted, written, monkeypatch
):
    monkeypatch.setattr(saving, "LARGEST_FILE", "20KB")
    path = Path(checkpoint) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": stored}))
    export(target(checkpoint), Checkpoint(checkpoint), str(tmp_path / "export"), wanted)
    files = list((tmp_path / "export").glob("*.safetensors"))
    assert len(files) > 1
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {written}
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert {parameter.dtype for parameter in exported.parameters()} == {written}


@pytest.mark.parametrize("bos", ["tokenizer", "always", "never"])
def test_the_export_puts_bos_before_a_text_as_the_target_was_trained(tmp_path, checkpoint, bos):
    read = Checkpoint(checkpoint, bos=bos)
    export(target(checkpoint), read, str(tmp_path / "export"))
    exported = PassageTokenizer.load(Checkpoint(str(tmp_path / "export")))
    assert exported.adds_bos == PassageTokenizer.load(read).adds_bos == (bos != "never")
    assert (exported.hugging_face("The cat")["input_ids"][0] == exported.bos_id) == (bos != "never")


def test_adapters_alone_are_trained_and_stored_and_the_export_has_them_merged(tmp_path, checkpoint):
    model = target(checkpoint, ADAPTED)
    before = losses(model)
    plain = losses(target(checkpoint))
    assert before[0] == pytest.approx(plain[0], rel=1e-6), "fresh adapters change nothing"
    assert before[1:] != pytest.approx(plain[1:], rel=1e-6)
    trained = [name for name, parameter in model.model.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    folder = tmp_path / "checkpoints" / "step-00000004"
    checkpoints.save(model, str(folder), {}).result()
    stored = checkpoints.FsspecReader(str(folder)).read_metadata().state_dict_metadata
    weights = [name for name in stored if name.startswith("model.")]
    assert sorted(weights) == sorted(f"model.{name}" for name in trained)
    ahead = losses(model, 2)
    again = target(checkpoint, ADAPTED)
    checkpoints.load(again, str(folder))
    assert losses(again, 2) == ahead
    export(again, Checkpoint(checkpoint), str(tmp_path / "export"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    original = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert {name for name, _ in exported.named_parameters()} == {name for name, _ in original.named_parameters()}
    ids = torch.arange(3, 30)[None]
    again.model.eval().unshard()
    with torch.no_grad():
        expected = again.model.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(exported(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (original(ids).logits - expected).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("the cat")["input_ids"]
    assert "quantization" not in json.loads((tmp_path / "export" / "config.json").read_text())


def test_modules_that_are_not_there_are_named(checkpoint):
    with pytest.raises(TrainingError, match=r"lora.target_modules \['wrong'\].*q_proj"):
        target(checkpoint, LoraSpec(rank=4, target_modules=("wrong",)))


@pytest.mark.parametrize(
    ("tied", "modules", "refused"),
    [
        (False, ("q_proj", "lm_head"), r"lm_head is the lm_head"),
        (True, ("embed_tokens",), r"model\.embed_tokens shares the lm_head's weight"),
        (True, ("lm_head", "embed_tokens"), r"model\.embed_tokens shares .*; lm_head is the lm_head"),
    ],
)
@pytest.mark.parametrize("load", [empty_causal_lm, read_causal_lm])
def test_an_adapter_that_training_or_export_would_pass_by_is_refused(tmp_path, tied, modules, refused, load):
    lora = LoraSpec(rank=4, target_modules=modules)
    section = TargetModelSpec(checkpoint=tiny_checkpoint(tmp_path, "llama", tied=tied), lora=lora)
    with pytest.raises(TrainingError, match=rf"lora\.target_modules \[.*\]: {refused}.* Choose from (.*)") as error:
        load(section)
    offered = str(error.value).partition("Choose from ")[2]
    assert "q_proj" in offered and "norm" not in offered
    assert ("embed_tokens" in offered) != tied


def test_the_adapter_of_an_embedding_with_a_weight_of_its_own_is_in_the_export(tmp_path, checkpoint):
    model = target(checkpoint, LoraSpec(rank=4, target_modules=("embed_tokens",)))
    losses(model)
    export(model, Checkpoint(checkpoint), str(tmp_path / "export"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    original = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.arange(3, 30)[None]
    model.model.eval().unshard()
    with torch.no_grad():
        expected = model.model.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(exported(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (original(ids).logits - expected).abs().max() > 0.01
