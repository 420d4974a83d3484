"""Engine commands in processes forked from one that has loaded every library, so that a command costs no import.

``python -m tests.support.forked_commands COMMANDS RESULTS SECONDS AT_ONCE`` reads a JSON list of argument lists and
writes a JSON list of results, in the same order. It carries out the first command itself before it forks: what that has
imported and compiled, the others have. It computes on one thread, which is what makes a fork safe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from engine.__main__ import main
from tests.support.paths import ROOT

#: Exit code of a command that let an exception out, which no verb of the engine uses.
UNCAUGHT = 70


@dataclass(frozen=True)
class Result:
    """How one command ended.

    Attributes:
        code: exit code; negative for a signal. seconds: wall time. timed_out: whether it ran past its limit.
        output: what it wrote to standard output and standard error together.
    """

    code: int
    seconds: float
    timed_out: bool
    output: str


def run_commands(commands: Sequence[Sequence[str]], limit_seconds: float, at_once: int = 2) -> list[Result]:
    """Run each ``python -m engine`` command in a process of its own, ``at_once`` of them side by side.

    One that runs past its limit is run once more, in a fresh process.

    Args:
        commands: arguments of each. The first is carried out once more, before all of them, in the process that forks.
    """
    with TemporaryDirectory() as folder:
        asked, answered = Path(folder, "commands.json"), Path(folder, "results.json")
        asked.write_text(json.dumps([list(command) for command in commands]))
        command = [sys.executable, "-m", "tests.support.forked_commands", str(asked), str(answered)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        options = [str(limit_seconds), str(at_once)]
        subprocess.run([*command, *options], cwd=ROOT, env=environment, check=True)
        results = [Result(**fields) for fields in json.loads(answered.read_text())]
    pairs = zip(commands, results, strict=True)
    return [_alone(command, limit_seconds) if result.timed_out else result for command, result in pairs]


def _alone(command: Sequence[str], limit_seconds: float) -> Result:
    """The result of a command in a fresh process: a fork may inherit a lock that none of its threads frees."""
    since = time.monotonic()
    arguments = [sys.executable, "-m", "engine", *command]
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return Result(-signal.SIGKILL, time.monotonic() - since, True, "")
    return Result(done.returncode, time.monotonic() - since, False, done.stdout + done.stderr)


@dataclass
class _Started:
    index: int
    output: Path
    since: float
    timed_out: bool = False


def _run_all(commands: list[list[str]], folder: Path, limit_seconds: float, at_once: int) -> list[Result]:
    results: dict[int, Result] = {}
    running: dict[int, _Started] = {}
    waiting = list(enumerate(commands))
    while waiting or running:
        while waiting and len(running) < at_once:
            index, command = waiting.pop(0)
            output = folder / f"{index}.txt"
            running[_fork(command, output)] = _Started(index, output, time.monotonic())
        for pid, started in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                text = started.output.read_text(encoding="utf8", errors="replace")
                seconds = time.monotonic() - started.since
                code = os.waitstatus_to_exitcode(status)
                results[started.index] = Result(code, seconds, started.timed_out, text)
                print(f"{' '.join(commands[started.index])}: {code}, {seconds:.1f} s", flush=True)
            elif time.monotonic() - started.since > limit_seconds and not started.timed_out:
                started.timed_out = True
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [results[index] for index in range(len(commands))]


def _fork(command: list[str], output: Path) -> int:
    """Start one command; returns its process."""
    pid = os.fork()
    if pid:
        return pid
    code = UNCAUGHT
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = main(command)
    except SystemExit as stop:  # argparse
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # whatever it is, it is what the caller wants to see
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    tqdm.monitor_interval = 0  # no thread of its own
    asked, answered, limit, side_by_side = sys.argv[1:]
    commands = json.loads(Path(asked).read_text())
    main(commands[0])
    found = _run_all(commands, Path(asked).parent, float(limit), int(side_by_side))
    Path(answered).write_text(json.dumps([asdict(result) for result in found]))
