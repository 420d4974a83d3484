"""What the processes of a local Ray inherit from the one that starts it."""

import ctypes
import errno
import os
import platform
import subprocess
import sys

import pytest

from pipelines.cluster import linux_scheduling as scheduling

ASK = """
import ctypes, os
from pipelines.cluster.linux_scheduling import _Attributes
seen = _Attributes()
failed = ctypes.CDLL(None).syscall({number}, 0, ctypes.byref(seen), ctypes.sizeof(seen), 0)
print(os.sched_getscheduler(0), 0 if failed else seen.runtime)
"""

#: Linux's number of ``sched_getattr``.
GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}

linux = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has it")


def child() -> tuple[int, int]:
    """Policy, and nanoseconds of a turn, of a process that is started now."""
    ask = [sys.executable, "-c", ASK.format(number=GET_ATTRIBUTES.get(platform.machine(), -1))]
    policy, turn = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    return int(policy), int(turn)


@linux
def test_processes_of_a_local_ray_are_scheduled_for_throughput_and_their_driver_is_not():
    before = os.sched_getscheduler(0)
    with scheduling.children_for_throughput():
        policy, turn = child()
    assert policy == os.SCHED_BATCH
    # an older Linux, or another machine, has no length of a turn to tell
    assert turn in (0, scheduling._TURN_MILLISECONDS * 1_000_000)
    assert os.sched_getscheduler(0) == before
    assert child()[0] == before


@linux
def test_another_kind_of_priority_is_left_alone():
    ask = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
    ask += "from pipelines.cluster.linux_scheduling import children_for_throughput\n"
    ask += "with children_for_throughput(): print(os.sched_getscheduler(0))"
    seen = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=20).stdout
    assert int(seen) == os.SCHED_IDLE


@pytest.mark.parametrize("call", ["sched_setscheduler", "sched_getscheduler"])
@pytest.mark.parametrize("error", [PermissionError("not here"), OSError(errno.EINVAL, ""), OSError(errno.ENOSYS, "")])
def test_a_sandbox_that_forbids_it_is_no_obstacle(monkeypatch, call, error):
    class Forbidding:
        def syscall(self, *_):
            return -1

    def forbid(*_):
        raise error

    monkeypatch.setattr(os, call, forbid, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Forbidding())
    with scheduling.children_for_throughput():
        reached = True
    assert reached
