"""A restart of the training workers, as all who watch the run see it: from the monitor's reports to what they show."""

import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from actors.monitor import RunMonitor
from engine.errors import FusionError
from engine.history.result import StageTotals
from engine.reporting.run_state import RunState
from engine.reporting.terminal import line, panel
from engine.spec.loading import parse
from pipelines.cluster.ray_metrics import RayMetrics
from pipelines.run.event_log import EVENTS_FILE, EventLog
from pipelines.run.live_page import LivePage
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def spec(tmp_path):
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(tmp_path / "out")},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "target"},
            "source_models": [{"name": "llama", "checkpoint": "a"}],
            "training": {"max_steps": 6250},
        }
    )


class Run:
    """Steps of 2 s and 1,000 tokens, of which training works 1.5 s; each observer sees a picture a second."""

    def __init__(self, *observers):
        self.monitor, self.observers = RunMonitor(), observers
        self.now, self._mark, self._scored, self._replica = 0.0, 0, 0, 0
        self.begin()

    def begin(self, checkpoint=0, retired=()):
        """A stream with a new replica of the source."""
        self.monitor.begin_stream(retired, self.record(checkpoint) if checkpoint else None)
        self._replica, self._scored = self._replica + 1, 0

    @staticmethod
    def record(step):
        fields = {"source_nats": (1.0,), "source_bytes": (1,), "source_wins": (0.0,), "source_covered_rows": (1,)}
        return step_record(
            step, tokens=1000, elapsed_seconds=2.0 * step, loss=float(step), source_left_out=(0,), **fields
        )

    def take(self, first, last, waited=0.0):
        """Take steps; the first one waits for the models."""
        self.wait(waited)
        for step in range(first, last + 1):
            self.wait(2.0)
            record, self._scored = self.record(step), self._scored + 4
            if step == first:
                record = replace(record, seconds=2.0 + waited, wait_seconds=0.5 + waited)
            source = StageTotals("llama", self._scored, 250 * self._scored, 0.4 * self._scored, 0.1 * self._scored)
            self.monitor.report(f"replica {self._replica}", f"process {self._replica}", source)
            self.monitor.step(record)
            self.look()

    def wait(self, seconds):
        """Let time pass."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.look()

    def look(self):
        """Show a picture."""
        picture = self.monitor.snapshot(self._mark)
        self._mark = picture.mark
        for see in self.observers:
            see(picture, self.now)


def test_the_display_shows_the_run_as_it_is_at_any_time_after_a_restart(spec):
    state = RunState(spec, now=0.0)
    run = Run(state.update)
    run.take(1, 150, waited=60)
    assert "step 150/6250 | 500 tokens/s," in line(state)
    run.begin(checkpoint=100)
    run.wait(600)
    assert (state.last_step, state.tokens) == (100, 100_000)
    assert state.seconds_left == pytest.approx(6150 * 2.0)
    assert "starting llama 9 min 59 s" in line(state)
    assert "add" not in line(state) and "busy" not in line(state)
    run.take(101, 101, waited=10)
    assert "add" not in line(state), "the step that has waited for the models says nothing"
    for step in range(102, 148):
        run.take(step, step)
        if step > 110:
            assert f"| step {step}/6250 | " in line(state)
            assert state.rates.train_tokens_per_second == pytest.approx(500, rel=0.1)
            assert state.seconds_left == pytest.approx((6250 - step) * 2.0)
            assert "| llama is 80 % busy: the others wait for it; training waits for data 25 %" in line(state)
            assert all(0.0 <= rate.busy_share <= 1.0 for rate in state.rates.stages())
    assert "training was restarted 1 time" in line(state)
    assert state.tokens == 147_000
    assert [record.step for record in state.steps] == list(range(1, 148))
    console = Console(file=io.StringIO(), width=120)
    console.print(panel(state))
    assert "step 147/6250" in console.file.getvalue()


def test_a_retirement_loses_no_step_and_shows_the_loading_again(spec):
    state = RunState(spec, now=0.0)
    run = Run(state.update)
    run.take(1, 20, waited=60)
    run.begin(checkpoint=20, retired=("llama",))
    run.wait(40)
    assert (state.last_step, state.tokens) == (20, 20_000)
    assert "waiting for the first step 39 s" in line(state)
    assert "restarted" not in line(state)
    assert state.seconds_left == pytest.approx(6230 * 2.0)
    run.take(21, 40)
    assert [record.step for record in state.steps] == list(range(1, 41))
    assert state.seconds_left == pytest.approx(6210 * 2.0)


def test_the_page_has_no_void_step_and_says_where_a_second_failure_was(spec):
    with pytest.raises(FusionError), LivePage(spec) as page:
        run = Run(page.see)
        run.take(1, 150)
        run.monitor.inspect([{"step": 149, "sample": 149, "passage": "void"}])
        run.look()
        run.begin(checkpoint=100)
        run.take(101, 120)
        assert [record.loss for record in page._state.steps] == [float(step) for step in range(1, 121)]
        assert page._looks == {}
        raise FusionError("a worker has died")
    text = (Path(spec.run.output_dir) / "report.html").read_text()
    assert "failed after step 120: a worker has died" in text
    assert "120,000 tokens in 480 passages" in text


def test_the_page_goes_on_when_a_restart_voids_all_steps(spec):
    with LivePage(spec) as page:
        run = Run(page.see)
        run.take(1, 30)
        run.begin()
        run.wait(31)
        text = (Path(spec.run.output_dir) / "report.html").read_text()
        assert "running, step 0 of 6,250" in text
        assert "no step was taken" in text


def test_events_after_a_restart_carry_the_step_that_the_run_has_come_to(spec):
    with pytest.raises(FusionError), EventLog(spec) as log:
        run = Run(log.see)
        run.take(1, 15)
        run.begin(checkpoint=10)
        run.look()
        run.take(11, 12)
        log.close()
        raise FusionError("again")
    lines = (Path(spec.run.output_dir) / EVENTS_FILE).read_text().splitlines()
    found = [(event["event"], event["step"]) for event in map(json.loads, lines)]
    assert ("replaced", 10) in found
    assert ("stopped", 12) in found


def test_the_metrics_ask_for_no_replica_while_models_load_again(spec, monkeypatch):
    written = defaultdict(list)

    class Metric:
        def __init__(self, name, *_, tag_keys=None):
            self.set = self.inc = self.observe = lambda value, tags: written[name].append(value)

    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(f"pipelines.cluster.ray_metrics.{kind}", Metric)
    run = Run(RayMetrics(spec).see)
    run.take(1, 150, waited=60)
    assert set(written["knowledge_fusion_stage_replicas_needed"]) <= {1, 2}
    before = len(written["knowledge_fusion_stage_replicas_needed"])
    run.begin(checkpoint=100)
    run.take(101, 101, waited=300)
    assert len(written["knowledge_fusion_stage_replicas_needed"]) == before
    run.take(102, 147)
    assert set(written["knowledge_fusion_stage_replicas_needed"]) <= {1, 2}
    assert written["knowledge_fusion_loss"][-3:] == [147.0, 5.25, 4.75]
    assert len(written["knowledge_fusion_steps"]) == 150 + 47
    assert all(value > 0 for value in written["knowledge_fusion_stage_tokens"])
