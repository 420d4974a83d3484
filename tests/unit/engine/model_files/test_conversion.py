"""GGUF files and adapters become the Hugging Face folders that they stand for, or are refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from engine.corpus.windows import scoring_window
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import local_checkpoint
from engine.text.tokenization import PassageTokenizer
from tests.support.paths import ROOT
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import POSITIONS, tiny_checkpoint, tiny_model
from tests.support.tiny_tokenizers import SENTENCES, byte_level_without_bos

pytestmark = pytest.mark.timeout(120)


HUB_NAME = """
import sys
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import local_checkpoint
print(local_checkpoint(Checkpoint("owner/model", adapter=sys.argv[1]), cache_dir=sys.argv[2]))
"""

CHAT_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.fixture()
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def checkpoint(folder: Path, tied: bool = False) -> str:
    """A tiny Llama whose weights bfloat16 holds exactly, with its tokenizer."""
    byte_level_without_bos().save_pretrained(folder / "tokenizer")
    tiny_checkpoint(folder / "model", "llama", folder / "tokenizer", tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    model.to(torch.float32).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory) -> str:
    return checkpoint(tmp_path_factory.mktemp("tied"), tied=True)


def write_adapter(base: str, folder: Path, *modules: str) -> tuple[str, torch.Tensor]:
    """An adapter over ``base`` that changes it much, and the logits that peft itself gives."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(folder)
    return str(folder), logits_of(model)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> tuple[str, torch.Tensor]:
    return write_adapter(base, tmp_path_factory.mktemp("adapter") / "lora", "q_proj", "down_proj")


def loaded(folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def test_a_gguf_file_becomes_a_folder(base, cache, tmp_path):
    found = local_checkpoint(Checkpoint(write_gguf(base, tmp_path / "tiny.gguf")), cache_dir=str(cache))
    model, original = loaded(found), loaded(base)
    assert model.dtype == torch.bfloat16
    weights = model.state_dict()
    for name, expected in original.state_dict().items():
        assert torch.equal(weights[name].float(), expected), name
    tokenizer, expected = AutoTokenizer.from_pretrained(found), AutoTokenizer.from_pretrained(base)
    assert tokenizer(SENTENCES)["input_ids"] == expected(SENTENCES)["input_ids"]
    assert tokenizer.eos_token_id == expected.eos_token_id
    assert model.config.max_position_embeddings == POSITIONS


def test_a_quantized_file_becomes_a_plain_model(tied_base, cache, tmp_path):
    """Without a mark of its quantisation, with its embeddings tied, its roles, and its chat template."""
    file = write_gguf(tied_base, tmp_path / "tiny.gguf", quantized=True, chat_template=CHAT_TEMPLATE)
    found = local_checkpoint(Checkpoint(file), cache_dir=str(cache))
    written = (Path(found) / "config.json").read_text() + (Path(found) / "tokenizer_config.json").read_text()
    assert "quant" not in written
    assert "gguf" not in written
    model, original = loaded(found), loaded(tied_base)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in load_file(Path(found) / "model.safetensors")
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (0, 0)
    assert AutoTokenizer.from_pretrained(found).chat_template == CHAT_TEMPLATE
    for name, expected in original.state_dict().items():  # 8 bits for each 32 weights, then bfloat16
        assert (model.state_dict()[name].float() - expected).abs().max() < expected.abs().max() / 60, name
    model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(("said", "adds_bos"), [(True, True), (False, False), (None, False)])
def test_bos_precedes_a_text_where_the_file_says_so(base, cache, tmp_path, said, adds_bos):
    """transformers does not look, and a Llama 3 that is trained on would learn without BOS."""
    file = write_gguf(base, tmp_path / "tiny.gguf", adds_bos=said)
    tokenizer = AutoTokenizer.from_pretrained(local_checkpoint(Checkpoint(file), weights=False, cache_dir=str(cache)))
    plain = tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"]
    assert tokenizer(SENTENCES[0])["input_ids"] == [0] * adds_bos + plain


def test_a_file_that_lacks_tensors_is_refused(base, cache, tmp_path):
    """transformers would begin them at random, with a warning: so would every part but the last of a file in parts."""
    file = write_gguf(base, tmp_path / "part.gguf", left_out=["blk.1.ffn_up.weight"])
    with pytest.raises(ValueError, match=r"part\.gguf cannot be converted: .*1 tensors are missing, .*up_proj.*join"):
        local_checkpoint(Checkpoint(file), cache_dir=str(cache))
    assert not list(cache.glob("*/*.safetensors"))
    assert not list(cache.glob("*.part"))


def test_a_remote_gguf_file_has_a_window_and_a_tokenizer(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write_gguf(base, tmp_path / "tiny.gguf")
    assert scoring_window(Checkpoint(f"file://{file}"), 2048) == POSITIONS - 2
    tokenizer, expected = PassageTokenizer.load(Checkpoint(f"file://{file}")), PassageTokenizer.load(Checkpoint(base))
    assert all(np.array_equal(tokenizer.encode(text)[0], expected.encode(text)[0]) for text in SENTENCES)
    kept = tmp_path / ".cache/knowledge-fusion-engine/checkpoints"
    assert not list(kept.glob("*/*.safetensors")), "the model was not asked for"


def test_a_file_that_is_no_gguf_is_refused(cache, tmp_path):
    (tmp_path / "wrong.gguf").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"wrong.gguf cannot be converted"):
        local_checkpoint(Checkpoint(str(tmp_path / "wrong.gguf")), cache_dir=str(cache))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_an_adapter_is_merged(base, adapter, cache):
    folder, expected = adapter
    original = loaded(base)
    found = local_checkpoint(Checkpoint(base, adapter=folder), cache_dir=str(cache))
    merged = loaded(found)
    assert merged.dtype == original.dtype
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits_of(original)).abs().max() > 0.1, "or the test could not tell"
    assert local_checkpoint(Checkpoint(base, adapter=folder), cache_dir=str(cache)) == found
    assert local_checkpoint(Checkpoint(base, adapter=folder), weights=False, cache_dir=str(cache)) == base


