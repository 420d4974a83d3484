"""A watch shows a run to all observers, from the first picture to the last, and never stops the run."""

import threading
import time

import pytest

from engine.history.result import Progress
from engine.reporting.watch import Watch
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(30)


class Recorder:
    """Keeps the pictures it sees; fails at the first ones on request."""

    product = "the record"

    def __init__(self, failures=0):
        self.pictures, self.is_closed, self._failures = [], False, failures
        self.has_seen = threading.Event()

    def see(self, picture, now):
        self.has_seen.set()
        if self._failures:
            self._failures -= 1
            raise OSError("the disk is full")
        self.pictures.append(picture)

    def close(self):
        self.is_closed = True


def test_observers_see_the_start_and_the_end_and_every_step_once():
    asked, said, recorder = [], [], Recorder()

    def snapshot(mark):
        asked.append(mark)
        return Progress(steps=(step_record(10),) if len(asked) == 1 else (), mark=7)

    with Watch(snapshot, [recorder], said.append):
        assert recorder.has_seen.wait(10)
    assert asked[:2] == [0, 7], "each time only the steps that are new"
    assert sum(len(picture.steps) for picture in recorder.pictures) == 1
    assert len(recorder.pictures) == len(asked) >= 2
    assert recorder.is_closed
    assert said == []


def test_an_observer_that_fails_is_reported_once_and_sees_the_next_picture(monkeypatch):
    monkeypatch.setattr("engine.reporting.watch.SECONDS_BETWEEN_PICTURES", 0.01)
    said, failing, other = [], Recorder(failures=3), Recorder()
    with Watch(lambda _: Progress(), [failing, other], said.append):
        while not failing.pictures:
            time.sleep(0.01)
    (line,) = said
    assert line == "the record could not be updated: OSError: the disk is full; it is tried again"
    assert failing.is_closed
    assert len(other.pictures) == len(failing.pictures) + 3


def test_a_picture_that_cannot_be_taken_does_not_stop_the_run():
    said, recorder = [], Recorder()

    def snapshot(_):
        raise ConnectionError("the cluster is gone")

    with Watch(snapshot, [recorder], said.append):
        finished = True
    assert finished
    (line,) = said
    assert line == "the progress of the run cannot be seen: ConnectionError; it is tried again"
    assert recorder.is_closed


def test_a_cluster_that_answers_again_is_watched_on(monkeypatch):
    monkeypatch.setattr("engine.reporting.watch.SECONDS_BETWEEN_PICTURES", 0.01)
    failures, said, recorder = iter([ConnectionError()] * 3), [], Recorder()

    def snapshot(_):
        if error := next(failures, None):
            raise error
        return Progress()

    with Watch(snapshot, [recorder], said.append):
        assert recorder.has_seen.wait(10)
    assert len(said) == 1


def test_an_error_of_the_run_passes_through():
    recorder = Recorder()
    with pytest.raises(ValueError, match="of the run"), Watch(lambda _: Progress(), [recorder], print):
        raise ValueError("of the run")
    assert recorder.is_closed


def test_a_cluster_that_no_longer_answers_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr("engine.reporting.watch.MOST_SECONDS_TO_END", 0.1)
    answer, recorder = threading.Event(), Recorder()

    def snapshot(_):
        answer.wait(20)
        return Progress()

    began = time.monotonic()
    with Watch(snapshot, [recorder], print) as watch:
        pass
    assert time.monotonic() - began < 10
    assert recorder.is_closed
    answer.set()
    watch._watcher.join()
    assert recorder.pictures == [], "seen after it was closed"


class Slow(Recorder):
    """Works on its first picture until it is let go, and notes what is done with it."""

    def __init__(self):
        super().__init__()
        self.calls, self.may_go_on = [], threading.Event()

    def see(self, picture, now):
        self.has_seen.set()
        self.may_go_on.wait(20)
        self.calls.append("seen")

    def close(self):
        self.calls.append("closed")


def test_an_observer_that_is_slow_is_closed_when_it_is_done_and_holds_up_nothing(monkeypatch):
    monkeypatch.setattr("engine.reporting.watch.MOST_SECONDS_TO_END", 0.1)
    said, slow, other = [], Slow(), Recorder()
    began = time.monotonic()
    with Watch(lambda _: Progress(), [slow, other], said.append) as watch:
        assert slow.has_seen.wait(10)
    assert time.monotonic() - began < 10
    assert (slow.calls, other.is_closed) == ([], True)
    slow.may_go_on.set()
    watch._watcher.join(10)
    assert slow.calls == ["seen", "closed"]
    assert other.pictures == []
    assert said == []


def test_observers_are_closed_when_the_wait_for_the_end_is_interrupted(monkeypatch):
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), Watch(lambda _: Progress(), [recorder], print) as watch:
        join = watch._watcher.join

        def interrupted(timeout):
            raise KeyboardInterrupt

        monkeypatch.setattr(watch._watcher, "join", interrupted)
    assert recorder.is_closed
    join(10)


def test_no_observer_is_seen_after_it_was_closed(monkeypatch):
    """Many short watches, each left in the middle of what it does."""
    monkeypatch.setattr("engine.reporting.watch.SECONDS_BETWEEN_PICTURES", 0.0)
    monkeypatch.setattr("engine.reporting.watch.MOST_SECONDS_TO_END", 0.0)
    late = []

    class Strict(Recorder):
        def see(self, picture, now):
            assert not self.is_closed or late.append(now)
            time.sleep(0.0005)
            assert not self.is_closed or late.append(now)

        def close(self):
            assert not self.is_closed or late.append("twice")
            super().close()

    watches = []
    for _ in range(100):
        observers = [Strict(), Strict()]
        with Watch(lambda _: Progress(), observers, print) as watch:
            time.sleep(0.001)
        watches.append((watch, observers))
    for watch, observers in watches:
        watch._watcher.join(10)
        assert all(observer.is_closed for observer in observers)
    assert late == []
