"""Waiting for a cluster: what is said meanwhile, when it ends, and what is missing after it."""

import pytest

from engine.errors import Fault, PreflightError
from pipelines.cluster import waiting
from pipelines.cluster.waiting import missing_resources, wait_for_room

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose resources, and jobs, a test changes; every look takes a second of a clock without sleep."""

    class Cluster:
        total = {"CPU": 8.0, "GPU": 1.0}  # noqa: RUF012
        free = {"CPU": 8.0, "GPU": 1.0}  # noqa: RUF012
        now = 0.0

        def sleep(self, seconds):
            self.now += seconds

    found = Cluster()
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: found.total)
    monkeypatch.setattr(waiting.ray, "available_resources", lambda: found.free)
    monkeypatch.setattr(waiting, "_holders", lambda: "other jobs: python other.py (from 10.0.0.2)")
    monkeypatch.setattr(waiting.time, "monotonic", lambda: found.now)
    monkeypatch.setattr(waiting.time, "sleep", found.sleep)
    return found


def test_a_cluster_that_is_starting_is_waited_for_with_a_line_every_half_minute(cluster):
    said: list[str] = []

    def places() -> list[Fault]:
        if cluster.now >= 70.0:
            cluster.total = cluster.free = {"CPU": 16.0, "GPU": 4.0}
        return []

    wait_for_room(8.0, 4.0, minutes=10.0, places=places, say=said.append)
    assert cluster.now == 70.0 + waiting.LOOK_SECONDS
    assert len(said) == 3
    assert said[1] == (
        "waiting for the cluster, 0.5 of at most 10 minutes: cluster: the run reserves 4 logical GPUs at once, "
        "the cluster has 1"
    )


def test_a_busy_cluster_is_refused_in_the_end_and_the_holders_are_named(cluster):
    cluster.free = {"CPU": 2.0}
    with pytest.raises(PreflightError, match=r"8 logical CPUs at once, 2 of 8 are free; other jobs: python other\.py"):
        wait_for_room(8.0, 0.0, minutes=1.0, places=list, say=lambda line: None)
    assert cluster.now == 60.0


def test_places_are_waited_for_too_and_a_ray_of_its_own_not_at_all(cluster):
    fault = Fault("cluster.training_labels", "no node of the cluster has pool: training")
    with pytest.raises(PreflightError, match="no node of the cluster has pool"):
        wait_for_room(1.0, 0.0, minutes=0.0, places=lambda: [fault], say=lambda line: None)
    assert cluster.now == 0.0


def test_parts_of_a_gpu_that_add_up_to_a_little_more_than_one_are_no_fault(cluster):
    assert missing_resources(8.0, 0.1 + 0.2 + 0.7 + 1e-15) == []
