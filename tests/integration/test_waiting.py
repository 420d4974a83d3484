"""A busy cluster: the run says what is missing, and goes on when the other work has ended; an evaluation gives up."""

import time

import pytest
import ray

from engine.errors import FusionError
from pipelines.cluster.needs import Need
from pipelines.cluster.waiting import missing_room, rooms_now, wait_for_room
from pipelines.evaluation.answers import answers

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("shared_ray")]

NEEDED = 4.0

NEEDS = [Need("test", "process", NEEDED)]


@ray.remote
class OtherWork:
    """Holds what it reserves."""

    def is_ready(self) -> bool:
        return True


def test_a_run_waits_until_the_others_work_has_ended():
    held = ray.cluster_resources()["CPU"] - NEEDED / 2
    others = OtherWork.options(num_cpus=held).remote()
    ray.get(others.is_ready.remote())
    while not missing_room(NEEDS, *rooms_now()):  # Ray says a little later what is free
        time.sleep(0.1)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        ray.kill(others)

    wait_for_room(NEEDS, 1.0, say)
    assert len(said) == 1
    assert f"the run reserves {NEEDED:g} logical CPUs at once, {NEEDED / 2:g} of " in said[0]
    assert "no other job is at work" in said[0]


def test_an_evaluation_without_a_node_is_given_up_and_its_tasks_end():
    model = Need("evaluation", "evaluated model", 1.0)
    assert answers(model, pow, {"a": (2, 3), "b": (3, 2)}, 1.0, print) == {"a": 8, "b": 9}
    elsewhere = Need("evaluation", "evaluated model", 1.0, labels={"pool": "none"}, labels_where="evaluation.labels")
    with pytest.raises(
        FusionError, match=r"a: waits for a node; evaluation\.labels: no node of the cluster has pool: n"
    ):
        answers(elsewhere, pow, {"a": (2, 3)}, 0.05, print)
