"""Checkpoints from anywhere: copied, converted or merged once, whole or not at all, and again when they change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.checkpoint_files import local_checkpoint, with_adapter
from engine.specfile import as_located_spec
from engine.tokenization import PassageTokenizer
from pipelines.flow import scoring_window
from tests.tiny_models import POSITIONS, tiny_checkpoint, tiny_model
from tests.tiny_tokenizers import SENTENCES, byte_level_without_bos

ROOT = Path(__file__).parents[2]
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": bytes(range(256)) * 400}

# Says that it copies, then takes its time, so that the others come meanwhile.
COPYING = """
import sys, time
from engine import checkpoint_files
url, cache, log, seconds = sys.argv[1:]
download = checkpoint_files._download
def slow(*arguments):
    open(log, "a").write("copied\\n")
    download(*arguments)
    time.sleep(float(seconds))
checkpoint_files._download = slow
print(checkpoint_files.local_checkpoint(url, cache_dir=cache))
"""

HUB_NAME = """
import sys
from engine.checkpoint_files import local_checkpoint, with_adapter
print(local_checkpoint(with_adapter("owner/model", sys.argv[1]), cache_dir=sys.argv[2]))
"""


def copying(url: str, cache: Path, log: Path, seconds: float) -> subprocess.Popen:
    arguments = [url, str(cache), str(log), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", COPYING, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def visible(cache: Path) -> list[Path]:
    """What of a cache is taken for a checkpoint."""
    return [path for path in cache.iterdir() if path.suffix not in (".lock", ".part")]


@pytest.fixture()
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture()
def remote():
    """A checkpoint's files in memory, and a folder inside that no library of ours reads."""
    filesystem = fsspec.filesystem("memory")
    for name, data in FILES.items():
        filesystem.pipe_file(f"/models/one/{name}", data)
    filesystem.pipe_file("/models/one/onnx/model.onnx", b"other")
    yield filesystem
    filesystem.rm("/models", recursive=True)


