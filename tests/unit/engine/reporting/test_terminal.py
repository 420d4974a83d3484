"""The console output during a run and at its end: words and numbers, at any width."""

import io
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console

from engine.history.result import (
    Committed,
    EvaluationResult,
    Progress,
    RunResult,
    SkippedRow,
    SourceTotals,
    StageTotals,
)
from engine.reporting.figures import domain_rows, domain_source_rows, duration, run_figures, share, stage_rows
from engine.reporting.page import Status, render_report
from engine.reporting.rates import FlowRates
from engine.reporting.run_state import RunState
from engine.reporting.terminal import ProgressDisplay, line, panel, show_evaluation, show_phase, show_summary
from engine.spec import CorpusSpec, EvaluationSpec
from engine.spec.loading import parse
from pipelines.run.result import result_of
from tests.support.paths import ROOT
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(30)

SPEC = parse(
    {
        "run": {"name": "trial", "output_dir": "outputs"},
        "corpus": {"paths": ["corpus.jsonl"]},
        "target_model": {"checkpoint": "target"},
        "source_models": [{"name": "llama-docs", "checkpoint": "a"}, {"name": "gpt2-code", "checkpoint": "b"}],
        "training": {"max_steps": 50},
    }
)
#: What a terminal is told about its cursor.
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"

STEP = step_record(10, tokens=1000, passages=40, bytes=4000, fused_rows=900)


def stages(passages, **seconds):
    """Totals of a run in which every stage has done as many passages of 100 tokens; ``name=(busy, wait)``."""
    named = {name.replace("_", "-"): times for name, times in seconds.items()}
    return tuple(StageTotals(name, passages, 100 * passages, *times, 1, 1) for name, times in named.items())


@pytest.fixture
def state():
    """A run 60 s after its start: ten steps in the last 20 s, ``gpt2-code`` busy for 19 of them."""
    state = RunState(SPEC, now=0.0)
    early = stages(100, train=(30.0, 10.0), llama_docs=(20.0, 20.0), gpt2_code=(30.0, 10.0))
    late = stages(200, train=(42.0, 18.0), llama_docs=(25.0, 35.0), gpt2_code=(49.0, 11.0))
    state.update(Progress(stages=early, steps=tuple(replace(STEP, step=step) for step in range(1, 11))), now=40.0)
    state.update(Progress(stages=late, steps=tuple(replace(STEP, step=step) for step in range(11, 21))), now=60.0)
    return state


