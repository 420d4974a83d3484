"""The fork server: what a forked worker gets of its launcher, and what happens where no server answers."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from pipelines.cluster import fork_server
from pipelines.cluster.fork_server import workers_forked

#: Stands in for Ray's program of a worker: it says what it found and waits for its end.
WORKER = """
import json, os, sys, threading
import numpy
from ray._raylet import JobID, TaskID
drawn = [TaskID.for_fake_task(JobID.from_int(1)).hex(), float(numpy.random.random())]
other = threading.Thread(target=lambda: drawn.append(TaskID.for_fake_task(JobID.from_int(1)).hex()))
other.start()
other.join()
print(json.dumps({
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "job": os.environ.get("RAY_JOB_ID"),
    "mark": os.environ.get("MARK"),
    "name": __name__,
    "has torch": "torch" in sys.modules,
    "group": os.getpgid(0) == os.getpid(),
    "own": os.getpid(),
    "drawn": drawn,
    "parent": os.getppid(),
}), flush=True)
print("an error", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def socket_path():
    """The socket of a server whose first worker was of job 01."""
    with fork_server.fork_server(with_vllm=False) as path:
        wait_for(path)
        yield path


def wait_for(path):
    """Wait until a server listens."""
    for _ in range(600):
        if os.path.exists(path):
            break
        time.sleep(0.1)
    assert os.path.exists(path)


@pytest.fixture
def worker(tmp_path):
    """The stand-in's path."""
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


def launch(path, worker, *arguments, **environment):
    """Start a worker as Ray's raylet does; what it said, and its errors."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(fork_server._LAUNCHER), path, "setup_worker.py", str(worker), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_JOB_ID": "01", **environment},
        cwd=worker.parent,
        timeout=100,
    )
    return json.loads(done.stdout), done.stderr, done.returncode


def test_a_forked_worker_has_its_own_arguments_environment_folder_and_files(socket_path, worker):
    found, errors, status = launch(socket_path, worker, "--language=PYTHON", "a b", "ü", MARK="x=1\ny")
    assert found["arguments"] == ["a b", "ü"]
    assert (found["job"], found["mark"], found["name"]) == ("01", "x=1\ny", "__main__")
    assert found["folder"] == str(worker.parent)
    assert (errors, status) == ("an error\n", 0)


def test_it_has_the_libraries_and_a_process_group_of_its_own(socket_path, worker):
    first, _, _ = launch(socket_path, worker)
    second, _, _ = launch(socket_path, worker)
    assert first["has torch"] and first["group"] and second["group"]
    assert first["parent"] == second["parent"] and first["own"] != second["own"]


def test_no_two_workers_draw_the_same_ids(socket_path, worker):
    first, second = (launch(socket_path, worker)[0]["drawn"] for _ in range(2))
    assert len({*first, *second}) == 6


def test_a_worker_is_a_plain_one_where_no_server_answers(tmp_path, worker):
    found, errors, status = launch(str(tmp_path / "nothing"), worker, "--language=PYTHON", "a", MARK="m")
    assert (found["arguments"], found["mark"], found["has torch"]) == (["a"], "m", False)
    assert (errors, status) == ("an error\n", 0)


def test_a_forked_worker_has_the_variables_of_its_own_environment(socket_path, worker):
    context = {"command_prefix": [], "env_vars": {"MARK": "own"}, "py_executable": sys.executable, "java_jars": []}
    own = f"--serialized-runtime-env-context={json.dumps(context)}"
    found, _, _ = launch(socket_path, worker, own, "--language=PYTHON", "a", MARK="the raylet's")
    assert (found["arguments"], found["mark"], found["has torch"]) == (["a"], "own", True)


@pytest.mark.parametrize("program", [{"command_prefix": ["nice"]}, {"py_executable": "another"}])
def test_a_worker_with_a_program_of_its_own_is_set_up_by_ray(socket_path, worker, program):
    command = [sys.executable, "-I", "-S", str(fork_server._LAUNCHER), socket_path, str(worker), "default_worker.py"]
    own = f"--serialized-runtime-env-context={json.dumps(program)}"
    done = subprocess.run([*command, own, "--language=PYTHON"], capture_output=True, text=True, timeout=100)
    assert json.loads(done.stdout)["arguments"] == ["default_worker.py", own, "--language=PYTHON"]


@pytest.mark.parametrize("beginning", [b"", b"00000100", b"00000100half of a request"])
def test_a_launcher_that_dies_in_the_middle_of_its_request_harms_no_other(socket_path, worker, beginning):
    with socket.socket(socket.AF_UNIX) as dying:
        dying.connect(socket_path)
        dying.sendall(beginning)
    assert launch(socket_path, worker, "a")[0]["has torch"]


def test_the_server_ends_with_its_block():
    with fork_server.fork_server(with_vllm=False) as path:
        wait_for(path)
    assert not os.path.exists(os.path.dirname(path))


def test_the_raylet_gets_the_launcher_and_nothing_else_changes(monkeypatch):
    from ray._private import services

    seen = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, *a, **named: seen.append((command, a, named)))
    python = subprocess.list2cmdline([sys.executable])
    with workers_forked("/s"):
        services.start_ray_process(["raylet", f"--python_worker_command={python} setup.py w.py RAY_X"], "kind", pipe=1)
        services.start_ray_process(["raylet", "--python_worker_command=other setup.py"], "kind")
    launcher = subprocess.list2cmdline([sys.executable, "-I", "-S", str(fork_server._LAUNCHER), "/s"])
    assert seen[0] == (["raylet", f"--python_worker_command={launcher} setup.py w.py RAY_X"], ("kind",), {"pipe": 1})
    assert seen[1][0] == ["raylet", "--python_worker_command=other setup.py"]