@pytest.fixture()
def folder(tmp_path) -> Path:
    folder = tmp_path / "remote" / "model"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A tiny Llama whose weights bfloat16 holds exactly, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    byte_level_without_bos().save_pretrained(folder / "tokenizer")
    tiny_checkpoint(folder / "model", "llama", folder / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    model.to(torch.float32).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> tuple[str, torch.Tensor]:
    """An adapter over ``base`` that changes it much, and the logits that peft itself gives."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return str(folder), logits_of(model)


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def write_gguf(base: str, file: Path) -> None:
    """``base`` as llama.cpp writes a Llama, unquantised."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config, layout = model.config, json.loads((Path(base) / "tokenizer.json").read_text())
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = layout["model"]["vocab"] | {token["content"]: token["id"] for token in layout["added_tokens"]}
    special = {token["content"] for token in layout["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in layout["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(gguf_name(name), as_stored(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
    }
    names |= {f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"}
    names |= {f"mlp.{kind}_proj": f"ffn_{kind}" for kind in ("gate", "up", "down")}
    names |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for known, written in names.items():
        name = name.replace(known, written)
    return name


def as_stored(name: str, weights: np.ndarray, config) -> np.ndarray:
    """llama.cpp keeps the two halves of a rotated pair side by side."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weights
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    halves = weights.reshape(heads, 2, -1, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def test_folders_and_hub_names_stay_as_they_are(cache, folder):
    assert local_checkpoint(str(folder), cache_dir=str(cache)) == str(folder)
    assert local_checkpoint("owner/model", cache_dir=str(cache)) == "owner/model"
    assert not cache.exists()


def test_a_remote_folder_is_copied_once(cache, remote, monkeypatch):
    found = Path(local_checkpoint("memory://models/one", cache_dir=str(cache)))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert found.parent == cache
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_, **__: pytest.fail("copied again"))
    assert local_checkpoint("memory://models/one/", cache_dir=str(cache)) == str(found)
    assert local_checkpoint("memory://models/one", cache_dir=str(cache)) == str(found)


def test_a_file_url_is_copied(cache, folder):
    found = Path(local_checkpoint(f"file://{folder}", cache_dir=str(cache)))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert found != folder


def test_a_node_that_runs_no_model_is_spared_the_weights(cache, remote):
    found = Path(local_checkpoint("memory://models/one", weights=False, cache_dir=str(cache)))
    assert {path.name for path in found.iterdir()} == {"config.json", "tokenizer.json"}
    whole = Path(local_checkpoint("memory://models/one", cache_dir=str(cache)))
    assert (whole / "model.safetensors").exists()


def test_other_forms_of_the_same_weights_are_left(cache, remote):
    remote.pipe_file("/models/one/pytorch_model.bin", b"the same weights")
    found = Path(local_checkpoint("memory://models/one", cache_dir=str(cache)))
    assert {path.name for path in found.iterdir()} == set(FILES)


def test_a_changed_checkpoint_is_copied_again(cache, remote):
    before = Path(local_checkpoint("memory://models/one", cache_dir=str(cache)))
    remote.pipe_file("/models/one/model.safetensors", FILES["model.safetensors"][::-1])  # as long as before
    after = Path(local_checkpoint("memory://models/one", cache_dir=str(cache)))
    assert (after / "model.safetensors").read_bytes() == FILES["model.safetensors"][::-1]
    assert (before / "model.safetensors").read_bytes() == FILES["model.safetensors"], "a run may be reading it"


def test_several_processes_at_once_copy_once(cache, folder, tmp_path):
    log = tmp_path / "log"
    processes = [copying(f"file://{folder}", cache, log, 1.0) for _ in range(4)]
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert log.read_text() == "copied\n"
    assert {path.name: path.read_bytes() for path in Path(found.pop()).iterdir()} == FILES
    assert not found, "all were told the same folder"


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(cache, folder, tmp_path):
    log = tmp_path / "log"
    process = copying(f"file://{folder}", cache, log, 60.0)
    while not list(cache.glob("*.part/model.safetensors")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    (torn,) = cache.glob("*.part")
    (torn / "model.safetensors").write_bytes(b"half")
    assert visible(cache) == []
    found = Path(local_checkpoint(f"file://{folder}", cache_dir=str(cache)))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert visible(cache) == [found]
    assert not torn.exists()


def test_a_copy_that_came_short_is_refused(cache, remote, monkeypatch):
    whole = MemoryFileSystem.get_file

    def cut_short(self, path, place, **options):
        whole(self, path, place, **options)
        os.truncate(place, 1)

    monkeypatch.setattr(MemoryFileSystem, "get_file", cut_short)
    with pytest.raises(OSError, match=r"has \d+ bytes, and 1 came"):
        local_checkpoint("memory://models/one", cache_dir=str(cache))
    assert visible(cache) == list(cache.glob("*.part")) == []


@pytest.mark.parametrize("url", ["memory://models/none", "nonsense://models", "/nowhere/model.gguf", "memory://a.gguf"])
def test_what_is_not_there_is_named(url, cache):
    with pytest.raises(OSError, match=url):
        local_checkpoint(url, cache_dir=str(cache))


def test_a_gguf_file_becomes_a_folder(base, cache, tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(base, file)
    found = local_checkpoint(str(file), cache_dir=str(cache))
    model, original = (AutoModelForCausalLM.from_pretrained(name) for name in (found, base))
    assert model.dtype == torch.bfloat16
    weights = model.state_dict()
    for name, expected in original.state_dict().items():
        assert torch.equal(weights[name].float(), expected), name
    tokenizer, expected = AutoTokenizer.from_pretrained(found), AutoTokenizer.from_pretrained(base)
    assert tokenizer(SENTENCES)["input_ids"] == expected(SENTENCES)["input_ids"]
    assert tokenizer.eos_token_id == expected.eos_token_id
    assert model.config.max_position_embeddings == POSITIONS


def test_a_remote_gguf_file_has_a_window_and_a_tokenizer(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "tiny.gguf"
    write_gguf(base, file)
    assert scoring_window(f"file://{file}", 2048) == POSITIONS - 2
    tokenizer, expected = PassageTokenizer.load(f"file://{file}"), PassageTokenizer.load(base)
    assert all(np.array_equal(tokenizer.encode(text)[0], expected.encode(text)[0]) for text in SENTENCES)
    kept = visible(tmp_path / ".cache/knowledge-fusion-engine/checkpoints")
    assert not [path for folder in kept for path in folder.glob("*.safetensors")], "nobody asked for the model"


def test_a_file_that_is_no_gguf_is_refused(cache, tmp_path):
    (tmp_path / "wrong.gguf").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"wrong.gguf cannot be converted"):
        local_checkpoint(str(tmp_path / "wrong.gguf"), cache_dir=str(cache))
    assert visible(cache) == []


def test_an_adapter_is_merged(base, adapter, cache):
    folder, expected = adapter
    original = AutoModelForCausalLM.from_pretrained(base)
    found = local_checkpoint(with_adapter(base, folder), cache_dir=str(cache))
    merged = AutoModelForCausalLM.from_pretrained(found)
    assert merged.dtype == original.dtype
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits_of(original)).abs().max() > 0.1, "or the test could not tell"
    assert local_checkpoint(with_adapter(base, folder), cache_dir=str(cache)) == found
    assert local_checkpoint(with_adapter(base, folder), weights=False, cache_dir=str(cache)) == base


def test_a_remote_adapter_over_a_remote_base(base, adapter, cache):
    names = (f"file://{base}", f"file://{adapter[0]}")
    merged = AutoModelForCausalLM.from_pretrained(local_checkpoint(with_adapter(*names), cache_dir=str(cache)))
    torch.testing.assert_close(logits_of(merged), adapter[1], rtol=1e-4, atol=1e-4)


def test_a_changed_adapter_is_merged_again(base, adapter, cache, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "lora")
    before = local_checkpoint(with_adapter(base, str(folder)), cache_dir=str(cache))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    after = local_checkpoint(with_adapter(base, str(folder)), cache_dir=str(cache))
    logits = [logits_of(AutoModelForCausalLM.from_pretrained(name)) for name in (before, after)]
    assert (logits[0] - logits[1]).abs().max() > 0.1


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
    torch.testing.assert_close(
        logits_of(AutoModelForCausalLM.from_pretrained(found[1])), adapter[1], rtol=1e-4, atol=1e-4
    )


def test_an_adapter_of_other_layers_is_refused(base, adapter, cache, tmp_path):
    """Without a word, peft would leave the layers that the file lacks as they are."""
    folder = shutil.copytree(adapter[0], tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "down_proj", "k_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be merged into"):
        local_checkpoint(with_adapter(base, str(folder)), cache_dir=str(cache))


def test_an_adapter_of_another_width_is_refused(adapter, cache, tmp_path):
    wider = tiny_model("llama", 400)
    wider.config.hidden_size = 128
    type(wider)(wider.config).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match="cannot be merged into"):
        local_checkpoint(with_adapter(str(tmp_path / "wider"), adapter[0]), cache_dir=str(cache))


def test_a_folder_without_an_adapter_is_named(base, cache, tmp_path):
    with pytest.raises(OSError, match=r"has no adapter_config\.json"):
        local_checkpoint(with_adapter(base, str(tmp_path)), weights=False, cache_dir=str(cache))


def test_a_spec_is_located_wherever_its_checkpoints_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    (tmp_path / "model.gguf").touch()
    sources = [
        {"name": "a", "checkpoint": "s3://models/a", "adapter": "lora"},
        {"name": "b", "checkpoint": "model.gguf", "adapter": "s3://models/lora"},
    ]
    spec = as_located_spec(
        {
            "run": {"name": "x", "output_dir": "out"},
            "corpus": {"paths": ["a.jsonl"]},
            "target_model": {"checkpoint": "memory://models/target"},
            "source_models": sources,
        }
    )
    assert spec.target_model.checkpoint == "memory://models/target"
    assert [source.checkpoint for source in spec.source_models] == ["s3://models/a", str(tmp_path / "model.gguf")]
    assert [source.adapter for source in spec.source_models] == [str(tmp_path / "lora"), "s3://models/lora"]
