"""A mixture of two domains: its shares, and one order however often the run is killed."""

import json
import os
import signal
from itertools import islice
from pathlib import Path

import pytest

from tests.support.interrupted_runs import CORPUS, InterruptedRun

pytestmark = pytest.mark.timeout(600)

#: Documents of each domain; the first ends before the second, of which it has three times the weight.
DOCUMENTS = {"first": 60, "second": 40}


def mixture(folder: Path) -> tuple[str, ...]:
    """Overrides of the quickstart's spec: two domains, and no source model, which would cost most of the time."""
    with CORPUS.open(encoding="utf8") as file:
        for name, count in DOCUMENTS.items():
            (folder / f"{name}.jsonl").write_text("".join(islice(file, count)), encoding="utf8")
    first, second = (f"{name}: {{paths: [{folder}/{name}.jsonl]" for name in DOCUMENTS)
    domains = f"{{{first}, weight: 3}}, {second}}}}}"
    return (
        f"corpus={{domains: {domains}, shuffle_passages: 20}}",
        "source_models=[]",
        "objective.lm_loss_weight=1.0",
    )


def texts_of(path: Path) -> list[str]:
    return [json.loads(row)["text"] for row in path.read_text(encoding="utf8").splitlines()]


def test_shares_are_kept_and_every_passage_is_learned_once_in_one_order_after_two_kills(tmp_path):
    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
    with InterruptedRun(folders[0], *mixture(tmp_path)).start() as undisturbed:
        assert undisturbed.wait() == 0, undisturbed.log
    with InterruptedRun(folders[1], *mixture(tmp_path)).start() as run:
        run.wait_for_step(6)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        run.start("corpus.readers=1").wait_for_step(run.state["step"] + 6)
        os.kill(run.processes("RayTrainWorker")[-1].pid, signal.SIGKILL)
        assert run.wait() == 0, run.log
    assert run.curve == undisturbed.curve, "one order, and each block once"
    history, learned = run.state["history"], run.state["learned"]
    first, second = (sum(record["domain_bytes"][index] for record in history) for index in range(2))
    assert abs(first / (first + second) - 0.75) < 0.01
    assert first == sum(len(text.encode("utf8")) for text in texts_of(tmp_path / "first.jsonl"))
    assert learned["done"] == [[0, 1]]
    assert len(learned["open"]) == 1, "the run ends with the first domain"
