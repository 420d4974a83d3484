"""The page is written while the run works, not too often, and says how the run ended."""

import re
import threading
import time
from pathlib import Path

import pytest

from engine.errors import FusionError
from engine.history.result import Progress, StageTotals
from engine.spec import EvaluationSpec
from engine.spec.loading import parse
from pipelines.run import live_page
from pipelines.run.live_page import LivePage
from pipelines.run.result import result_of
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def spec(tmp_path):
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(tmp_path / "output")},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "models/target"},
            "objective": {"lm_loss_weight": 1.0},
            "training": {"max_steps": 6250},
            "evaluation": {"corpora": {"docs": ["held-out.jsonl"]}},
        }
    )


@pytest.fixture(autouse=True)
def pages_cost_nothing(monkeypatch):
    """On a slow machine a page of some cost would be written later."""
    monkeypatch.setattr(live_page.time, "thread_time", lambda: 0.0)


def picture(*steps):
    stages = (StageTotals("corpus", 40, 0, 1.0, 2.0, 1, 1),)
    return Progress(stages=stages, steps=tuple(step_record(step) for step in steps))


def page_of(spec) -> Path:
    return Path(spec.run.output_dir) / "report.html"


def test_the_page_is_written_from_the_first_step_on_and_every_half_minute(spec):
    with LivePage(spec, clock=lambda: 1.8e9) as page:
        page.see(picture(), now=0.0)
        assert not page_of(spec).exists(), "no step yet"
        page.see(picture(1), now=10.0)
        assert "running, step 1 of 6,250<" in page_of(spec).read_text()
        page.see(picture(2), now=39.0)
        assert "running, step 1 of 6,250<" in page_of(spec).read_text()
        page.see(picture(3), now=40.0)
        text = page_of(spec).read_text()
        assert "running, step 3 of 6,250, at most 3 h 28 min" in text
        assert 'data-written="1800000000" data-next="30"' in text
        page.close()
        assert "trained for 3 steps, evaluating" in page_of(spec).read_text()
        page.finish(result_of(spec, [step_record(1)], picture(), 200.0, "steps"))
    text = page_of(spec).read_text()
    assert "done: 1 steps in 3 min 20 s" in text
    assert 'data-next="0"' in text


def test_a_run_that_is_not_evaluated_has_no_page_of_its_evaluation(spec):
    with LivePage(spec.model_copy(update={"evaluation": EvaluationSpec()})) as page:
        page.see(picture(1), now=0.0)
        page.close()
    assert "running, step 1 of" in page_of(spec).read_text(), "the page of its end follows at once"


def wait_for(spec, pattern):
    """Wait until the page says something; returns what was found."""
    deadline = time.monotonic() + 20
    while not (found := re.search(pattern, page_of(spec).read_text())):
        assert time.monotonic() < deadline, pattern
        time.sleep(0.01)
    return found


def test_the_page_lives_while_the_run_is_evaluated(spec, monkeypatch):
    monkeypatch.setattr(live_page, "SECONDS_BETWEEN", 0.05)
    monkeypatch.setattr(live_page, "MOST_CPU_SHARE", 1.0)
    clock = iter(range(1000, 100_000)).__next__
    with LivePage(spec, clock=clock) as page:
        page.see(picture(1, 2), now=0.0)
        page.close()
        assert ">trained for 2 steps, evaluating<" in page_of(spec).read_text()
        renderings = []
        monkeypatch.setattr(live_page, "render_report", lambda *parts: renderings.append(parts))
        found = wait_for(spec, r'data-written="(\d+)".*>trained for 2 steps, evaluating for \d')
        later = wait_for(spec, rf'data-written="(?!{found[1]})(\d+)"')
        assert int(later[1]) > int(found[1])
        assert "Resolved spec" in page_of(spec).read_text()
        assert renderings == [], "it costs next to nothing"
        monkeypatch.undo()
        page.finish(result_of(spec, [step_record(1)], picture(), 200.0, "steps"))
        assert "done: 1 steps" in page_of(spec).read_text()
        time.sleep(0.2)
        assert "done: 1 steps" in page_of(spec).read_text()


def test_a_late_call_does_not_replace_the_page_of_the_end(spec):
    """The watch waits for no observer for long: one may still write, or be closed, when the run has ended."""
    with LivePage(spec) as page:
        page.see(picture(1), now=0.0)
        page.finish(result_of(spec, [step_record(1)], picture(), 200.0, "steps"))
        page.see(picture(2), now=100.0)
        page.close()
        assert "done: 1 steps" in page_of(spec).read_text()


def test_the_end_waits_for_a_page_that_is_being_written(spec, monkeypatch):
    is_writing, may_go_on, write = threading.Event(), threading.Event(), live_page.write_page

    def slow(text, url):
        if "running, step" in text:
            is_writing.set()
            assert may_go_on.wait(20)
        write(text, url)

    monkeypatch.setattr(live_page, "write_page", slow)
    with LivePage(spec) as page:
        watcher = threading.Thread(target=page.see, args=(picture(1), 0.0))
        watcher.start()
        assert is_writing.wait(20)
        threading.Timer(0.2, may_go_on.set).start()
        page.finish(result_of(spec, [step_record(1)], picture(), 200.0, "steps"))
        watcher.join(20)
    assert "done: 1 steps" in page_of(spec).read_text()


def test_a_page_that_costs_much_is_written_less_often(spec, monkeypatch):
    seconds = iter([0.0, 0.9, 0.9, 1.8])
    monkeypatch.setattr(live_page.time, "thread_time", lambda: next(seconds))
    with LivePage(spec) as page:
        page.see(picture(1), now=0.0)
        assert 'data-next="90"' in page_of(spec).read_text(), "the first page knows what it has cost"
        page.see(picture(2), now=89.0)
        assert "step 1 of" in page_of(spec).read_text()
        page.see(picture(3), now=90.0)
        assert "step 3 of" in page_of(spec).read_text()
        assert 'data-next="90"' in page_of(spec).read_text()


def test_the_page_of_a_run_that_goes_on_counts_each_step_once(spec, monkeypatch):
    """The third step was lost with the process that took it after the checkpoint, and is taken again."""
    monkeypatch.setattr(live_page, "recorded_steps", lambda _: [step_record(step) for step in (1, 2, 3)])
    with LivePage(spec) as page:
        page.see(picture(3), now=0.0)
        assert "300 tokens in 12 passages, 1,200 bytes" in page_of(spec).read_text()
        page.see(picture(4, 5), now=1000.0)
        assert "500 tokens in 20 passages, 2,000 bytes" in page_of(spec).read_text()
        page.close()
        assert "500 tokens in 20 passages, 2,000 bytes" in page_of(spec).read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FusionError("align: <no> room"), "failed after step 2: align: &lt;no&gt; room"),
        (KeyboardInterrupt(), "stopped after step 2; the same command goes on from the last checkpoint"),
    ],
)
def test_the_page_says_how_a_run_failed(spec, error, words):
    with pytest.raises(type(error)), LivePage(spec) as page:
        page.see(picture(1, 2), now=0.0)
        raise error
    assert words in page_of(spec).read_text()
    assert 'data-next="0"' in page_of(spec).read_text()


def test_a_run_that_fails_before_its_first_step_has_a_page(spec):
    with pytest.raises(FusionError), LivePage(spec):
        raise FusionError("a node has no disk")
    assert "failed before its first step: a node has no disk" in page_of(spec).read_text()
