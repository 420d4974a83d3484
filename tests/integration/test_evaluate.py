"""``python -m engine evaluate`` as a user runs it, against the harness's own command line and plain loops."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

QUICKSTART = ROOT / "pipelines" / "quickstart"
TASKS = QUICKSTART / "tasks"
TARGET, SOURCE = QUICKSTART / "models" / "mistral-target", QUICKSTART / "models" / "llama-docs"
LIMIT, BATCH = 24, 8

pytestmark = pytest.mark.timeout(300)


def spec(base: Path) -> dict:
    source = {"name": "llama-docs", "checkpoint": str(SOURCE), "kv_cache_bytes": 2**26}
    return {
        "run": {"name": "evaluate", "output_dir": str(base / "output")},
        "corpus": {"paths": [str(QUICKSTART / "corpus" / "train.jsonl")]},
        "target_model": {"checkpoint": str(TARGET)},
        "source_models": [source],
        "training": {"block_length": 128},
        "evaluation": {
            "corpora": {"docs": [str(QUICKSTART / "corpus" / "heldout_docs.jsonl")]},
            "stride_tokens": 64,
            "merges": {"same": {"method": "linear", "models": ["target before", "target before"]}},
            "ensembles": {"both": ["target before", "source llama-docs"], "alone": ["same"]},
            "tasks": ["quickstart_continuations"],
            "task_folders": [str(TASKS)],
            "task_limit": LIMIT,
            "task_batch": BATCH,
        },
        "cluster": {"object_store_bytes": 2**28},
    }


def run(base: Path, *command: str) -> str:
    """What a command prints, started in the repository, without a hub, with caches of its own."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(base / "datasets")}
    environment = {**os.environ, **offline, "HF_HOME": str(base / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def printed(base) -> str:
    (base / "spec.yaml").write_text(yaml.safe_dump(spec(base)))
    return run(base, sys.executable, "-m", "engine", "evaluate", str(base / "spec.yaml"))


@pytest.fixture(scope="module")
def document(base, printed) -> dict:
    return json.loads((base / "output" / "evaluation.json").read_text(encoding="utf8"))


def test_the_tables_are_printed_and_the_files_written(base, printed, document):
    shown = ("Held-out bits per byte", "Tasks of the evaluation harness", "source llama-docs", "both")
    assert all(words in printed for words in shown)
    assert str(base / "output" / "evaluation.json") in printed
    assert {path.name for path in (base / "output").iterdir()} == {"evaluation.json", "evaluation.png", "merges"}
    assert document["window_tokens"] == 128
    assert document["checkpoints"]["same"] == str(base / "output" / "merges" / "same")


def test_a_merge_and_an_ensemble_of_one_are_the_model_itself(document):
    bits = {label: row["docs"] for label, row in document["bits_per_byte"].items()}
    assert bits["same"] == bits["target before"]
    assert bits["alone"] == pytest.approx(bits["target before"], abs=1e-12)
    assert document["tasks"]["same"] == document["tasks"]["target before"]


def test_an_ensemble_is_no_worse_than_its_members_mean(document):
    bits = {label: row["docs"] for label, row in document["bits_per_byte"].items()}
    assert bits["both"] <= (bits["target before"] + bits["source llama-docs"]) / 2 + 0.01  # but for unscored beginnings
    assert "both" not in document["tasks"]


def test_every_metric_is_the_one_of_the_harness_own_command_line(base, document):
    """The same checkpoint, task, data and batch, without this project: equal to the last digit."""
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", f"pretrained={SOURCE},dtype=float32", "--device", "cpu", "--batch_size", str(BATCH)),
        *("--tasks", "quickstart_continuations", "--include_path", str(TASKS), "--limit", str(LIMIT)),
        *("--output_path", str(base / "harness")),
    ]
    run(base, *command)
    (file,) = (base / "harness").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]["quickstart_continuations"]
    ours = document["tasks"]["source llama-docs"]["quickstart_continuations"]
    assert {"acc,none", "acc_stderr,none", "brier_score,none"} <= set(ours)
    assert ours == {key: value for key, value in theirs.items() if key in ours}
    assert {key for key, value in theirs.items() if "," in key and not isinstance(value, str)} == set(ours)
    assert 0.25 < ours["acc,none"] < 1.0, "better than chance"


def test_bits_per_byte_are_those_of_a_plain_loop_over_windows(document):
    """transformers alone: each window a forward pass, labels where the window before has not scored."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(SOURCE), AutoModelForCausalLM.from_pretrained(SOURCE).eval()
    lines = (QUICKSTART / "corpus" / "heldout_docs.jsonl").read_text(encoding="utf8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    nats = num_bytes = 0.0
    for text in texts:
        ids = tokenizer(text).input_ids  # BOS in front
        assert ids[0] == tokenizer.bos_token_id
        scored, end = 1, min(128, len(ids))
        while scored < len(ids):
            window = [ids[0], *ids[max(1, end - 127) : end]]
            labels = [-100] * (len(window) - (end - scored)) + ids[scored:end]
            with torch.no_grad():
                loss = model(torch.tensor([window]), labels=torch.tensor([labels])).loss
            nats += loss.item() * (end - scored)
            scored, end = end, min(end + 64, len(ids))
        num_bytes += len(text.encode())
    expected = nats / math.log(2) / num_bytes
    assert document["bits_per_byte"]["source llama-docs"]["docs"] == pytest.approx(expected, abs=1e-4)
