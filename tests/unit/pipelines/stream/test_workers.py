"""What Ray Train's controller tries again, and what it does not."""

import pytest
from ray.exceptions import RayActorError

from engine.errors import RecordError, TrainingError
from pipelines.stream.workers import StopAtFusionError

pytestmark = pytest.mark.timeout(60)


def inside(error: Exception) -> Exception:
    """An error as a stage's arrives in a worker: inside another."""
    outer = RuntimeError("task failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("error", [TrainingError("step 3: not finite"), inside(RecordError("a.jsonl, row 2"))])
def test_an_error_that_was_raised_on_purpose_ends_the_run(error):
    with pytest.raises((TrainingError, RecordError), match=r"step 3|row 2"):
        StopAtFusionError().after_exception(None, {0: RuntimeError("connection reset by peer"), 1: error})


def test_a_worker_that_has_died_is_none_of_these():
    died = {0: RuntimeError("connection reset by peer"), 1: RayActorError()}
    assert StopAtFusionError().after_exception(None, died) is None, "Ray Train goes on and starts the workers again"
