"""What is said of evaluation tasks that stand still, and when they are given up."""

import time
from types import SimpleNamespace

import pytest

from engine.errors import Fault, FusionError
from pipelines.cluster.needs import Need
from pipelines.evaluation import answers
from pipelines.evaluation.answers import SIGN_LASTS_SECONDS, SIGN_SECONDS, Signs, at_work

pytestmark = pytest.mark.timeout(30)

NO_NODE = Fault("evaluation.labels", "no node of the cluster has pool: evaluation")


class Tasks:
    """Tasks that are looked at once a second of a clock without sleep, and what is said of them."""

    def __init__(self, minutes: float, monkeypatch):
        self.now, self.said = 0.0, []
        monkeypatch.setattr(answers.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(answers, "rooms_now", lambda: ((), ()))
        monkeypatch.setattr(answers, "missing_room", lambda needs, rooms, free: [NO_NODE])
        self._watch = answers._Watch(Need("evaluation", "evaluated model", 1.0), "ab", minutes, self.said.append)

    def look(self, seconds: int, running: str, **used: float) -> None:
        """Look so long; ``used``: the share of a core that each task that has begun uses."""
        for _ in range(seconds):
            self.now += 1.0
            self._watch.see(list(map("ab".index, running)), {"ab".index(task): used[task] * self.now for task in used})


def test_a_task_without_a_node_is_named_every_half_minute_and_given_up_in_the_end(monkeypatch):
    tasks = Tasks(2.0, monkeypatch)
    with pytest.raises(
        FusionError, match=r"nothing of it has moved for 2 minutes \(cluster\.stall_minutes\): a, b: wa"
    ):
        tasks.look(1000, "ab")
    assert tasks.now == 121.0
    assert tasks.said == [
        f"the evaluation stands still, {minutes} of at most 2 minutes: a, b: waits for a node; evaluation.labels: no "
        "node of the cluster has pool: evaluation"
        for minutes in (0.5, 1.0, 1.5)
    ]


def test_while_one_task_works_the_others_may_wait_as_long_as_it_takes(monkeypatch):
    tasks = Tasks(2.0, monkeypatch)
    tasks.look(10_000, "ab", a=0.5)
    assert tasks.said == []
    tasks.look(100, "b", a=0.5)  # its answer is there, and the process does something else
    tasks.look(10_000, "b", b=0.1)
    assert len(tasks.said) == 3, "b waits alone for 100 seconds"


def test_a_task_that_uses_no_processor_time_stands_still(monkeypatch):
    tasks = Tasks(2.0, monkeypatch)
    tasks.look(100, "a", a=1.0)
    with pytest.raises(FusionError, match="a: has begun and uses no processor time; run `engine evaluate` when"):
        tasks.look(1000, "a", a=0.005)
    assert tasks.now == pytest.approx(220.0, abs=2.0)


def test_a_task_that_begins_once_more_on_another_node_moves(monkeypatch):
    tasks = Tasks(2.0, monkeypatch)
    tasks.look(1000, "a", a=1.0)
    tasks.now = 0.0
    tasks._watch._moved = 0.0
    tasks.look(1000, "a", a=0.5)
    assert tasks.said == []


def test_a_task_whose_node_was_lost_waits_for_another(monkeypatch):
    """Its last sign of life is no longer one."""
    signs, tasks = Signs(), Tasks(2.0, monkeypatch)
    signs.hear(0, 1.0)
    assert signs.seen() == {0: 1.0}
    tasks.look(1, "a", a=1.0)
    tasks.now = SIGN_LASTS_SECONDS
    assert signs.seen() == {}
    tasks.look(30, "a")
    assert tasks.said[0].endswith(
        ": a: waits for a node; evaluation.labels: no node of the cluster has pool: evaluation"
    )


def test_signs_of_life_come_while_the_work_is_done():
    signs = Signs()
    hears = SimpleNamespace(hear=SimpleNamespace(remote=signs.hear))

    def work(text: str) -> str:
        while 7 not in signs.seen():
            time.sleep(0.01)
        return text

    began = time.monotonic()
    assert at_work(hears, 7, work, "an answer") == "an answer"
    assert time.monotonic() - began < SIGN_SECONDS
    assert signs.seen()[7] > 0.0
