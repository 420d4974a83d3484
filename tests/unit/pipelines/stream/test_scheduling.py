"""How often Ray Data's scheduler looks at its tasks."""

import time

import pytest

from pipelines.stream.scheduling import MOST_REST_SECONDS, SCHEDULER_SHARE, Unhurried

pytestmark = pytest.mark.timeout(60)


def test_the_scheduler_takes_a_small_share_of_a_core_and_never_rests_for_long(monkeypatch):
    used_after_each_look, rests = iter([0.001, 0.003, 0.503]), []
    monkeypatch.setattr(time, "thread_time", lambda: next(used_after_each_look))
    monkeypatch.setattr(time, "sleep", rests.append)
    unhurried = Unhurried()
    for _ in range(3):
        unhurried.on_execution_step(None)
    shares = [look / (look + rest) for look, rest in zip([0.001, 0.002], rests, strict=False)]
    assert shares == pytest.approx([SCHEDULER_SHARE, SCHEDULER_SHARE])
    assert rests[2] == MOST_REST_SECONDS
