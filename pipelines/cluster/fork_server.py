"""A process that imports the libraries once and forks a local Ray's workers, which share its memory.

    python -m pipelines.cluster.fork_server SOCKET [vllm]

A run has twenty processes. Each of them would import Ray, and half of them torch; an import of vLLM takes 10 CPU
seconds, and all imports 500 MB. Forked workers have all of it at once, and hold one copy of what they do not change.

There are two servers in turn. The first has what every run needs, and serves while the second, which is forked from it,
imports vLLM: that takes as long as Ray's own start. Both end when their standard input does, which is the driver's.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from pipelines.cluster.forked_worker import DIGITS

#: What the workers of every run need, and nothing that starts a thread of its own which a fork would lose.
EVERY_RUN = (
    "ray._private.workers.default_worker",
    "ray.data",
    "ray.train.torch",
    "ray.train.v2.api.data_parallel_trainer",
    "transformers",
    "actors.monitor",
    "actors.reader",
    "actors.aligner",
    "actors.sources.optional_source",
    "actors.training.loop",
    "pipelines.stream.training",
)

#: The folder of this repository's packages.
_ROOT = Path(__file__).parents[2]

_LAUNCHER = Path(__file__).with_name("forked_worker.py")

#: The argument of Ray's raylet with the command that starts a worker in Python.
_WORKER_COMMAND = "--python_worker_command="


@contextmanager
def fork_server(with_vllm: bool) -> Iterator[str]:
    """Start a fork server and end it after the block; yields the path of its socket.

    Args:
        with_vllm: whether a source model of the run has its engine in vLLM.
    """
    with TemporaryDirectory(prefix="fork-") as folder:
        path = os.path.join(folder, "socket")
        paths = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        server = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cluster.fork_server", path, *(["vllm"] if with_vllm else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the driver alone
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths},
        )
        try:
            yield path
        finally:
            server.stdin.close()
            server.wait()


@contextmanager
def workers_forked(path: str) -> Iterator[None]:
    """Within the block, a Ray that is started gets its workers from the fork server.

    Ray has no setting for the command of a worker that would keep its faster start without an environment of its own,
    so its argument for the raylet is replaced. Guard: where the argument is not there, workers start as ever.
    """
    from ray._private import services

    original = services.start_ray_process

    def start_ray_process(command: list[str], *arguments, **named):
        return original([_through(path, argument) for argument in command], *arguments, **named)

    with mock.patch.object(services, "start_ray_process", start_ray_process):
        yield


def _through(path: str, argument: str) -> str:
    """The raylet's argument with a worker's command, altered so that the launcher gets that command."""
    if not argument.startswith(_WORKER_COMMAND):
        return argument
    python, rest = subprocess.list2cmdline([sys.executable]), argument.removeprefix(_WORKER_COMMAND)
    if not rest.startswith(python + " "):
        return argument
    launcher = subprocess.list2cmdline([sys.executable, "-I", "-S", str(_LAUNCHER), path])
    return _WORKER_COMMAND + launcher + rest.removeprefix(python)


def serve(path: str, with_vllm: bool) -> None:
    """Import, then fork a worker for each request until the driver ends."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(128)  # requests wait while this process imports
    for name in EVERY_RUN:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no worker that has ended waits to be asked for its status
    is_ready, says_ready = os.pipe()
    if with_vllm and os.fork() == 0:
        _import_vllm()
        os.write(says_ready, b"1")
        os.close(is_ready)
        is_ready = None
    elif not with_vllm:
        is_ready = None
    gc.collect()
    gc.freeze()  # the collector would write into pages that the workers share
    while True:
        readable, _, _ = select.select([listening, sys.stdin, *([is_ready] if is_ready is not None else [])], [], [])
        if sys.stdin in readable:
            os._exit(0)
        if is_ready in readable:
            listening.close()  # the second server has all requests from now on
            sys.stdin.buffer.read()
            os._exit(0)
        connection, _ = listening.accept()
        request, files = _received(connection)
        if os.fork() == 0:
            listening.close()
            _become_worker(request, files)
        for file in files:
            os.close(file)
        connection.sendall(b"1")
        connection.close()


def _import_vllm() -> None:
    from actors.sources.backends.vllm import import_engine

    import_engine()


def _received(connection: socket.socket) -> tuple[bytes, Sequence[int]]:
    """A request and the open files that came with it."""
    head, files, _, _ = socket.recv_fds(connection, DIGITS, 3)
    left, request = int(head), b""
    while len(request) < left:
        request += connection.recv(left - len(request))
    return request, files


def _become_worker(request: bytes, files: Sequence[int]) -> None:
    """Run a worker of Ray's in this process, and end with it."""
    status = 1
    try:
        folder, *rest = request.decode("utf8", "surrogateescape").split("\0")
        command, environment = rest[: rest.index("")], rest[rest.index("") + 1 :]
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(entry.split("=", 1) for entry in environment)
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], "vllm" in sys.argv[2:])
