"""A source replica that is killed is replaced, and one that dies again and again stops the run with a sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "pipelines/quickstart/corpus/train.jsonl"
ROWS = 100

pytestmark = pytest.mark.timeout(400)


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """A part of the quickstart's corpus, with one source and one training worker, to the corpus' end."""
    rows = CORPUS.read_text(encoding="utf8").splitlines()[:ROWS]
    (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf8")
    command = [
        *(sys.executable, "-m", "engine", "run", "pipelines/specs/quickstart.yaml"),
        *(f"run.output_dir={folder / 'out'}", f"alignment.cache_dir={folder / 'tables'}", "evaluation.corpora={}"),
        "source_models=[{name: gpt2-code, checkpoint: pipelines/quickstart/models/gpt2-code, dtype: float32}]",
        *(f"corpus.paths=[{folder / 'corpus.jsonl'}]", "training.num_workers=1"),
        *("training.max_steps=1000", "training.checkpoint_every_steps=4"),
        *overrides,
    ]
    log = open(folder / "log.txt", "w")  # noqa: SIM115  (the process keeps it)
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def source_processes(run: subprocess.Popen) -> list[psutil.Process]:
    """The run's own source replicas, among its descendants."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if "Source" in " ".join([process.name(), *process.cmdline()]):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition, run: subprocess.Popen, folder: Path, seconds: float = 150):
    """The first true value of ``condition``, while the run lives."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert run.poll() is None, (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_killed_replica_is_replaced_and_every_passage_is_learned_once(tmp_path):
    run = start(tmp_path)
    wait_for(lambda: list((tmp_path / "out" / "checkpoints").glob("*/state.json")), run, tmp_path)
    (replica,) = source_processes(run)
    os.kill(replica.pid, signal.SIGKILL)
    assert run.wait(300) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    newest = sorted((tmp_path / "out" / "checkpoints").glob("*/state.json"))[-1]
    state = json.loads(newest.read_text())
    assert len(state["learned"]) == len(set(state["learned"]))
    assert sum(record["passages"] for record in state["history"]) == len(state["learned"])
    texts = [json.loads(row)["text"] for row in (tmp_path / "corpus.jsonl").read_text(encoding="utf8").splitlines()]
    assert sum(record["bytes"] for record in state["history"]) == sum(len(text.encode("utf8")) for text in texts)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "1 replaced" in report


@pytest.mark.parametrize("required", [True, False])
def test_a_replica_that_dies_on_every_start_stops_the_run_or_is_done_without(tmp_path, required):
    run = start(tmp_path, "source_models.0.max_restarts=1", f"source_models.0.required={str(required).lower()}")
    killed = 0
    while run.poll() is None:
        assert killed < 10
        for replica in source_processes(run) if killed < 3 else []:
            time.sleep(1.0)
            if replica.is_running():
                replica.send_signal(signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    log = (tmp_path / "log.txt").read_text()
    assert run.wait(1) == int(required), log[-3000:]
    assert "gpt2-code: its replicas have died" in log
    if not required:
        assert "Passages without a source" in (tmp_path / "out" / "report.html").read_text()
