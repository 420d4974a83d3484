"""The start, the memory and the end of a small run: the quickstart with its three source models in vLLM, three steps.

    python -m tests.benchmarks.start [--against FOLDER] [--rounds 3] [--busy 2] [--processes]

Figures, medians of the rounds: ``start_first_step``: seconds from the command to the first step's checkpoint;
``start_cpu``: CPU seconds of all processes until then; ``start_memory``: the most memory of all processes together,
pages that they share counted once (PSS); ``start_exit``: seconds from the export's first file to the end of the last
process. ``start_exit_busy`` and ``start_first_step_busy`` are the same beside ``--busy`` loops that take a core each.

``--against`` names another tree of this repository, an older one, whose rounds take turns with this one's; the ratios
are against its figures. ``--processes`` prints the processes of the last round: when each was there, its CPU time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from tests.benchmarks.figures import say
from tests.benchmarks.stream_watch import kind_of
from tests.support.paths import ROOT

SECONDS_BETWEEN_LOOKS = 0.2

#: Memory is read less often: it costs the kernel a walk through all pages of a process.
SECONDS_BETWEEN_SUMS = 1.0

OVERRIDES = ("training.max_steps=3", "training.checkpoint_every_steps=1", "evaluation.corpora={}")


@dataclass
class Seen:
    """A process of a run: its kind, when it was there in seconds since the command, CPU seconds, most PSS in bytes."""

    kind: str
    first: float
    last: float = 0.0
    cpu_seconds: float = 0.0
    pss: int = 0


@dataclass
class Start:
    """One run: seconds since the command, CPU seconds of all processes until the first step, bytes."""

    first_step: float = 0.0
    cpu_seconds: float = 0.0
    exported: float = 0.0
    ended: float = 0.0
    memory: int = 0
    processes: dict[tuple[int, float], Seen] = field(default_factory=dict)

    @property
    def exit_seconds(self) -> float:
        """From the export's first file to the end of the last process."""
        return self.ended - self.exported


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="an older tree of this repository; without it there is no ratio")
    parser.add_argument("--rounds", type=int, default=3, help="of each tree, in turns")
    parser.add_argument("--busy", type=int, default=0, help="loops beside one more run of each tree")
    parser.add_argument("--processes", action="store_true", help="print the processes of the last round")
    chosen = parser.parse_args()
    trees = [tree for tree in (chosen.against, ROOT) if tree]
    quiet = {tree: [] for tree in trees}
    for _ in range(chosen.rounds):
        for tree in trees:
            quiet[tree].append(start(tree))
    report(quiet, trees)
    if chosen.busy:
        with busy_loops(chosen.busy):
            busy = {tree: start(tree) for tree in trees}
        seconds = [busy[tree].exit_seconds for tree in trees]
        say("start_exit_busy", seconds[-1], "s", str(trees[0]), seconds[0] / seconds[-1], loops=chosen.busy)
        seconds = [busy[tree].first_step for tree in trees]
        say("start_first_step_busy", seconds[-1], "s", str(trees[0]), seconds[0] / seconds[-1], loops=chosen.busy)
    if chosen.processes:
        show(quiet[trees[-1]][-1])


def report(starts: dict[Path, list[Start]], trees: Sequence[Path]) -> None:
    """The medians of the last tree, against those of the first."""

    def figure(name: str, unit: str, values: dict[Path, list[float]]) -> None:
        middle = {tree: median(values[tree]) for tree in trees}
        each = {("this" if tree == ROOT else "before"): [round(value, 2) for value in values[tree]] for tree in trees}
        say(name, middle[trees[-1]], unit, str(trees[0]), middle[trees[0]] / middle[trees[-1]], **each)

    figure("start_first_step", "s", {tree: [one.first_step for one in starts[tree]] for tree in trees})
    figure("start_cpu", "CPU s", {tree: [one.cpu_seconds for one in starts[tree]] for tree in trees})
    figure("start_memory", "GiB", {tree: [one.memory / 2**30 for one in starts[tree]] for tree in trees})
    figure("start_exit", "s", {tree: [one.exit_seconds for one in starts[tree]] for tree in trees})


