"""What Ray Train's controller tries again, and how often."""

import pytest
from ray.exceptions import RayActorError

from engine.errors import RecordError, TrainingError
from pipelines.stream import workers
from pipelines.stream.workers import RestartLimit

pytestmark = pytest.mark.timeout(60)

DIED = {0: RuntimeError("connection reset by peer"), 1: RayActorError()}


@pytest.fixture
def nodes(monkeypatch):
    """Ray's nodes, all alive."""
    found = [{"NodeID": name, "Alive": True} for name in "abc"]
    monkeypatch.setattr(workers.ray, "nodes", lambda: found)
    return found


def inside(error: Exception) -> Exception:
    """An error as a stage's arrives in a worker: inside another."""
    outer = RuntimeError("task failed")
    outer.__cause__ = error
    return outer


def commit(output, step):
    folder = output / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")


@pytest.mark.parametrize("error", [TrainingError("step 3: not finite"), inside(RecordError("a.jsonl, row 2"))])
def test_an_error_that_was_raised_on_purpose_ends_the_run(tmp_path, nodes, error):
    with pytest.raises((TrainingError, RecordError), match=r"step 3|row 2"):
        RestartLimit(str(tmp_path), 3).after_exception(None, {0: RuntimeError("connection reset by peer"), 1: error})


def test_failures_count_from_checkpoint_to_checkpoint(tmp_path, nodes):
    limit = RestartLimit(str(tmp_path), 2)
    for step in (0, 10, 20):
        if step:
            commit(tmp_path, step)
        for _ in range(2):
            limit.after_exception(None, DIED)
    with pytest.raises(TrainingError, match=r"3 times since the checkpoint .*20, .*max_restarts is 2; .*reset by peer"):
        limit.after_exception(None, DIED)


def test_without_a_checkpoint_they_count_from_the_start(tmp_path, nodes):
    with pytest.raises(
        TrainingError, match=r"workers have failed 1 times since the start, training\.max_restarts is 0"
    ):
        RestartLimit(str(tmp_path), 0).after_exception(None, DIED)


def test_a_failure_with_a_lost_node_does_not_count(tmp_path, nodes):
    nodes[0]["Alive"] = False  # before the run
    limit = RestartLimit(str(tmp_path), 0)
    nodes[1]["Alive"] = False
    limit.after_exception(None, DIED)
    limit.after_exception(None, {0: RayActorError(preempted=True)})
    with pytest.raises(TrainingError, match="failed 1 times"):
        limit.after_exception(None, DIED)