def shown(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    console.print(renderable)
    return console.export_text()


def test_rates_are_those_of_the_last_half_minute(state):
    rates = {rate.name: rate for rate in state.rates.stages()}
    assert list(rates) == ["llama-docs", "gpt2-code", "train"], "in the order of the stream"
    assert state.rates.train_tokens_per_second == pytest.approx(100 * 100 / 20)
    assert rates["gpt2-code"].busy_share == pytest.approx(19 / 20)
    assert rates["llama-docs"].busy_share == pytest.approx(5 / 20)
    assert state.seconds_left == pytest.approx(30 * 2.0)


MIXTURE = SPEC.model_copy(
    update={
        "corpus": CorpusSpec(domains={"prose": {"paths": ["p"]}, "code": {"paths": ["c"], "weight": 3.0}}),
        "evaluation": EvaluationSpec(corpora={"code": ["held_out.jsonl"]}),
    }
)
MIXED_STEP = replace(
    STEP,
    domain_tokens=(640, 360),
    domain_passages=(20, 20),
    domain_bytes=(2900, 1100),
    domain_lm_nats=(2900.0, 990.0),
    domain_source_nats=(2030.0, 2900.0, 1100.0, 0.0),
    domain_source_bytes=(2900, 2900, 1100, 0),
    domain_source_wins=(0.0,) * 4,
    domain_source_covered_rows=(310, 620, 170, 0),
    source_nats=(3130.0, 2900.0),
    source_bytes=(4000, 2900),
    source_wins=(0.0, 0.0),
    source_covered_rows=(480, 620),
    source_left_out=(0, 20),
    held_out={"code": 2.5},
)


def test_the_domains_of_a_mixture_are_shown_while_it_runs_and_at_its_end():
    state = RunState(MIXTURE, now=0.0)
    assert line(state) == "trial | starting llama-docs, gpt2-code 0 s"
    for step in (1, 2):
        state.update(Progress(steps=(replace(MIXED_STEP, step=step),)), now=step)
    assert "retired" not in line(state)
    state.update(Progress(retired=("gpt2-code",)), now=3.0)
    assert "gpt2-code retired: the target predicts the text as well" in line(state)
    assert "| learned bytes: code 72.5 %, prose 27.5 % |" in line(state)
    text = " ".join(shown(panel(state), 120).split())
    assert "code 5,800 72.5 % 0.700 1.000" in text
    assert "prose 2,200 27.5 % 1.000 -" in text
    result = result_of(MIXTURE, [MIXED_STEP], Progress(), 1.0, "corpus")
    assert domain_rows(result).columns[-1] == "held-out bits per byte"
    assert domain_rows(result).rows == (
        ("code", "2,900", "72.5 %", "75.0 %", "640", "20", "2.5000"),
        ("prose", "1,100", "27.5 %", "25.0 %", "360", "20", "-"),
    )
    assert domain_source_rows(result).rows == (
        ("code", "llama-docs", "0.7000", "-", "50.0 %", "0.300 -> 0.300"),
        ("code", "gpt2-code", "1.0000", "-", "100.0 %", "0.000 -> 0.000"),
        ("prose", "llama-docs", "1.0000", "-", "50.0 %", "-0.100 -> -0.100"),
        ("prose", "gpt2-code", "-", "-", "0.0 %", "- -> -"),
    )
    page = render_report(MIXTURE, result, Status("done", 0.0))
    assert "<h2>Domains, learned</h2>" in page
    assert "<h2>Source models by domain</h2>" in page


def test_old_pictures_are_dropped(state):
    later = stages(300, train=(42.0, 28.0), llama_docs=(25.0, 45.0), gpt2_code=(59.0, 11.0))
    state.update(Progress(stages=later), now=91.0)
    assert state.rates.train_tokens_per_second == pytest.approx(100 * 100 / 31), "since the picture 31 s ago"


def test_the_slowest_stage_and_the_wait_for_data_are_named(state):
    words = "gpt2-code is 95 % busy: the others wait for it; training waits for data 40 % of the time"
    assert state.rates.bottleneck() == words
    assert words in line(state)
    assert "gpt2-code: add 1 replica, training waits 40 %" in line(state)
    assert "gpt2-code: add 1 replica, training waits 40 %" in shown(panel(state))


def test_no_replica_is_asked_for_before_the_second_step():
    first = RunState(SPEC, now=0.0)
    picture = stages(100, train=(1.0, 99.0), llama_docs=(20.0, 20.0), gpt2_code=(40.0, 0.0))
    first.update(Progress(stages=picture, steps=(replace(STEP, step=1),)), now=40.0)
    assert "add" not in line(first)


def test_a_slow_trainer_is_named_as_such():
    state = RunState(SPEC, now=0.0)
    picture = Progress(stages=stages(100, llama_docs=(2.0, 18.0), train=(19.0, 1.0)), steps=(STEP,))
    state.update(picture, now=20.0)
    assert state.headline == "training is busy 95 % of the time: the other stages wait for it"


def test_no_stage_is_blamed_when_none_is_busy():
    state = RunState(SPEC, now=0.0)
    picture = Progress(stages=stages(100, llama_docs=(2.0, 18.0), train=(3.0, 17.0)), steps=(STEP,))
    state.update(picture, now=20.0)
    assert state.headline.startswith("no stage is busy for more than half of its time; training waits for data 85 %")


def test_loading_is_shown_with_its_time():
    state = RunState(SPEC, now=0.0)
    state.update(Progress(), now=12.0)
    assert line(state) == "trial | starting llama-docs, gpt2-code 12 s"
    loading = (StageTotals("llama-docs", replicas=1, starts=1),)
    state.update(Progress(stages=loading), now=13.0)
    state.update(Progress(stages=loading), now=25.0)
    assert line(state) == "trial | loading llama-docs 12 s; starting gpt2-code 25 s"
    assert "llama-docs loading 12 s" in " ".join(shown(panel(state)).split()), "in the place of its bar"
    (loaded,) = stages(8, llama_docs=(1.0, 0.0))
    state.update(Progress(stages=(loaded, StageTotals("gpt2-code", replicas=1, starts=1))), now=26.0)
    state.update(Progress(stages=(loaded, StageTotals("gpt2-code", replicas=1, starts=1))), now=86.0)
    assert "loaded llama-docs 13 s; loading gpt2-code 1 min 00 s" in shown(panel(state))
    state.update(Progress(stages=stages(8, llama_docs=(1.0, 0.0), gpt2_code=(1.0, 0.0))), now=87.0)
    loaded_both = "loaded llama-docs 13 s, gpt2-code 1 min 01 s"
    assert state.headline == f"{loaded_both}; waiting for the first step 1 min 27 s"
    state.update(Progress(steps=(replace(STEP, step=1),)), now=90.0)
    assert line(state).endswith("last event: first step, 1 min 30 s after the start, 0 s ago")


def test_a_phase_before_the_stream_is_shown_with_its_seconds():
    console = Console(file=io.StringIO(), width=20)
    show_phase("Ray is ready", 12.3, console)
    assert console.file.getvalue().endswith(" | Ray is ready, 12 s after the run began\n")


def test_a_step_longer_than_the_window_has_a_rate():
    rates = FlowRates(SPEC)
    for now in range(0, 261, 10):  # a step of 500 tokens every 100 s, looked at in windows of 30 s
        rates.update(Progress(stages=(StageTotals("train", tokens=500 * (now // 100)),)), now // 100, float(now))
        if now >= 200:
            assert rates.train_tokens_per_second > 0
    assert rates.train_tokens_per_second == pytest.approx(5.0)
    rates.update(Progress(stages=(StageTotals("train", tokens=1000),)), 2, 400.0)
    assert rates.train_tokens_per_second == pytest.approx(2.5), "the next step is late"


@pytest.mark.parametrize("width", [80, 120])
def test_each_stage_has_a_bar_of_its_working_time(state, width):
    _, _, table = shown(panel(state), width).partition("working, waiting")
    bars = {}
    for text in table.splitlines()[1:4]:
        name = text.strip("\u2502 ").split(" ")[0]
        bars[name] = text.count("\u2501") + text.count("\u2578") / 2
    assert list(bars) == ["llama-docs", "gpt2-code", "train"]
    assert bars["gpt2-code"] > bars["llama-docs"] > 0
    assert bars["gpt2-code"] >= (10 if width == 80 else 40)
    assert bars["llama-docs"] / bars["gpt2-code"] == pytest.approx(5 / 19, abs=0.06)


def test_the_last_event_is_shown_with_its_age(state):
    assert "last event" not in line(RunState(SPEC, now=0.0))
    assert line(state).endswith("last event: first step, 40 s after the start, 20 s ago")
    died = (StageTotals("gpt2-code", 200, 20000, 49.0, 11.0, replicas=2, starts=3),)
    state.update(Progress(stages=died), now=61.0)
    assert state.last_event == "gpt2-code lost a process, which was replaced, 0 s ago"
    saved = (Committed(20, 1.8e9),)
    state.update(Progress(stages=died, checkpoints=saved), now=62.0)
    state.update(Progress(stages=died, checkpoints=saved), now=68.0)
    assert "last event: checkpoint of step 20, 6 s ago" in shown(panel(state), 80)
    restarted = (*died, StageTotals("train", 200, 20000, 42.0, 18.0, replicas=1, starts=2))
    state.update(Progress(stages=restarted, checkpoints=saved), now=70.0)
    assert state.last_event == "training was restarted, 0 s ago"
    state.update(Progress(stages=restarted, steps=(replace(STEP, step=21, held_out={"docs": 2.0}),)), now=71.0)
    assert state.last_event == "evaluated after step 21, 0 s ago"


def test_a_slow_rate_is_not_rounded_to_nothing():
    state = RunState(SPEC, now=0.0)
    for number, now in ((1, 100.0), (2, 400.0)):
        train, record = StageTotals("train", 1, 100 * number), replace(STEP, step=number)
        state.update(Progress(stages=(train,), steps=(record,)), now)
    assert "| 0.33 tokens/s," in line(state)
    assert " 0.33 " in shown(panel(state))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_panel_shows_all_parts(state, width):
    text = shown(panel(state), width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("trial", "step 20/50", "loss 5.0000", "llama-docs", "gpt2-code", "train", "95.0 %"):
        assert word in text
    assert "500 tokens/s, 1 min 00 s, at most 1 min 00 s left" in text
    assert "(causal LM 5.2500, fusion 4.7500)" in text


def test_a_replaced_replica_and_a_skipped_row_are_shown(state):
    replaced = StageTotals("gpt2-code", 200, 20000, 49.0, 11.0, replicas=2, starts=3)
    row = SkippedRow("corpus.jsonl", 7, "not JSON [really]")
    state.update(Progress(stages=(replaced,), skipped=(row,), num_skipped=1), now=61.0)
    text = shown(panel(state))
    assert "2 (1 replaced)" in text
    assert "1 row skipped, first corpus.jsonl, row 7: not JSON [really]" in text


def test_a_restart_of_training_is_shown(state):
    restarted = StageTotals("train", 210, 21000, 42.0, 18.0, replicas=1, starts=2)
    state.update(Progress(stages=(restarted,)), now=61.0)
    assert "training was restarted 1 time, from its last checkpoint" in shown(panel(state))


def test_a_log_gets_lines_with_their_time():
    console = Console(file=io.StringIO(), force_terminal=False, width=20)
    display = ProgressDisplay(SPEC, console=console)
    began = time.monotonic()
    evaluated = {14: {"docs": 2.5}}
    for second in range(40):
        record = replace(STEP, step=second + 1, held_out=evaluated.get(second, {}))
        display.see(
            Progress(steps=(record,), stages=stages(second, train=(0.75 * second, 0.25 * second))), began + second
        )
    display.close()
    lines = [text.split(" | ") for text in console.file.getvalue().splitlines()]
    assert [parts[2] for parts in lines] == [f"step {step}/50" for step in (1, 11, 15, 25, 35, 40)], "not wrapped"
    assert all(abs(datetime.fromisoformat(parts[0]) - datetime.now()).total_seconds() < 60 for parts in lines)
    assert lines[1][3:6] == [
        "100 tokens/s, 10.0 s, at most 1 min 18 s left",
        "loss 5.0000 (causal LM 5.2500, fusion 4.7500) nats per row, gradient norm 1",
        "training is busy 75 % of the time: the other stages wait for it",
    ]
    assert "held-out bits per byte after step 15: docs 2.5000" in lines[2], "an evaluation has a line of its own"
    assert "held-out bits per byte after step 15: docs 2.5000" in lines[3], "and stays until the next"


def test_a_long_run_has_one_line_per_minute():
    console = Console(file=io.StringIO(), force_terminal=False)
    display = ProgressDisplay(SPEC, console=console)
    began = time.monotonic()
    for second in range(0, 1800, 5):
        display.see(Progress(), began + second)
    assert len(console.file.getvalue().splitlines()) == 60 + 20


def test_a_terminal_gets_one_panel_that_is_redrawn():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    display = ProgressDisplay(SPEC, console=console)
    display.see(Progress(steps=(STEP,), stages=stages(10, train=(1.5, 0.5))), time.monotonic())
    display.close()
    assert "step 10/50" in console.file.getvalue()
    assert "\x1b[" in console.file.getvalue()
    assert "training is busy 75 %" in console.file.getvalue()


def test_a_display_that_shows_nothing_leaves_the_cursor_alone():
    """Another observer may fail to be made: no one would close the display."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    display = ProgressDisplay(SPEC, console=console)
    assert console.file.getvalue() == ""
    display.close()
    assert console.file.getvalue() == ""
    display = ProgressDisplay(SPEC, console=console)
    display.see(Progress(), time.monotonic())
    assert HIDDEN in console.file.getvalue()
    display.close()
    assert console.file.getvalue().rfind(SHOWN) > console.file.getvalue().rfind(HIDDEN)


@pytest.fixture
def result():
    folder = "/a/rather/long/path/to/the/place/where/all/the/runs/of/this/machine/have/always/been/kept/trial"
    return RunResult(
        name="trial",
        output_dir=folder,
        export_dir=f"{folder}/export",
        report_path=f"{folder}/report.html",
        spec_path=f"{folder}/spec.yaml",
        steps=2,
        passages=80,
        tokens=2000,
        bytes=8000,
        wall_seconds=200.0,
        spilled_bytes=0,
        sources=(SourceTotals("llama-docs", math.log(2), 0.75, 0.9), SourceTotals("gpt2-code", 1.0, math.nan, 0.5)),
        history=(
            replace(STEP, step=1, held_out={"docs": 2.5}, held_out_seconds=0.75),
            replace(STEP, step=2, loss=4.0, fusion_loss=math.nan, held_out={"docs": 2.0}, held_out_seconds=0.75),
        ),
        stopped_by="tokens",
        exported_step=1,
        stages=(*stages(80, llama_docs=(40.0, 60.0)), StageTotals("gpt2-code", 80, 8000, 160.0, 40.0, 2, 3)),
        skipped=(SkippedRow("corpus.jsonl", 7, "not JSON"),),
        evaluation=EvaluationResult(bits_per_byte={"target before": {"docs": 2.5}, "fused target": {"docs": 1.5}}),
    )


def test_the_summary_has_every_figure_with_its_unit(result):
    console = Console(file=io.StringIO(), width=80, record=True)
    show_summary(result, console)
    text = console.export_text()
    for word in (
        "3 min 20 s",
        "10 tokens/s",
        "2,000 tokens in 80 passages, 8,000 bytes",
        "5.0000 -> 4.0000 nats per row",
        "4.7500 -> - nats per row",
        "4.0 s, 500 tokens/s, waiting for data 25.0 %",
        "90.0 % of the blocks' places hold a token to learn",
        "tokens: training.max_tokens",
        "2.5000 after step 1 -> 2.0000 bits per byte after step 2",
        "1.5 s in 2 evaluations",
        "the weights of step 1, the best on held-out text",
        "0.6931",
        "1.0000",
        "75.0 %",
        "replaced",
        "fused target",
        "1.5000*",
        result.export_dir,
        result.report_path,
    ):
        assert word in text, word


def test_throughput_counts_the_time_of_all_replicas(result):
    first, second = stage_rows(result).rows
    assert first == ("llama-docs", "80", "8,000", "80", "200", "40.0 %", "1")
    assert second == ("gpt2-code", "80", "8,000", "80", "100", "80.0 %", "2 (1 replaced)")


ASCII = """
import json, sys
from dataclasses import replace
from tests.unit.engine.reporting import test_terminal as cases
from engine.reporting.terminal import ProgressDisplay, show_evaluation, show_summary
from engine.history.result import EvaluationResult, Progress, SkippedRow

row = SkippedRow("/data/caf\\u00e9/\\u65e5.jsonl", 3, "half of a pair: \\\\ud83d, and \\U0001f642")
display = ProgressDisplay(cases.SPEC)
display.see(Progress(steps=(cases.STEP,), skipped=(row,)), 1.0)
display.close()
show_summary(replace(cases.result.__wrapped__(), skipped=(row,), export_dir="/data/\\u65e5/export"))
show_evaluation(EvaluationResult(bits_per_byte={"\\u00e9": {"\\u65e5": 1.0}}), ["/data/\\u65e5.json"])
"""


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
def test_an_ascii_terminal_shows_escapes(terminal):
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {**os.environ, **plain, "TERM": terminal, "FORCE_COLOR": "1"}
    command = [sys.executable, "-c", ASCII]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=25)
    assert done.returncode == 0, done.stderr.decode("utf8", "replace")[-2000:]
    printed = done.stdout.decode("ascii")
    assert "\\u65e5" in printed and "\\xe9" in printed


def test_the_summary_shows_restarts_of_training(result):
    train = StageTotals("train", 80, 8000, 1.0, 1.0, replicas=1, starts=3)
    restarted = replace(result, stages=(*result.stages, train))
    assert ("training restarts", "2, each from the last checkpoint") in run_figures(restarted).rows
    assert "training restarts" not in dict(run_figures(result).rows)


def test_the_summary_says_which_pool_to_grow(result):
    """The first step, which has waited for all models to load, does not count."""
    first, last = result.history
    starved = (replace(first, seconds=99.0, wait_seconds=98.0), replace(last, seconds=10.0, wait_seconds=5.0))
    figures = dict(run_figures(replace(result, history=starved)).rows)
    assert figures["to grow"] == "gpt2-code: add 2 replicas, training waits 50 %"


def test_a_run_without_a_step_has_a_summary(result):
    empty = replace(result, history=(), stages=(), sources=(), steps=0, tokens=0, wall_seconds=math.nan)
    assert ("losses", "no step was taken: the corpus has no text to learn") in run_figures(empty).rows
    show_summary(empty, Console(file=io.StringIO()))


def test_an_evaluation_marks_the_best():
    console = Console(file=io.StringIO(), width=80, record=True)
    scores = {"before": {"docs": 2.5, "code": 1.0}, "after": {"docs": 1.5, "code": 2.5}}
    show_evaluation(EvaluationResult(bits_per_byte=scores), console=console)
    text = console.export_text()
    assert all(word in text for word in ("1.5000*", "1.0000*", "1.7500*", "2.0000 ", "mean"))
    show_evaluation(EvaluationResult(), console=console)
    assert "name held-out domains in evaluation.corpora" in console.export_text()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.44, "8.4 s"), (59.96, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (math.nan, "-")],
)
def test_durations_have_readable_units(seconds, words):
    assert duration(seconds) == words


def test_shares_are_percentages():
    assert (share(0.4567), share(1.0), share(math.nan)) == ("45.7 %", "100.0 %", "-")
