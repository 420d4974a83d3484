"""Carry out one run after another in one process and one local Ray: libraries and Ray start once, not for each run."""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

import engine
from engine.errors import FusionError, SpecError
from engine.spec.loading import load_spec
from pipelines.cluster.fork_server import fork_server
from pipelines.cluster.needs import Need

#: Logical CPUs of a bench's Ray: admission tickets of the stages of one run, not cores.
LOGICAL_CPUS = 16.0


def start_bench(spec: str) -> None:
    """Start the Ray that all runs of this process join; it ends with the process.

    Args:
        spec: whose section ``cluster`` all runs have.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    bench = ExitStack()
    atexit.register(bench.close)
    forks = bench.enter_context(fork_server(with_vllm=False))
    from pipelines.cluster.session import ray_session  # Ray takes seconds to import, in which the fork server imports

    bench.enter_context(ray_session(load_spec(spec), [Need("experiment", "run", LOGICAL_CPUS)], forks=forks))


def carry_out(spec: str, overrides: Sequence[str], log: Path, most_seconds: int) -> float:
    """Do what ``python -m engine run SPEC OVERRIDES`` does, with the console in ``log``; returns the seconds it took.

    Raises:
        RuntimeError: the run failed, or took more than ``most_seconds``; says why and names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(most_seconds)
    try:
        with log.open("w") as console, redirect_stdout(console), redirect_stderr(console):
            engine.run(load_spec(spec, overrides))
    except (FusionError, SpecError, TimeoutError) as error:
        raise RuntimeError(f"{spec} {' '.join(overrides)}: {error}; see {log}") from None
    finally:
        signal.alarm(0)
    return time.monotonic() - started


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("it took too long")
