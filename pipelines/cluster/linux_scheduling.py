"""How the operating system shares the cores among the processes of a local Ray.

A stream has more stages than a small machine has cores. Linux lets tasks that are all busy take turns of one or two
milliseconds, and whoever wakes up goes first: every turn finds the caches full of another model. Stages hand on work
for a tenth of a second and more, so that longer turns cost nobody anything. Where cores are many, all this changes
nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Of a turn that a task may have before another's begins: Linux takes a tenth to a hundred, since 6.12.
_TURN_MILLISECONDS = 20

#: Linux's number of ``sched_setattr``, which neither Python nor the C library names, by machine.
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}


class _Attributes(ctypes.Structure):
    """Linux's ``struct sched_attr``, in its first version."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),  # nanoseconds; of a turn, where the policy has no deadlines
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


@contextmanager
def children_for_throughput() -> Iterator[None]:
    """Processes that are started inside the block, and theirs, take long turns and do not cut short another's.

    Without effect where the system does not know it or a sandbox forbids it; an older Linux ignores the length.
    """
    if not _has_usual_kind():
        yield
        return
    _schedule(os.SCHED_BATCH, _TURN_MILLISECONDS)
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER, 0)  # the system's own length again


def _has_usual_kind() -> bool:
    """Whether this thread's kind of priority can be told and is the usual one: another was somebody's decision."""
    if not hasattr(os, "SCHED_BATCH"):  # Linux has it
        return False
    try:
        return os.sched_getscheduler(0) == os.SCHED_OTHER
    except OSError:  # as in _schedule
        return False


def _schedule(policy: int, turn_milliseconds: int) -> None:
    """Of the calling thread, and of what it starts from now on."""
    with suppress(OSError):  # sandboxes answer EPERM, EINVAL or ENOSYS
        os.sched_setscheduler(0, policy, os.sched_param(0))
    number = _SET_ATTRIBUTES.get(platform.machine())
    if number is None:
        return
    wanted = _Attributes(
        size=ctypes.sizeof(_Attributes),
        policy=policy,
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        runtime=turn_milliseconds * 1_000_000,
    )
    ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wanted), 0)
