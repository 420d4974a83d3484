"""The tables, the JSON file and the plot of an evaluation."""

import io
import json
import math

import pytest
from rich.console import Console

from engine.history.result import EvaluationResult
from engine.reporting.evaluation_files import evaluation_json, write_evaluation
from engine.reporting.evaluation_tables import MEAN, best, columns, score_tables
from engine.reporting.terminal import show_evaluation
from engine.spec.loading import load_spec

pytestmark = pytest.mark.timeout(60)

SCORES = {
    "before": {"docs": 2.5, "code": 1.0},
    "after": {"docs": 1.5, "code": math.nan},
    "other": {"docs": 2.0, "code": 1.5},
}
TASKS = {
    "before": {"quiz": {"acc,none": 0.25, "acc_stderr,none": 0.0625, "perplexity,none": 8.0}},
    "after": {"quiz": {"acc,none": 0.75, "acc_stderr,none": 0.0625, "perplexity,none": 9.0}},
}
EVALUATION = EvaluationResult(
    checkpoints={"before": "a", "after": "b", "other": "c"},
    bits_per_byte=SCORES,
    tasks=TASKS,
    higher_is_better={"quiz": {"acc": True, "perplexity": False}},
)


@pytest.fixture
def spec(tmp_path):
    return load_spec(
        {
            "run": {"name": "r", "output_dir": str(tmp_path / "output")},
            "corpus": {"paths": ["c.jsonl"]},
            "target_model": {"checkpoint": "t"},
            "objective": {"lm_loss_weight": 1.0},
        }
    )


def test_the_mean_is_over_domains():
    assert columns(SCORES)[MEAN]["other"] == pytest.approx(1.75)
    assert best(columns(SCORES)["docs"]) == 1.5
    assert best(columns(SCORES)["docs"], higher_is_better=True) == 2.5
    assert math.isnan(best({"only": math.nan}))


def test_the_best_of_every_domain_and_every_task_is_marked():
    bits, tasks = score_tables(EVALUATION)
    marked = {label.text: [cell.is_best for cell in cells] for label, *cells in bits.rows}
    assert marked == {"before": [False, True, True], "after": [True, False, False], "other": [False, False, True]}
    assert [[cell.text for cell in row] for row in tasks.rows] == [
        ["quiz acc", "before", "0.2500  ± 0.0625"],
        ["", "after", "0.7500* ± 0.0625"],
        ["quiz perplexity (lower is better)", "before", "8.0000*"],
        ["", "after", "9.0000 "],
    ]
    assert [row[-1].is_best for row in tasks.rows] == [False, True, True, False]


def test_the_parts_of_a_group_are_only_in_the_file():
    tasks = {label: {"all": row["quiz"], **row} for label, row in TASKS.items()}
    (table,) = score_tables(EvaluationResult(tasks=tasks, subtasks={"all": ["quiz"]}))
    assert {row[0].text.split(" ")[0] for row in table.rows} == {"all", ""}


def test_the_terminal_shows_both_tables_and_the_files():
    console = Console(record=True, width=100, file=io.StringIO())
    show_evaluation(EVALUATION, ["out/evaluation.json"], console)
    text = console.export_text()
    words = ("docs", "1.5000*", "1.0000*", "1.7500*", "quiz acc", "0.7500* ± 0.0625", "out/evaluation.json")
    assert all(word in text for word in words)


def test_an_empty_evaluation_makes_no_table():
    assert score_tables(EvaluationResult()) == []


def test_the_json_holds_every_number_and_nan_as_null(spec):
    document = json.loads(evaluation_json(spec, EVALUATION))
    assert document["bits_per_byte"]["before"] == {"docs": 2.5, "code": 1.0}
    assert document["bits_per_byte"]["after"]["code"] is None
    assert document["tasks"] == TASKS
    assert document["checkpoints"]["after"] == "b"
    assert document["window_tokens"] == spec.training.block_length
    assert document["evaluation"]["stride_tokens"] == 0


def test_both_files_are_written_and_only_the_json_without_bits_per_byte(spec, tmp_path):
    paths = write_evaluation(spec, EVALUATION)
    assert [path.rsplit("/", 1)[1] for path in paths] == ["evaluation.json", "evaluation.png"]
    assert (tmp_path / "output" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert len(write_evaluation(spec, EvaluationResult())) == 1
