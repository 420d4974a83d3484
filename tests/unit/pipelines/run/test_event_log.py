"""What a run notes for other tools: how it starts, works and stops, over all of its starts."""

import json
import math
from dataclasses import replace

import fsspec
import pytest

from engine.errors import FusionError
from engine.history.result import Committed, EvaluationResult, LeftOut, Progress, SkippedRow, StageTotals
from engine.reporting.watch import Watch
from engine.spec.loading import parse
from pipelines.run.event_log import EVENTS_FILE, EventLog
from pipelines.run.result import result_of
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(params=["disk", "store"])
def spec(request, tmp_path):
    folder = tmp_path / "out" if request.param == "disk" else f"memory://runs/{tmp_path.name}"
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(folder)},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "models/target"},
            "objective": {"lm_loss_weight": 1.0},
        }
    )


def events(spec):
    """The events of a run."""
    with fsspec.open(f"{spec.run.output_dir}/{EVENTS_FILE}", "r", encoding="utf8") as file:
        found = [json.loads(line) for line in file]
    assert all(event["run"] == "trial" for event in found)
    return found


def names_and_steps(spec):
    return [(event["event"], event["step"]) for event in events(spec)]


def picture(replaced=0, **values):
    return Progress(stages=(StageTotals("gpt2", 40, 500, 1.0, 1.0, 2, 2 + replaced),), **values)


def test_a_run_from_its_start_to_its_end(spec):
    with EventLog(spec, clock=lambda: 1.8e9) as log:
        assert names_and_steps(spec) == [("started", 0)]
        log.see(Progress(stages=(StageTotals("gpt2", replicas=1, starts=1),)), 0.0)
        log.see(picture(steps=(step_record(9), step_record(10, held_out={"docs": 2.5}))), 1.0)
        log.see(picture(replaced=1, steps=(step_record(11),), checkpoints=(Committed(10, 1.8e9 + 2),)), 2.0)
        log.see(picture(replaced=1, checkpoints=(Committed(10, 1.8e9 + 2), Committed(11, 1.8e9 + 3))), 40.0)
        log.close()
        result = result_of(spec, [step_record(11)], picture(), 200.0, "steps")
        evaluation = EvaluationResult(bits_per_byte={"fused target": {"docs": math.nan}})
        log.finish(replace(result, evaluation=evaluation, steps=11))
    while_it_worked = [("working", 0), ("evaluated", 10), ("checkpoint", 10), ("replaced", 10), ("checkpoint", 11)]
    assert names_and_steps(spec) == [("started", 0), *while_it_worked, ("evaluated", 11), ("stopped", 11)]
    lines = events(spec)
    assert {event["time"] for event in lines if event["event"] != "checkpoint"} == {"2027-01-15T08:00:00.000Z"}
    assert lines[1]["seconds"] == 0.0
    assert lines[3]["time"] == "2027-01-15T08:00:02.000Z", "when the checkpoint was complete"
    assert lines[4] | {"time": ""} == {
        "time": "", "event": "replaced", "run": "trial", "step": 10, "stage": "gpt2", "count": 1,
    }  # fmt: skip
    assert (lines[-2]["bits_per_byte"], lines[-1]["reason"]) == ({"fused target": {"docs": None}}, "steps")


def test_skipped_rows_are_counted_once_a_minute_and_at_the_end(spec):
    row, passage = SkippedRow("corpus.jsonl", 7, "x" * 5000), LeftOut("gpt2", "0/a:1:0", "it cannot be loaded")
    with EventLog(spec) as log:
        for second in range(100):
            counts = {"num_skipped": second // 2, "num_left_out": second // 50}
            log.see(picture(skipped=(row,), left_out=(passage,), **counts), float(second))
        log.close()
    _, _, *counted = events(spec)
    seen = [("skipped", 1), ("skipped", 31), ("left_out", 1), ("skipped", 49)]
    assert [(line["event"], line["count"]) for line in counted] == seen
    assert counted[0]["first"] == {"path": "corpus.jsonl", "row": 7, "reason": "x" * 600}
    assert counted[2]["first"]["source"] == "gpt2"


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [(KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"), (FusionError("no place"), "failed", "no place")],
)
def test_a_run_that_fails_and_is_started_again_goes_on_in_the_same_file(spec, error, reason, words):
    with pytest.raises(type(error)), EventLog(spec) as log:
        log.see(picture(steps=(step_record(12),)), 0.0)
        raise error
    checkpoint = f"{spec.run.output_dir}/checkpoints/step-00000010/state.json"
    with fsspec.open(checkpoint, "w", auto_mkdir=True) as file:
        file.write("{}")
    with EventLog(spec):
        pass
    assert names_and_steps(spec) == [("started", 0), ("working", 0), ("stopped", 12), ("started", 10)]
    stopped = events(spec)[2]
    assert (stopped["reason"], stopped["error"]) == (reason, words)


def test_nothing_follows_the_end_of_a_run(spec):
    """The watch waits for no observer for long: one may still be called when the run has ended."""
    with EventLog(spec) as log:
        log.see(picture(steps=(step_record(1),)), 0.0)
        log.finish(result_of(spec, [step_record(1)], picture(), 200.0, "steps"))
        log.see(picture(replaced=1, steps=(step_record(2, held_out={"docs": 2.5}),), num_skipped=1), 1.0)
        log.close()
    assert names_and_steps(spec)[-1] == ("stopped", 1)


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path, spec, monkeypatch):
    said = []
    monkeypatch.setattr("pipelines.run.event_log.EventFile.write", lambda file: 1 / 0)
    with EventLog(spec) as log, Watch(lambda step: picture(steps=(step_record(1),)), [log], said.append):
        pass
    (line,) = said
    assert line.startswith("the events (logs/events.jsonl) could not be updated: ZeroDivisionError: division by zero;")
