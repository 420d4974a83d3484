"""What training tries again, and how often."""

from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, RunningState
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from engine.errors import RecordError, TrainingError
from pipelines.stream import restart_limit
from pipelines.stream.restart_limit import RestartLimit

pytestmark = pytest.mark.timeout(60)


def dead_worker(**how):
    """A worker's death as Ray Train reports it: an error of its own around the actor's."""
    health = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError(error_msg="it died", **how))
    return WorkerGroupError("rank 1", {0: RuntimeError("connection reset by peer"), 1: health})


@pytest.fixture
def nodes(monkeypatch):
    """Ray's nodes, all alive."""
    found = [{"NodeID": name, "Alive": True} for name in "abc"]
    monkeypatch.setattr(restart_limit.ray, "nodes", lambda: found)
    monkeypatch.setattr(restart_limit, "SECONDS_UNTIL_DEAD", 0.0)
    monkeypatch.setattr(restart_limit.time, "sleep", lambda seconds: None)
    return found


def limit_of(folder, max_restarts, nodes="ab"):
    limit = RestartLimit(str(folder), max_restarts)
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in nodes]
    limit.after_worker_group_start(SimpleNamespace(get_workers=lambda: workers))
    return limit


def inside(error: Exception) -> Exception:
    """An error as a stage's arrives in a worker: inside another."""
    outer = RuntimeError("task failed")
    outer.__cause__ = error
    return WorkerGroupError("rank 0", {0: outer})


def commit(output, step):
    folder = output / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")


@pytest.mark.parametrize("error", [TrainingError("step 3: not finite"), RecordError("a.jsonl, row 2")])
def test_an_error_that_was_raised_on_purpose_ends_the_run(tmp_path, nodes, error):
    with pytest.raises((TrainingError, RecordError), match=r"step 3|row 2"):
        limit_of(tmp_path, 3).count(inside(error))


def test_failures_count_from_checkpoint_to_checkpoint(tmp_path, nodes):
    limit = limit_of(tmp_path, 2)
    for step in (0, 10, 20):
        if step:
            commit(tmp_path, step)
        for _ in range(2):
            limit.after_controller_state_update(RunningState(), RestartingState(dead_worker()))
    sentence = r"failed 3 times since .* step-00000020, .*max_restarts is 2; the last error: RayActorError: it died"
    with pytest.raises(TrainingError, match=sentence):
        limit.after_controller_state_update(RunningState(), RestartingState(dead_worker()))


def test_a_worker_that_dies_while_it_starts_counts_and_a_wait_for_nodes_does_not(tmp_path, nodes):
    limit = limit_of(tmp_path, 1)
    failed, waits = (
        ReschedulingState(ControllerError(error))
        for error in (WorkerGroupStartupFailedError("no driver"), WorkerGroupStartupTimeoutError(2))
    )
    limit.after_controller_state_update(RunningState(), failed)
    for _ in range(5):
        limit.after_controller_state_update(RunningState(), waits)
    with pytest.raises(TrainingError, match=r"failed 2 times since the start, .*FailedError: no driver"):
        limit.after_controller_state_update(RunningState(), failed)


def test_a_failure_with_a_lost_node_of_the_workers_does_not_count(tmp_path, nodes):
    limit = limit_of(tmp_path, 0)
    nodes[2]["Alive"] = False  # a node without a worker
    with pytest.raises(TrainingError, match="failed once"):
        limit.count(dead_worker())
    limit = limit_of(tmp_path, 0)
    nodes[1]["Alive"] = False
    limit.count(dead_worker())
    limit.count(dead_worker(preempted=True))


def test_a_node_that_ray_has_not_missed_yet_is_waited_for(tmp_path, nodes, monkeypatch):
    monkeypatch.setattr(restart_limit, "SECONDS_UNTIL_DEAD", 30.0)
    monkeypatch.setattr(restart_limit.time, "sleep", lambda seconds: nodes[0].update(Alive=False))
    limit_of(tmp_path, 0).count(dead_worker())


def test_a_store_that_is_away_keeps_the_count(tmp_path, nodes, monkeypatch):
    commit(tmp_path, 10)
    limit = limit_of(tmp_path, 1)
    limit.count(dead_worker())
    monkeypatch.setattr(restart_limit, "latest", lambda folder: 1 / 0)
    with pytest.raises(TrainingError, match=r"failed 2 times since the checkpoint step-00000010"):
        limit.count(dead_worker())
