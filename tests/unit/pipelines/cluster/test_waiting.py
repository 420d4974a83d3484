"""Waiting for a cluster: what is said meanwhile, when it ends, and what is missing after it."""

import pytest

from engine.errors import PreflightError
from pipelines.cluster import waiting
from pipelines.cluster.needs import Need
from pipelines.cluster.placement import Room
from pipelines.cluster.waiting import look_ahead, wait_for_room

pytestmark = pytest.mark.timeout(30)


def room(cpus: float, gpus: float = 0.0, name: str = "a") -> Room:
    return Room(name, {}, cpus, gpus, devices=4)


def workers(count: int, gpus: float = 0.0, **labels: str) -> list[Need]:
    return [Need("training", "training worker", 1.0, gpus, count, labels, "cluster.training_labels")]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose rooms, and what is free, a test changes; every look takes a second of a clock without sleep."""

    class Cluster:
        total = free = (room(8.0, 1.0),)
        now = 0.0

        def sleep(self, seconds):
            self.now += seconds

    found = Cluster()
    monkeypatch.setattr(waiting, "rooms_now", lambda: (found.total, found.free))
    monkeypatch.setattr(waiting, "_holders", lambda: "other jobs: python other.py (from 10.0.0.2)")
    monkeypatch.setattr(waiting.time, "monotonic", lambda: found.now)
    monkeypatch.setattr(waiting.time, "sleep", found.sleep)
    return found


def test_a_cluster_that_is_starting_is_waited_for_with_a_line_every_half_minute(cluster):
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            cluster.total = cluster.free = (room(16.0, 4.0),)

    wait_for_room(workers(4, 1.0), 10.0, say)
    assert cluster.now == 60.0 + waiting.LOOK_SECONDS
    assert said[1] == (
        "waiting for the cluster, 0.5 of at most 10 minutes: cluster: the run reserves 4 GPUs at once, the "
        "cluster has 1"
    )


def test_a_busy_cluster_is_refused_in_the_end_and_the_holders_are_named(cluster):
    cluster.free = (room(2.0),)
    with pytest.raises(PreflightError, match=r"8 logical CPUs at once, 2 of 8 are free; other jobs: python other\.py"):
        wait_for_room(workers(8), 1.0, lambda line: None)
    assert cluster.now == 60.0


def test_free_places_are_counted_node_by_node(cluster):
    cluster.total = (room(8.0, 4.0, "a"), room(8.0, 4.0, "b"))
    cluster.free = (room(8.0, 3.0, "a"), room(8.0, 3.0, "b"))
    with pytest.raises(PreflightError, match=r"need 1 .* and 2 GPUs each on one node, 2 of them fit now \(a 1, b 1\)"):
        wait_for_room(workers(3, 2.0), 0.0, lambda line: None)


def test_labels_are_waited_for_too_and_a_ray_of_its_own_not_at_all(cluster):
    with pytest.raises(PreflightError, match=r"training_labels: no node of the cluster has pool: training"):
        wait_for_room(workers(1, pool="training"), 0.0, lambda line: None)
    assert cluster.now == 0.0


def test_a_node_that_is_needed_later_may_come_later_but_not_to_a_ray_of_its_own(cluster):
    cluster.free = (room(0.0),)
    said: list[str] = []
    look_ahead(workers(1, 1.0), False, said.append)
    assert said == [], "the processes of now hold the node"
    look_ahead(workers(1, pool="evaluation"), True, said.append)
    assert said == [
        "needed when training has ended, and not there yet: cluster.training_labels: no node of the cluster has pool: "
        "evaluation; start nodes with these labels, or select others"
    ]
    with pytest.raises(PreflightError, match="no node of the cluster has pool: evaluation"):
        look_ahead(workers(1, pool="evaluation"), False, said.append)


def test_a_run_that_may_fit_all_the_same_is_not_refused(cluster, monkeypatch):
    needs, said = workers(3), []
    monkeypatch.setattr(waiting, "first_fit", lambda needs, rooms: [(needs[0], 2)])
    cluster.free = (room(7.0, 1.0),)
    wait_for_room(needs, 1.0, said.append)
    assert cluster.now == 60.0
    line = (
        "starting all the same, for in another order all may fit: cluster: placed one after the other, these find no "
        "node: 2 of 3 (training worker)"
    )
    assert said[-1].startswith(f"{line}; other jobs")
    cluster.free, cluster.now = cluster.total, 0.0
    wait_for_room(needs, 1.0, said.append)
    assert cluster.now == 0.0, "nothing is held, so nothing to wait for"
    assert said[-1] == line


def test_parts_of_a_gpu_that_add_up_to_a_little_more_than_one_are_no_fault(cluster):
    parts = [Need("source_models", "replica", 1.0, part) for part in (0.1, 0.2, 0.7 + 1e-15)]
    wait_for_room(parts, 0.0, lambda line: None)
