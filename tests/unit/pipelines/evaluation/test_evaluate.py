"""An evaluation without a cluster: which figures of the models come into one table."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from engine.model_files.checkpoint import Checkpoint
from engine.spec.loading import parse
from pipelines.evaluation import evaluate
from pipelines.evaluation.bits_per_byte import ScoredText


def nats(*bits: float) -> np.ndarray:
    return np.array(bits) * math.log(2)


#: One text of 10 bytes; the second model has no BOS and does not score the first token.
SCORED = {
    "with BOS": ScoredText(np.array([0, 4, 10]), nats(8.0, 3.0)),
    "without": ScoredText(np.array([4, 6, 10]), nats(4.0, 2.0)),
}


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": "ten bytes!"}) + "\n")
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(tmp_path / "out")},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "target"},
            "source_models": [{"name": "one", "checkpoint": "one"}],
            "evaluation": {
                "corpora": {"d": [str(tmp_path / "held_out.jsonl")]},
                "ensembles": {"both": ["with BOS", "without"]},
                "models": {label: label for label in SCORED},
            },
        }
    )


def test_all_models_and_ensembles_of_a_table_are_compared_over_the_same_bytes(spec, monkeypatch):
    monkeypatch.setattr(evaluate.ray, "put", lambda value: value)
    monkeypatch.setattr(evaluate.ray, "get", lambda value: value)
    scorer = SimpleNamespace(remote=lambda checkpoint, texts, *window: {"d": [SCORED[checkpoint.path]]})
    monkeypatch.setattr(evaluate, "_remote", lambda spec, work: scorer)
    found = evaluate._bits_per_byte(spec, {label: Checkpoint(label) for label in SCORED})
    assert found["with BOS"]["d"] == pytest.approx(3.0 / 6), "without the 8 bits that the other did not have to spend"
    assert found["without"]["d"] == pytest.approx(6.0 / 6)
    assert found["both"]["d"] == pytest.approx((1.0 - math.log2(2.0**-3 + 2.0**-6)) / 6)