def start(tree: Path) -> Start:
    """Run the quickstart's first three steps in a tree, watched.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "log"), "w+", encoding="utf8") as log:
        output = os.path.join(folder, "output")
        command = [sys.executable, "-m", "engine", "run", "pipelines/specs/quickstart.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        run = psutil.Popen(
            [*command, f"run.output_dir={output}", *OVERRIDES],
            cwd=tree,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        seen = watched(run, Path(output), began)
        if run.wait():
            log.seek(0)
            raise RuntimeError(f"the run in {tree} failed:\n{log.read()}")
    return seen


def watched(run: psutil.Popen, output: Path, began: float) -> Start:
    """Look at a run's processes until the last of them has ended.

    Memory is added up in a thread of its own: beside busy loops that takes seconds, in which a run can end.
    """
    seen = Start()
    children: dict[tuple[int, float], psutil.Process] = {}
    ended = threading.Event()
    adding = threading.Thread(target=add_up_memory, args=(run, seen, ended))
    adding.start()
    while True:
        for process in tree_of(run):
            children[process.pid, process.create_time()] = process
        for key, process in children.items():
            look(process, key, seen, time.monotonic() - began)
        if not seen.first_step and any(output.glob("checkpoints/*/state.json")):
            seen.first_step = time.monotonic() - began
            seen.cpu_seconds = sum(process.cpu_seconds for process in seen.processes.values())
        if not seen.exported and (output / "export" / "config.json").exists():
            seen.exported = time.monotonic() - began
        if run.poll() is not None and not any(is_alive for is_alive in map(_is_alive, children.values())):
            seen.ended = time.monotonic() - began
            ended.set()
            adding.join()
            return seen
        time.sleep(SECONDS_BETWEEN_LOOKS)


def add_up_memory(run: psutil.Process, seen: Start, ended: threading.Event) -> None:
    """Note the most memory of all processes together, and of each, until the run has ended."""
    while not ended.wait(SECONDS_BETWEEN_SUMS):
        total = 0
        for process in tree_of(run):
            with suppress(psutil.Error):  # it has ended meanwhile
                key, pss = (process.pid, process.create_time()), process.memory_full_info().pss
                total += pss
                if key in seen.processes:
                    seen.processes[key].pss = max(seen.processes[key].pss, pss)
        seen.memory = max(seen.memory, total)


def tree_of(run: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started, as far as they are there."""
    try:
        return [run, *run.children(recursive=True)]
    except psutil.Error:
        return []


def look(process: psutil.Process, key: tuple[int, float], seen: Start, now: float) -> None:
    """Note what a process has used so far, if it is still there."""
    with suppress(psutil.Error), process.oneshot():
        kind = kind_of(process) if process.name() != "raylet" else "raylet"
        times = process.cpu_times()
        noted = seen.processes.setdefault(key, Seen(kind, now))
        noted.kind, noted.last, noted.cpu_seconds = name_of(process, kind), now, times.user + times.system


def name_of(process: psutil.Process, kind: str) -> str:
    """The kind of a process of Ray's, or what else a command runs."""
    if kind != "ray":
        return kind
    try:
        words = process.cmdline()
    except psutil.Error:
        return kind
    names = [os.path.basename(word) for word in words if not word.startswith("-")]
    return " ".join(names[:2])[:60]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Loops that take a core each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def show(one: Start) -> None:
    """Print the processes of a run in the order in which they started."""
    print(f"{'from':>6} {'to':>6} {'CPU s':>6} {'MiB':>6}  process")
    for process in sorted(one.processes.values(), key=lambda process: process.first):
        memory = process.pss // 2**20
        print(f"{process.first:6.1f} {process.last:6.1f} {process.cpu_seconds:6.1f} {memory:6d}  {process.kind}")


if __name__ == "__main__":
    main()
