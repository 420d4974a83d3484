"""A busy cluster: the run says what is missing, and goes on when the other work has ended."""

import time

import pytest
import ray

from pipelines.cluster.waiting import missing_resources, wait_for_room

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("shared_ray")]

NEEDED = 4.0


@ray.remote
class OtherWork:
    """Holds what it reserves."""

    def is_ready(self) -> bool:
        return True


def test_a_run_waits_until_the_others_work_has_ended():
    held = ray.cluster_resources()["CPU"] - NEEDED / 2
    others = OtherWork.options(num_cpus=held).remote()
    ray.get(others.is_ready.remote())
    while not missing_resources(NEEDED, 0.0):  # Ray says a little later what is free
        time.sleep(0.1)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        ray.kill(others)

    wait_for_room(NEEDED, 0.0, minutes=1.0, places=list, say=say)
    assert len(said) == 1
    assert f"the run reserves {NEEDED:g} logical CPUs at once, {NEEDED / 2:g} of " in said[0]
    assert "no other job is at work" in said[0]
