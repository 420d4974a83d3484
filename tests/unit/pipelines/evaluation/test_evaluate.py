"""An evaluation without a cluster: which figures of the models come into one table."""

import json
import math

import numpy as np
import pytest

from engine.errors import StoreError
from engine.model_files.checkpoint import Checkpoint
from engine.reporting.evaluation_tables import failure_lines
from engine.spec import ClusterSpec
from engine.spec.loading import parse
from pipelines.evaluation import evaluate
from pipelines.evaluation.bits_per_byte import ScoredText
from pipelines.evaluation.needs import evaluation_needs
from pipelines.evaluation.tasks import TaskScores
from tests.support.failing_store import failing_store


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


def test_what_fails_costs_its_own_table_and_says_why(spec, monkeypatch):
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"tasks": ("one",)})})
    monkeypatch.setattr(evaluate, "compared_models", lambda spec: {"with BOS": Checkpoint("with BOS")})

    def out_of_memory(spec, models):
        raise RuntimeError("task failed") from RuntimeError("CUDA out of memory")

    scores = TaskScores({"one": {"acc,none": 0.5}}, {}, {})
    monkeypatch.setattr(evaluate, "_bits_per_byte", out_of_memory)
    monkeypatch.setattr(evaluate, "_task_scores", lambda spec, models: {"with BOS": scores})
    found = evaluate.evaluate_models(spec)
    assert found.failures == {"bits per byte": "RuntimeError: CUDA out of memory"}
    assert (found.bits_per_byte, found.tasks) == ({}, {"with BOS": {"one": {"acc,none": 0.5}}})
    assert failure_lines(found) == ["The evaluation has no bits per byte: RuntimeError: CUDA out of memory"]


@pytest.mark.parametrize(("own", "expected"), [({}, {"pool": "training"}), ({"pool": "other"}, {"pool": "other"})])
def test_the_evaluation_runs_where_training_does_unless_the_spec_says_elsewhere(spec, monkeypatch, own, expected):
    changes = {
        "cluster": ClusterSpec(training_labels={"pool": "training"}),
        "evaluation": spec.evaluation.model_copy(update={"labels": own}),
    }
    (need,) = evaluation_needs(spec.model_copy(update=changes))
    assert need.labels == expected
    assert need.labels_where == ("evaluation.labels" if own else "cluster.training_labels")
    nothing = changes["evaluation"].model_copy(update={"corpora": {}})
    assert evaluation_needs(spec.model_copy(update={"evaluation": nothing})) == ()


def test_all_models_and_ensembles_of_a_table_are_compared_over_the_same_bytes(spec, monkeypatch):
    monkeypatch.setattr(evaluate.ray, "put", lambda value: value)

    def scored(need, work, asked, stall_minutes, say):
        return {checkpoint: {"d": [SCORED[checkpoint.path]]} for checkpoint in asked}

    monkeypatch.setattr(evaluate, "answers", scored)
    found = evaluate._bits_per_byte(spec, {label: Checkpoint(label) for label in SCORED})
    assert found["with BOS"]["d"] == pytest.approx(3.0 / 6), "without the 8 bits that the other did not have to spend"
    assert found["without"]["d"] == pytest.approx(6.0 / 6)
    assert found["both"]["d"] == pytest.approx((1.0 - math.log2(2.0**-3 + 2.0**-6)) / 6)


def test_held_out_text_is_whole_or_an_error_after_which_training_starts_again(spec):
    with failing_store() as store:
        url = store.write("held_out.jsonl", b"".join(b'{"text": "row %d"}\n' % row for row in range(500)))
        corpora = {"corpora": {"d": (url,)}}
        spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=corpora)})
        store.fail(read={2, 3, 5}, open={2})
        assert evaluate.held_out_documents(spec) == {"d": [f"row {row}" for row in range(500)]}
        store.fail(read=range(3, 10**9))
        with pytest.raises(StoreError, match=r"held_out\.jsonl: the file cannot be read at byte \d+: PayloadError"):
            evaluate.held_out_documents(spec)
        store.fail(info={1, 2})
        with pytest.raises(StoreError, match=r"evaluation\.corpora\.d\.0: "):
            evaluate.held_out_documents(spec)
