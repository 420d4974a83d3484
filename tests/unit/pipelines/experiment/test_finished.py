"""Work that is finished is not done again, unless what it reads has changed."""

import os
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.evaluation.bits_per_byte import ScoredText
from pipelines.experiment import runs
from pipelines.experiment.finished import finished
from pipelines.experiment.kept import scores_of

pytestmark = pytest.mark.timeout(30)


def test_work_is_done_once_for_the_same_content(tmp_path):
    model, text, done = tmp_path / "model", tmp_path / "text.jsonl", []
    (model / "inside").mkdir(parents=True)
    (model / "inside" / "weights").write_bytes(b"1")
    text.write_text("one")

    def result(settings="windows of 8"):
        return finished(tmp_path / "kept", [model, text], settings, lambda: done.append(settings) or {"bits": [0.1]})

    assert result() == result() == {"bits": [0.1]}
    os.utime(text, (1, 1))
    assert result() == {"bits": [0.1]}
    assert len(done) == 1
    (model / "inside" / "weights").write_bytes(b"2")
    result()
    text.write_text("two")
    result()
    result("windows of 16")
    assert len(done) == 4
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_work_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        finished(tmp_path / "kept", [], "", lambda: 1 / 0)
    assert finished(tmp_path / "kept", [], "", lambda: [1.5]) == [1.5]


def test_a_models_scores_are_those_of_its_documents_and_kept(tmp_path, monkeypatch):
    asked = []

    def scored(folder, setting, part, checkpoint):
        asked.append(part)
        return {
            "docs": [ScoredText(np.array([0, 2, 5]), np.log([2.0, 4.0])), ScoredText(np.array([1, 4]), np.log([8]))]
        }

    monkeypatch.setattr(runs, "scored", scored)
    texts = tmp_path / "texts" / "a"
    texts.mkdir(parents=True)
    (texts / "held-out_docs.jsonl").write_text("{}")
    (tmp_path / "model").write_bytes(b"weights")
    for _ in range(2):
        found = scores_of(runs.scored_once(tmp_path, "a", "held-out", tmp_path / "model"))
        np.testing.assert_allclose(found["docs"].bits, [3.0, 3.0])
        np.testing.assert_array_equal(found["docs"].num_bytes, [5.0, 3.0])
    assert asked == ["held-out"]


def test_a_model_that_is_asked_for_twice_is_scored_once(tmp_path):
    asked = []

    def submit(_work, _folder, _setting, _part, place):
        asked.append(place)
        done: Future[dict] = Future()
        done.set_result({"docs": {"bits": [float(len(asked))], "num_bytes": [1.0]}})
        return done

    laboratory = runs.Laboratory(tmp_path, 10, lambda line: None)
    laboratory._scorers = SimpleNamespace(submit=submit)
    found = laboratory.scores("a", "held-out", [Path("one"), Path("two"), Path("one")])
    assert asked == [Path("one"), Path("two")]
    assert [float(scores["docs"].bits[0]) for scores in found] == [1.0, 2.0, 1.0]
