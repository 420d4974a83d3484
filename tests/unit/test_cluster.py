"""What a local Ray inherits from the process that starts it."""

import os
import subprocess
import sys

import pytest

from engine import cluster

ASK = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has it")
def test_processes_of_a_local_ray_are_scheduled_for_throughput_and_their_driver_is_not():
    before = os.sched_getscheduler(0)
    with cluster._children_for_throughput():
        inside = int(subprocess.run(ASK, capture_output=True, text=True, check=True, timeout=20).stdout)
    assert inside == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before


def test_a_sandbox_that_forbids_it_is_no_obstacle(monkeypatch):
    def forbid(*_):
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", forbid, raising=False)
    with cluster._children_for_throughput():
        reached = True
    assert reached
