"""A process that imports the libraries once and forks a local Ray's workers, which share its memory.

    python -m pipelines.cluster.fork_server SOCKET [vllm]

A run has twenty processes. Each of them would import Ray, and half of them torch; an import of vLLM takes 10 CPU
seconds, and all imports 500 MB. Forked workers have all of it at once, and hold one copy of what they do not change.

When Ray is loaded, it learns from the environment which job and which raylet a process is of, and how processes prove
who they are. So Ray is imported with the environment of the first request, and all that imports Ray.

The server ends when its standard input does, which is the driver's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from pipelines.cluster.forked_worker import DIGITS

#: What the workers of every run need and what does not import Ray.
BEFORE_RAY = (
    "pyarrow.parquet",
    "pandas",
    "numba",
    "torch.distributed.fsdp",
    "transformers",
    "engine.corpus.documents",
    "engine.method.fusion",
)

#: What the workers of every run need besides; nothing here starts a thread, which a fork would lose.
WITH_RAY = (
    "ray._private.workers.default_worker",
    "ray.data",
    "ray.train.torch",
    "ray.train.v2.api.data_parallel_trainer",
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
            server.terminate()
            server.wait()
            server.stdin.close()


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
    _import(BEFORE_RAY)
    if with_vllm:
        _import_vllm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no worker that has ended waits to be asked for its status
    request = _next_request(listening)
    if request:
        _take_environment(request)
        with _no_random_id_of_rays():
            _import(WITH_RAY)
    gc.collect()
    gc.freeze()  # the collector would write into pages that the workers share
    while request:
        if os.fork() == 0:
            listening.close()
            _become_worker(request)
        request.answer()
        request = _next_request(listening)


@dataclass
class Request:
    """For one worker: its folder, command, environment, open files, and the connection on which its launcher waits.

    ``added`` are the environment variables that its actor asks for.
    """

    folder: str
    command: Sequence[str]
    environment: Mapping[str, str]
    added: Mapping[str, str]
    files: Sequence[int]
    connection: socket.socket

    def answer(self) -> None:
        """Tell the launcher that the worker is there, and keep nothing open."""
        for file in self.files:
            os.close(file)
        with suppress(OSError):  # Ray has ended the launcher meanwhile
            self.connection.sendall(b"1")
        self.connection.close()


def _import(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)


def _next_request(listening: socket.socket) -> Request | None:
    """Wait for a request; None when the driver has ended."""
    while True:
        readable, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in readable:
            return None
        connection, _ = listening.accept()
        request = _read_request(connection)
        if request is not None:
            return request


def _read_request(connection: socket.socket) -> Request | None:
    """Read a request; None if its launcher was killed in the middle of it."""
    head, files, _, _ = socket.recv_fds(connection, DIGITS, 3)
    text, length = b"", int(head or b"0")
    while len(text) < length and (part := connection.recv(length - len(text))):
        text += part
    if not text or len(text) < length:
        for file in files:
            os.close(file)
        connection.close()
        return None
    folder, added, *rest = text.decode("utf8", "surrogateescape").split("\0")
    gap = rest.index("")
    environment = dict(entry.split("=", 1) for entry in rest[gap + 1 :])
    return Request(folder, rest[:gap], environment, json.loads(added), files, connection)


@contextmanager
def _no_random_id_of_rays() -> Iterator[None]:
    """Within the block, the definition of an actor class draws its id from the system.

    Ray's own generator takes its seed when it is first used. Workers that are forked after that all draw the same ids,
    and two tasks of one id end the process that gets them.
    """
    import ray.actor
    from ray import ActorClassID

    class FromSystem:
        from_random = staticmethod(lambda: ActorClassID(os.urandom(ActorClassID.size())))

    with mock.patch.object(ray.actor, "ActorClassID", FromSystem):
        yield


def _take_environment(request: Request) -> None:
    os.environ.clear()
    os.environ.update(request.environment)


def _import_vllm() -> None:
    """Import vLLM without Ray, which it would use for one engine on several nodes alone."""
    from actors.sources.backends.vllm import import_engine

    sys.modules["ray"] = None  # an import of it fails
    import_engine()
    del sys.modules["ray"]


def _become_worker(request: Request) -> None:
    """Run a worker of Ray's in this process, and end with it."""
    import numpy as np
    from ray._private.utils import update_envs

    status = 1
    try:
        os.setpgid(0, 0)  # Ray ends a worker together with its process group
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(request.files):
            os.dup2(file, number)
            os.close(file)
        request.connection.close()
        os.chdir(request.folder)
        _take_environment(request)
        update_envs(request.added)
        np.random.seed()  # the seed of each process, as without a fork
        sys.argv = list(request.command)
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], "vllm" in sys.argv[2:])
