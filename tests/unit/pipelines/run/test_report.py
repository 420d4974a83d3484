"""Pages made from output folders: of one run at any time, and of several side by side."""

import json
import math
import time
from dataclasses import asdict

import pytest
from fsspec.registry import known_implementations

from engine.__main__ import main
from engine.errors import FusionError
from engine.history.result import EvaluationResult
from engine.reporting.comparison import flattened
from engine.reporting.evaluation_files import evaluation_json
from engine.spec.loading import dump_spec, parse
from pipelines.run.report import report
from tests.support.step_records import step_record
from tests.unit.engine.reporting.test_page import Page

pytestmark = pytest.mark.timeout(60)


def run_folder(tmp_path, name, rate, losses):
    """The output folder of a run that has learned ``losses`` and was evaluated."""
    folder = tmp_path / name
    spec = parse(
        {
            "run": {"name": name, "output_dir": f"/elsewhere/{name}"},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "models/target"},
            "objective": {"lm_loss_weight": 1.0},
            "training": {"max_steps": 40, "optimizer": {"learning_rate": rate}},
        }
    )
    shared = {"elapsed_seconds": 50.0, "held_out": {"docs": 2.0}}
    history = [asdict(step_record(step, loss=loss, **shared)) for step, loss in enumerate(losses, 1)]
    checkpoint = folder / "checkpoints" / f"step-{len(losses):08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"steps_in_files": 0, "history": history, "learned": {}}))
    (folder / "spec.yaml").write_text(dump_spec(spec))
    bits = {"target before": {"docs": 2.5}, "continued target": {"docs": 2.0 + rate, "code": math.nan}}
    (folder / "evaluation.json").write_text(evaluation_json(spec, EvaluationResult(bits_per_byte=bits)))
    return str(folder)


def test_the_page_of_one_run_comes_from_its_checkpoint(tmp_path, capsys):
    folder = run_folder(tmp_path, "one", 0.25, [3.0, 2.0, 1.5])
    assert main(["report", folder]) == 0
    assert capsys.readouterr().out == f"{folder}/report-from-checkpoint.html\n"
    with open(f"{folder}/report-from-checkpoint.html", encoding="utf8") as file:
        page = Page(file.read())
    for text in (
        "made from the checkpoint of step 3",
        "3.0000 -> 1.5000 nats per row",
        "2.2500",
        "-",
        "50.0 s",
        "6 tokens/s, without loading before it and evaluation after it",
    ):
        assert text in page.texts, text
    for unknown in ("wall time", "speed", "skipped rows", "spilled to disk", "without a source"):
        assert unknown not in page.texts, unknown
    assert page.fetched == []


def test_the_page_that_the_run_has_written_stays_as_it_is(tmp_path):
    folder = run_folder(tmp_path, "one", 0.25, [3.0, 2.0])
    own = tmp_path / "one" / "report.html"
    own.write_text('<script type="application/json" id="token-data">{"passages":[]}</script>', encoding="utf8")
    before = own.read_bytes()
    assert report([folder]) == f"{folder}/report-from-checkpoint.html"
    assert own.read_bytes() == before


def test_several_runs_are_compared_on_one_page(tmp_path):
    folders = [run_folder(tmp_path, "one", 0.25, [3.0, 1.5]), run_folder(tmp_path, "two", 0.5, [3.0, 2.5, 2.25])]
    url = report(folders, str(tmp_path / "pages" / "both.html"))
    with open(url, encoding="utf8") as file:
        text = file.read()
    page = Page(text)
    differ = page.texts.index("How the specs differ")
    assert differ < page.texts.index("The runs") < page.texts.index("Over the run")
    found = [words for words in page.texts[differ:] if words][1:7]
    assert found == ["field", "one", "two", "training.optimizer.learning_rate", "0.25", "0.5"]
    assert "3.0000 -> 1.5000 nats per row" in page.texts and "3.0000 -> 2.2500 nats per row" in page.texts
    assert "continued target, docs" in page.texts and "2.2500" in page.texts and "2.5000" in page.texts
    assert "skipped rows" not in page.texts and "spilled to disk" not in page.texts, "a checkpoint does not know"
    assert "Objective, nats per row." in page.texts and "Held-out bits per byte of docs." in page.texts


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(FusionError, match=r"holds no run, for it has no spec\.yaml; give the folder"):
        report([str(tmp_path)])
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["foo://x"], "foo://x/spec.yaml cannot be reached: ValueError: Protocol not known: foo; give a path, or"),
        (["lost://bucket/x"], "lost://bucket/x/spec.yaml cannot be reached: ImportError: install lostfs; give a path"),
        (["RUN", "--output", "RUN/spec.yaml/x.html"], "spec.yaml/x.html: the page cannot be written: FileExistsError"),
        (
            ["RUN", "--output", "foo://x/x.html"],
            "foo://x/x.html cannot be reached: ValueError: Protocol not known: foo",
        ),
    ],
)
def test_a_place_that_cannot_be_used_is_a_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setitem(known_implementations, "lost", {"class": "lostfs.Files", "err": "install lostfs"})
    folder = run_folder(tmp_path, "one", 0.25, [3.0, 2.0])
    started = time.monotonic()
    assert main(["report", *(argument.replace("RUN", folder) for argument in arguments)]) == 1
    printed = capsys.readouterr().err
    assert words in printed and "; " in printed and printed.count("\n") == 1
    assert time.monotonic() - started < 5, "what cannot pass is not asked for again"


def test_a_document_lies_flat():
    nested = {"a": {"b": 1, "c": [{"d": 2}, 3], "e": []}, "f": None}
    assert flattened(nested) == {"a.b": 1, "a.c.0.d": 2, "a.c.1": 3, "a.e": [], "f": None}
