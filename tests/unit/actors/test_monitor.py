"""The monitor counts everything once, and a meter loses nothing."""

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import monitor as run_monitor
from actors.monitor import Deaths, Meter, NoMeter, RunMonitor
from engine.errors import FusionError
from engine.history.result import Committed, SkippedRow, StageTotals
from tests.support.paths import ROOT
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(30)


class _Method:
    """A method of an actor handle: ``remote`` carries it out here and now."""

    def __init__(self, call, calls):
        self._call, self._calls = call, calls

    def remote(self, *arguments):
        self._calls.append(arguments)
        self._call(*arguments)


class Handle:
    """What an actor's handle looks like from a meter, around a monitor in this process."""

    def __init__(self):
        self.monitor = RunMonitor()
        self.sent = []
        self.report = _Method(self.monitor.report, self.sent)
        self.skip = _Method(self.monitor.skip, [])


class Clock:
    """Stands in for ``time`` in the module under test; a test sets ``now``."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_monitor, "time", clock)
    return clock


def totals(passages, tokens, busy_seconds, wait_seconds):
    return StageTotals("gpt2-code", passages, tokens, busy_seconds, wait_seconds)


def test_time_that_two_calls_share_counts_once(clock):
    meter = Meter("gpt2-code", handle := Handle())
    for end, busy_seconds in ((1002.0, 2.0), (1003.0, 2.0), (1006.0, 1.0)):
        clock.now = end
        meter.record(passages=1, tokens=10, busy_seconds=busy_seconds)
    (stage,) = handle.monitor.snapshot().stages
    assert (stage.busy_seconds, stage.wait_seconds) == (4.0, 2.0)  # 1000 to 1003 and 1005 to 1006; 1003 to 1005


def test_a_stage_adds_up_over_its_replicas():
    monitor = RunMonitor()
    monitor.report("first", "1", totals(8, 800, 2.0, 0.5))
    monitor.report("second", "2", totals(4, 300, 1.0, 0.25))
    assert monitor.snapshot().stages == (StageTotals("gpt2-code", 12, 1100, 3.0, 0.75, replicas=2, starts=2),)


def test_a_report_that_comes_twice_counts_once():
    monitor = RunMonitor()
    for _ in range(2):
        monitor.report("first", "1", totals(8, 800, 2.0, 0.5))
    assert monitor.snapshot().stages == (StageTotals("gpt2-code", 8, 800, 2.0, 0.5, replicas=1, starts=1),)


def test_a_replica_that_starts_again_was_replaced_and_its_work_counts():
    monitor = RunMonitor()
    for process in ("1", "2"):
        monitor.report("first", process, totals(8, 800, 2.0, 0.5))
    monitor.report("second", "3", totals(4, 300, 1.0, 0.25))
    assert monitor.snapshot().stages == (StageTotals("gpt2-code", 20, 1900, 5.0, 1.25, replicas=2, starts=3),)


def test_a_step_that_comes_again_replaces_the_old_one_and_voids_those_after_it():
    monitor = RunMonitor()
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5)):
        monitor.step(step_record(step, loss=loss))
    picture = monitor.snapshot()
    assert [(record.step, record.loss) for record in picture.steps] == [(1, 5.0), (2, 4.5)]
    assert picture.stages == (StageTotals("train", 8, 200, 3.0, 1.0, replicas=1, starts=1),)


def test_a_restart_voids_the_steps_after_its_checkpoint():
    monitor = RunMonitor()
    monitor.begin_stream()
    for step in (1, 2, 3, 4):
        monitor.step(step_record(step))
        monitor.inspect([{"step": step, "sample": step, "passage": "a"}])
    seen = monitor.snapshot()
    assert (seen.void_after, seen.stream, seen.began_at) == (None, 1, 0)
    monitor.begin_stream((), step_record(2))
    picture = monitor.snapshot(seen.mark)
    assert (picture.void_after, picture.stream, picture.began_at, picture.steps) == (2, 2, 2, ())
    assert picture.stages == (StageTotals("train", 8, 200, 3.0, 1.0, replicas=1, starts=2),)
    assert [look["step"] for look in monitor.snapshot().looks] == [1, 2]
    monitor.step(step_record(3, loss=1.0))
    again = monitor.snapshot(picture.mark)
    assert (again.void_after, [(record.step, record.loss) for record in again.steps]) == (None, [(3, 1.0)])


def test_a_restart_without_a_checkpoint_voids_all_steps_and_is_seen():
    monitor = RunMonitor()
    monitor.begin_stream((), step_record(900))
    monitor.step(step_record(901))
    seen = monitor.snapshot()
    monitor.begin_stream((), step_record(900))
    picture = monitor.snapshot(seen.mark)
    assert (picture.void_after, picture.steps) == (900, ())
    assert picture.stages == (StageTotals("train", replicas=1, starts=2),)


def test_the_step_of_a_checkpoint_that_no_worker_has_reported_is_not_missing():
    """With held-out text the last step waits; the workers may end between its checkpoint and its report."""
    monitor = RunMonitor()
    monitor.begin_stream((), step_record(10))
    monitor.step(step_record(11))
    monitor.begin_stream((), step_record(12))
    monitor.step(step_record(13))
    assert [record.step for record in monitor.snapshot().steps] == [11, 12, 13]


def test_a_retirement_voids_no_step():
    monitor = RunMonitor()
    monitor.begin_stream()
    for step in (1, 2):
        monitor.step(step_record(step))
    seen = monitor.snapshot()
    monitor.begin_stream(("gpt2-code",), step_record(2))
    picture = monitor.snapshot(seen.mark)
    assert (picture.void_after, picture.stream, picture.began_at) == (None, 2, 2)
    assert picture.stages[0].passages == 8


EVENTS = st.one_of(st.just("step"), st.just("look"), st.just("picture"), st.integers(0, 20))


@given(events=st.lists(EVENTS, max_size=80))
def test_all_that_happens_leaves_the_totals_and_the_pictures_right(events):
    """Steps, pictures, and restarts from a checkpoint some steps back, in any order; who follows has what stands."""
    monitor, standing, followed, mark, loss = RunMonitor(), [], [], 0, 0.0
    monitor.begin_stream()
    for event in [*events, "picture"]:
        if event == "step":
            loss += 0.1
            standing.append(step_record(len(standing) + 1, seconds=loss, wait_seconds=loss / 3, tokens=len(standing)))
            monitor.step(standing[-1])
        elif event == "look":
            monitor.inspect([{"step": len(standing) + 1, "sample": len(standing) + 1, "passage": "a"}])
        elif event == "picture":
            picture = monitor.snapshot(mark)
            if picture.void_after is not None:
                followed = [record for record in followed if record.step <= picture.void_after]
            followed += picture.steps
            mark = picture.mark
            assert followed == standing
            assert monitor.snapshot(mark).steps == monitor.snapshot(mark).looks == ()
            assert all(look["step"] <= len(standing) + 1 for look in picture.looks)
        else:
            del standing[max(0, len(standing) - event) :]
            monitor.begin_stream((), standing[-1] if standing else None)
    train = next((stage for stage in monitor.snapshot().stages), StageTotals("train"))
    seconds, waited = (sum(getattr(record, name) for record in standing) for name in ("seconds", "wait_seconds"))
    assert (train.passages, train.tokens) == (4 * len(standing), sum(record.tokens for record in standing))
    assert (train.busy_seconds, train.wait_seconds) == (pytest.approx(seconds - waited), pytest.approx(waited))


def test_a_new_stream_has_new_replicas_and_forgets_no_work():
    monitor = RunMonitor()
    monitor.begin_stream()
    assert monitor.start("first", "1", "gpt2-code").count == 0
    assert monitor.start("first", "2", "gpt2-code").count == 1
    monitor.report("first", "2", totals(8, 800, 2.0, 0.5))
    monitor.begin_stream()
    assert monitor.start("second", "3", "gpt2-code").count == 0, "a replica of another stream"
    monitor.report("second", "3", totals(4, 300, 1.0, 0.25))
    assert monitor.snapshot().stages[0] == StageTotals("gpt2-code", 12, 1100, 3.0, 0.75, replicas=1, starts=2)


def test_training_that_starts_again_is_counted():
    monitor = RunMonitor()
    for _ in range(2):
        monitor.begin_stream()
        monitor.step(step_record())
    (train,) = monitor.snapshot().stages
    assert (train.replicas, train.starts, train.tokens) == (1, 2, 100)


def test_a_stream_without_a_retired_source_is_no_restart_of_training():
    monitor = RunMonitor()
    for retired in ((), ("gpt2-code",), ("gpt2-code",)):
        monitor.begin_stream(retired)
        monitor.step(step_record())
    picture = monitor.snapshot()
    assert picture.retired == ("gpt2-code",)
    assert picture.stages[0].starts == 2


def test_a_stage_whose_replicas_die_too_often_is_refused():
    class Restarted(Meter):
        def start(self) -> Deaths:
            return Deaths(3)

    Restarted("align", Handle(), max_restarts=3).start_or_refuse()
    with pytest.raises(FusionError, match=r"gpt2: a replica has died 3 times .*, source_models max_restarts is 2"):
        Restarted("gpt2", Handle(), 2, "source_models max_restarts").start_or_refuse()
    with pytest.raises(FusionError, match=r"align: a replica has died 3 times .*, training\.max_restarts is 2; look"):
        Restarted("align", Handle(), max_restarts=2).start_or_refuse()


def test_a_snapshot_leaves_out_known_steps_but_not_their_totals():
    monitor = RunMonitor()
    for step in (1, 2):
        monitor.step(step_record(step))
    mark = monitor.snapshot().mark
    monitor.step(step_record(3))
    picture = monitor.snapshot(mark)
    assert [record.step for record in picture.steps] == [3]
    assert picture.stages[0].tokens == 300
    assert pickle.loads(pickle.dumps(picture)) == picture


def test_a_row_is_skipped_once_in_all_passes():
    monitor = RunMonitor()
    for row in (7, 7, 8):
        monitor.skip(SkippedRow("corpus.jsonl", row, "not JSON"))
    monitor.skip(SkippedRow("other.jsonl", 7, "not JSON"))
    skipped = monitor.snapshot().skipped
    assert [(row.path, row.row) for row in skipped] == [("corpus.jsonl", 7), ("corpus.jsonl", 8), ("other.jsonl", 7)]


def test_a_picture_lists_the_first_hundred_rows_and_counts_all():
    monitor = RunMonitor()
    for row in range(1000, 0, -1):
        monitor.skip(SkippedRow("corpus.jsonl", row, "not JSON"))
    monitor.leave_out("gpt2-code", [f"0/a:{row}:0" for row in range(500)], "it died")
    picture = monitor.snapshot()
    assert (picture.num_skipped, picture.num_left_out) == (1000, 500)
    assert [row.row for row in picture.skipped] == list(range(1000, 900, -1))
    assert len(picture.left_out) == 100
    assert [row.row for row in monitor.snapshot(most_rows=None).skipped] == list(range(1, 1001))


def test_waiting_is_what_lies_between_two_pieces_of_work(clock):
    handle = Handle()
    meter = Meter("gpt2-code", handle)
    meter.record(8, 800, busy_seconds=1.0)
    clock.now += 3.0
    meter.record(8, 800, busy_seconds=2.5)
    (stage,) = handle.monitor.snapshot().stages
    assert (stage.passages, stage.tokens) == (16, 1600)
    assert stage.busy_seconds == pytest.approx(3.5)
    assert stage.wait_seconds == pytest.approx(0.5), "nothing is known of the time before the first piece"


def test_a_meter_holds_nothing_back():
    handle = Handle()
    meter = Meter("gpt2-code", handle)
    for call in range(1, 4):
        meter.record(1, 10, busy_seconds=0.0)
        assert handle.monitor.snapshot().stages[0].tokens == 10 * call
    assert len(handle.sent) == 3


def test_every_process_of_a_stage_is_a_replica_outside_of_ray():
    handle = Handle()
    for meter in (Meter("gpt2-code", handle), Meter("gpt2-code", handle)):
        for _ in range(3):
            meter.record(1, 10, busy_seconds=0.0)
    (stage,) = handle.monitor.snapshot().stages
    assert (stage.replicas, stage.starts, stage.tokens) == (2, 2, 60)


def test_a_pickled_meter_starts_from_nothing():
    meter = Meter("gpt2-code", "handle", 3)
    copy = pickle.loads(pickle.dumps(meter))
    assert copy.__reduce__() == (Meter, ("gpt2-code", "handle", 3, "training.max_restarts"))


def test_outside_a_run_nothing_is_counted():
    NoMeter().record(1, 10, 0.0)
    NoMeter().skip(SkippedRow("corpus.jsonl", 3, "not JSON"))
    assert not vars(NoMeter())


def test_skipped_rows_go_to_the_monitor():
    handle = Handle()
    Meter("corpus", handle).skip(SkippedRow("corpus.jsonl", 3, "not JSON"))
    assert handle.monitor.snapshot().skipped == (SkippedRow("corpus.jsonl", 3, "not JSON"),)


def test_the_monitor_knows_nothing_of_ray():
    code = "import sys, actors.monitor; print(sorted({'ray', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_process_that_takes_the_place_of_a_dead_one_is_counted():
    monitor = RunMonitor()

    def deaths(*started, **further):
        return monitor.start(*started, **further).count

    assert [deaths("actor 1", "a", "gpt2-code"), deaths("actor 2", "b", "gpt2-code")] == [0, 0]
    assert deaths("actor 1", "c", "gpt2-code") == 1
    assert deaths("actor 1", "c", "gpt2-code") == 1, "reported twice, counted once"
    assert deaths("actor 9", "d", "llama-docs") == 0
    assert deaths("actor 1", "e", "gpt2-code", deaths=4) == 4, "two have died before they could report"
    monitor.report("actor 1", "c", totals(3, 30, 1.0, 0.0))
    (stage,) = [stage for stage in monitor.snapshot().stages if stage.name == "gpt2-code"]
    assert (stage.replicas, stage.starts, stage.passages) == (2, 6, 3)


def test_replicas_that_die_with_their_node_are_not_counted():
    """Eight replicas of one node die together, against ``max_restarts: 3``; then one of them dies by itself."""
    monitor = RunMonitor()
    for replica in range(8):
        monitor.start(f"actor {replica}", f"a{replica}", "gpt2-code", node="lost")
    counts = [
        monitor.start(f"actor {replica}", f"b{replica}", "gpt2-code", 1, "other", ["lost"]).count
        for replica in range(8)
    ]
    assert counts == [0] * 8
    assert monitor.start("actor 3", "c3", "gpt2-code", 2, "other", ["lost"]).count == 1
    (stage,) = monitor.snapshot().stages
    assert (stage.replicas, stage.starts) == (8, 17), "the report shows all of them"


def test_deaths_before_a_checkpoint_count_no_more():
    monitor = RunMonitor()
    for process, expected in (("a", 0), ("b", 1), ("c", 2)):
        assert monitor.start("actor", process, "corpus").count == expected
    monitor.commit(2)
    assert monitor.start("actor", "d", "corpus").count == 1
    assert monitor.start("another", "e", "corpus").count == 0


def test_a_picture_lists_the_latest_checkpoints_and_counts_steps_that_were_not_finite(monkeypatch):
    monkeypatch.setattr("actors.monitor.time.time", iter(range(1000, 2000)).__next__)
    monitor = RunMonitor()
    assert (monitor.snapshot().checkpoints, monitor.snapshot().num_not_finite) == ((), 0)
    for step in range(1, 31):
        monitor.commit(step)
    monitor.refuse_step()
    picture = monitor.snapshot()
    assert (len(picture.checkpoints), picture.checkpoints[-1]) == (20, Committed(30, 1029))
    assert picture.num_not_finite == 1


def test_the_refusal_says_what_ended_the_replicas_and_how_often_memory_was_short():
    monitor = RunMonitor()
    monitor.end("gpt2", "RuntimeError: Executor failed.", out_of_memory=False)
    for _ in range(2):
        monitor.end("gpt2", "OutOfMemoryError: CUDA out of memory; lower its kv_cache_bytes", out_of_memory=True)

    class Restarted(Meter):
        def start(self) -> Deaths:
            return monitor.start("actor", "d", "gpt2", deaths=3)

    with pytest.raises(FusionError, match=r"last reason: .*; lower its kv_cache_bytes; memory was short 2 times"):
        Restarted("gpt2", Handle(), max_restarts=2).start_or_refuse()


def test_passages_without_a_source_are_listed_once():
    monitor = RunMonitor()
    monitor.leave_out("gpt2-code", ["0/a:1:0", "0/a:1:1"], "it cannot be loaded")
    monitor.leave_out("gpt2-code", ["0/a:1:1"], "it cannot be loaded")
    monitor.leave_out("llama-docs", ["0/a:1:1"], "it died")
    found = monitor.snapshot().left_out
    assert [(row.source, row.passage_id) for row in found] == [
        ("gpt2-code", "0/a:1:0"),
        ("gpt2-code", "0/a:1:1"),
        ("llama-docs", "0/a:1:1"),
    ]


def test_the_looks_at_tokens_are_few_and_travel_once():
    monitor = RunMonitor()
    for step in range(1, 41):
        monitor.inspect([{"step": step + 1, "sample": step, "passage": name} for name in ("a", "b")])
        monitor.inspect([{"step": step + 1, "sample": step, "passage": "a"}])
    samples = [look["sample"] for look in monitor.snapshot().looks]
    assert samples[:4] == [1, 1, 4, 4] and samples[-1] == 40 and len(samples) == 2 * 11
    mark = monitor.snapshot().mark
    assert monitor.snapshot(mark).looks == ()
    monitor.inspect([{"step": 45, "sample": 44, "passage": "a"}])
    assert [look["step"] for look in monitor.snapshot(mark).looks] == [45]
