"""One run whose models lie in other places and forms: URLs, a GGUF file as target, an adapter over a source."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import load_spec, plan
from tests.support.own_home import with_own_home
from tests.support.paths import ROOT
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_without_bos

QUICKSTART = ROOT / "pipelines" / "quickstart"
SOURCE = QUICKSTART / "models" / "llama-docs"

pytestmark = pytest.mark.timeout(300)

RUN = """
import pickle, sys
from engine import run
pickle.dump(run(sys.argv[1]), open(sys.argv[2], "wb"))
"""


def write_models(base: Path) -> dict[str, str]:
    """A GGUF file of a tiny Llama, and an adapter that changes a source a little; their paths."""
    from peft import LoraConfig, get_peft_model

    byte_level_without_bos().save_pretrained(base / "tokenizer")
    plain = tiny_checkpoint(base / "plain", "llama", base / "tokenizer", tied=True)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=1, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(SOURCE), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    model.save_pretrained(base / "lora")
    return {"gguf": write_gguf(plain, base / "target.gguf"), "adapter": str(base / "lora")}


def spec(base: Path, models: dict[str, str]) -> dict:
    source = {"name": "docs", "checkpoint": f"file://{SOURCE}", "adapter": f"file://{models['adapter']}"}
    return {
        "run": {"name": "places", "output_dir": str(base / "output")},
        "corpus": {"paths": [str(base / "corpus.jsonl")]},
        "target_model": {"checkpoint": f"file://{models['gguf']}"},
        "source_models": [{**source, "backend": "transformers"}],
        "alignment": {"cache_dir": str(base / "tables")},
        "fusion": {"top_k": 16},
        "objective": {"lm_loss_weight": 0.5},
        "training": {"block_length": 128, "global_batch_blocks": 4, "max_steps": 2},
        "evaluation": {
            "corpora": {"docs": [str(base / "corpus.jsonl")]},
            "models": {"file": models["gguf"], "without adapter": str(SOURCE)},
        },
        "cluster": {"object_store_bytes": 2**28},
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    base = tmp_path_factory.mktemp("places")
    lines = (QUICKSTART / "corpus" / "heldout_docs.jsonl").read_text(encoding="utf8").splitlines()[:20]
    texts = [json.loads(line)["text"][:200] for line in lines]
    (base / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (base / "spec.yaml").write_text(json.dumps(spec(base, write_models(base))))  # JSON is YAML
    command = [sys.executable, "-c", RUN, str(base / "spec.yaml"), str(base / "result.pickle")]
    environment = with_own_home(base)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {"base": base, "result": pickle.loads((base / "result.pickle").read_bytes())}


def test_the_run_learns_and_leaves_a_plain_model(outcome):
    result = outcome["result"]
    assert result.steps == 2
    assert result.metrics.fusion_loss > 0
    (source,) = result.sources
    assert source.coverage > 0.3
    exported = AutoModelForCausalLM.from_pretrained(result.export_dir)
    original = AutoModelForCausalLM.from_pretrained(outcome["base"] / "plain")
    assert exported.get_output_embeddings().weight is exported.get_input_embeddings().weight
    weights = exported.state_dict()
    for name, before in original.state_dict().items():
        assert weights[name].shape == before.shape
        torch.testing.assert_close(weights[name].float(), before, rtol=0.02, atol=0.01)
    written = "".join(path.read_text() for path in Path(result.export_dir).glob("*config.json"))
    assert "gguf" not in written
    assert "quant" not in written
    tokenizer, expected = (AutoTokenizer.from_pretrained(f) for f in (result.export_dir, outcome["base"] / "tokenizer"))
    assert tokenizer("def f(x): return x")["input_ids"] == expected("def f(x): return x")["input_ids"]


def test_the_evaluation_reads_every_form(outcome):
    found = {label: domains["docs"] for label, domains in outcome["result"].bits_per_byte.items()}
    assert found["file"] == found["target before"], "one GGUF file, by its path and by its URL"
    assert found["source docs"] != found["without adapter"]
    assert abs(found["source docs"] - found["without adapter"]) < 1.0


def test_everything_was_made_once_and_nothing_is_left_half_made(outcome):
    cache = outcome["base"] / "home" / ".cache" / "knowledge-fusion-engine" / "checkpoints"
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert not [folder for folder in folders if folder.suffix == ".part"]
    made = sorted(folder.name.rsplit("-", 1)[0] for folder in folders if list(folder.glob("*.safetensors")))
    # The adapter's copy, the merged model, the source's copy, and the target twice: by its URL's copy and by its path.
    assert made == ["llama-docs", "lora", "lora", "target", "target"]


def test_a_plan_reads_a_url_of_another_filesystem(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(SOURCE) + "/", "/places/llama-docs/", recursive=True)
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "Return the number of items in a container."}) + "\n")
    sources = [{"name": "docs", "checkpoint": "memory://places/llama-docs"}]
    described = spec(tmp_path, {"gguf": "", "adapter": ""}) | {"source_models": sources, "evaluation": {}}
    described["target_model"] = {"checkpoint": "memory://places/llama-docs"}
    (source,) = plan(load_spec(described)).sources
    filesystem.rm("/places", recursive=True)
    assert source.coverage.used > 0.9
    assert not source.scores.problem
    assert source.scores.nats_per_byte == pytest.approx(source.target_scores.nats_per_byte)
