"""The hand-over to Ray Train: what is tried again, how Ctrl-C ends it, and how often the scheduler looks."""

import signal
import sys
import time

import pytest
from ray.exceptions import RayActorError

from engine.errors import RecordError, TrainingError
from pipelines.stream.training import MOST_REST_SECONDS, SCHEDULER_SHARE, _interruptible, _StopAtFusionError, _Unhurried

pytestmark = pytest.mark.timeout(60)


def inside(error: Exception) -> Exception:
    """An error as a stage's arrives in a worker: inside another."""
    outer = RuntimeError("task failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("error", [TrainingError("step 3: not finite"), inside(RecordError("a.jsonl, row 2"))])
def test_an_error_that_was_raised_on_purpose_ends_the_run(error):
    with pytest.raises((TrainingError, RecordError), match=r"step 3|row 2"):
        _StopAtFusionError().after_exception(None, {0: RuntimeError("connection reset by peer"), 1: error})


def test_a_worker_that_has_died_is_none_of_these():
    died = {0: RuntimeError("connection reset by peer"), 1: RayActorError()}
    assert _StopAtFusionError().after_exception(None, died) is None, "Ray Train goes on and starts the workers again"


def test_ctrl_c_is_an_interrupt_and_python_has_its_handler_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _interruptible():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_scheduler_takes_a_small_share_of_a_core_and_never_rests_for_long(monkeypatch):
    used_after_each_look, rests = iter([0.001, 0.003, 0.503]), []
    monkeypatch.setattr(time, "thread_time", lambda: next(used_after_each_look))
    monkeypatch.setattr(time, "sleep", rests.append)
    unhurried = _Unhurried()
    for _ in range(3):
        unhurried.on_execution_step(None)
    shares = [look / (look + rest) for look, rest in zip([0.001, 0.002], rests, strict=False)]
    assert shares == pytest.approx([SCHEDULER_SHARE, SCHEDULER_SHARE])
    assert rests[2] == MOST_REST_SECONDS
