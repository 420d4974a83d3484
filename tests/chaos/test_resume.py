"""A run that is killed goes on from its last checkpoint: every passage is learned exactly once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import byte_level_with_bos

ROOT = Path(__file__).parents[2]
STEPS_IN_CORPUS = 24

pytestmark = pytest.mark.timeout(300)


def write_spec(folder: Path) -> Path:
    """Continued training of a tiny model on a corpus of 24 steps, with a checkpoint every other step."""
    byte_level_with_bos().save_pretrained(folder / "tokenizer")
    checkpoint = tiny_checkpoint(folder / "model", "llama", folder / "tokenizer")
    rows = [json.dumps({"text": f"document {row} has some words of its own, {row * 7919}"}) for row in range(300)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    spec = {
        "run": {"name": "killed", "output_dir": str(folder / "out"), "deterministic": True},
        "corpus": {"paths": [str(folder / "corpus.jsonl")]},
        "target_model": {"checkpoint": checkpoint},
        "objective": {"lm_loss_weight": 1.0},
        "training": {
            "block_length": 128,
            "global_batch_blocks": 4,
            "micro_batch_blocks": 2,
            "max_steps": 1000,
            "checkpoint_every_steps": 2,
        },
        "cluster": {"object_store_bytes": 2**27},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def start(spec: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "engine", "run", str(spec), *overrides]
    log = open(spec.with_suffix(".log"), "a")  # noqa: SIM115  (the process keeps it)
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def state(output: Path) -> dict:
    """The journal of the newest complete checkpoint."""
    newest = sorted((output / "checkpoints").glob("*/state.json"))[-1]
    return json.loads(newest.read_text())


def test_after_sigkill_every_passage_is_learned_once_and_the_losses_are_the_undisturbed_ones(tmp_path):
    spec = write_spec(tmp_path)
    first = start(spec)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out" / "checkpoints").glob("*/state.json")):
        assert first.poll() is None, spec.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = state(tmp_path / "out")
    assert start(spec).wait(150) == 0, spec.with_suffix(".log").read_text()[-3000:]
    after = state(tmp_path / "out")
    assert 0 < before["step"] < after["step"]
    assert after["history"][: before["step"]] == before["history"]
    expected = {f"0/{tmp_path / 'corpus.jsonl'}:{row}:0" for row in range(1, 301)}
    assert sorted(after["learned"]) == sorted(expected)
    assert sum(record["passages"] for record in after["history"]) == 300
    assert [record["step"] for record in after["history"]] == list(range(1, after["step"] + 1))


def test_an_output_folder_of_another_run_is_refused(tmp_path):
    spec = write_spec(tmp_path)
    (tmp_path / "out").mkdir()
    other = yaml.safe_load(spec.read_text())
    other["training"]["block_length"] = 64
    (tmp_path / "out" / "spec.yaml").write_text(yaml.safe_dump(other))
    assert start(spec).wait(100) == 1
    assert "holds another run (its training.block_length is 64, not 128)" in spec.with_suffix(".log").read_text()