def test_a_remote_adapter_over_a_remote_base(base, adapter, cache):
    names = (f"file://{base}", f"file://{adapter[0]}")
    merged = loaded(local_checkpoint(Checkpoint(*names), cache_dir=str(cache)))
    torch.testing.assert_close(logits_of(merged), adapter[1], rtol=1e-4, atol=1e-4)


def test_a_changed_adapter_is_merged_again(base, adapter, cache, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "lora")
    before = local_checkpoint(Checkpoint(base, adapter=str(folder)), cache_dir=str(cache))
    change_configuration(folder, lora_alpha=1)
    after = local_checkpoint(Checkpoint(base, adapter=str(folder)), cache_dir=str(cache))
    assert (logits_of(loaded(before)) - logits_of(loaded(after))).abs().max() > 0.1


def test_an_adapter_over_a_hub_name_goes_by_the_commit(base, adapter, cache, tmp_path):
    hub = tmp_path / "hub" / "models--owner--model"
    (hub / "refs").mkdir(parents=True)
    for commit in ("1" * 40, "2" * 40):
        shutil.copytree(base, hub / "snapshots" / commit)
    found = []
    for commit in ("1" * 40, "2" * 40, "2" * 40):
        (hub / "refs" / "main").write_text(commit)
        command = [sys.executable, "-c", HUB_NAME, adapter[0], str(cache)]
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.strip())
    assert found[0] != found[1] == found[2]
    torch.testing.assert_close(logits_of(loaded(found[1])), adapter[1], rtol=1e-4, atol=1e-4)


def test_what_the_base_generates_with_is_kept(base, adapter, cache, tmp_path):
    """Llama 2's own settings, which transformers loads and then refuses to save."""
    folder = shutil.copytree(base, tmp_path / "base")
    settings = {"temperature": 0.6, "do_sample": False, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    merged = Path(local_checkpoint(Checkpoint(str(folder), adapter=adapter[0]), cache_dir=str(cache)))
    found = json.loads((merged / "generation_config.json").read_text())
    assert {name: found[name] for name in settings} == settings


@pytest.mark.parametrize("more", ["k_proj", "up_proj"])
def test_an_adapter_that_lacks_layers_is_refused(base, adapter, cache, tmp_path, more):
    """Without a word, peft would leave the layers that the file lacks as they are."""
    folder = shutil.copytree(adapter[0], tmp_path / "lora")
    change_configuration(folder, target_modules=["q_proj", "down_proj", more])
    with pytest.raises(ValueError, match=rf"cannot be merged into .* it lacks, 4 tensors such as .*{more}"):
        local_checkpoint(Checkpoint(base, adapter=str(folder)), cache_dir=str(cache))


def test_an_adapter_of_more_layers_is_refused(base, adapter, cache, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    deeper = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in weights.items()}
    save_file(weights | deeper, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"it has, and the base has not, 4 tensors such as .*layers\.2\."):
        local_checkpoint(Checkpoint(base, adapter=str(folder)), cache_dir=str(cache))


def test_an_adapter_of_another_width_is_refused(adapter, cache, tmp_path):
    wider = tiny_model("llama", 400)
    wider.config.hidden_size = 128
    type(wider)(wider.config).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match="cannot be merged into"):
        local_checkpoint(Checkpoint(str(tmp_path / "wider"), adapter=adapter[0]), cache_dir=str(cache))


def test_an_adapter_that_unties_its_base_is_refused(tied_base, cache, tmp_path):
    """Merged, it would change the embedding with the head, which it never saw changed."""
    folder, _ = write_adapter(tied_base, tmp_path / "lora", "q_proj", "lm_head")
    with pytest.raises(ValueError, match=r"merged, it says something else \(logits differ by"):
        local_checkpoint(Checkpoint(tied_base, adapter=folder), cache_dir=str(cache))


def test_a_folder_without_an_adapter_is_named(base, cache, tmp_path):
    with pytest.raises(OSError, match=r"has no adapter_config\.json"):
        local_checkpoint(Checkpoint(base, adapter=str(tmp_path)), weights=False, cache_dir=str(cache))


def change_configuration(folder: Path, **changes) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
