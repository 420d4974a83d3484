"""A real head with token authentication; the quickstart, shortened, submitted to it as a job."""

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.own_home import COMPILED
from tests.support.paths import ROOT

RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = pytest.mark.timeout(720)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """A running head: the environment of its clients and the address of its job server."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    temporary = Path("/dev/shm") / f"ray-head-{os.getpid()}"  # short: Ray's sockets live below it
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        **COMPILED,
        "LANG": "C.UTF-8",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [RAY, "start", "--head", "--port", str(port), "--dashboard-port", str(dashboard), "--num-cpus", "12"]
    command += ["--dashboard-host", "127.0.0.1", "--object-store-memory", "500000000", "--temp-dir", str(temporary)]
    command += ["--block", "--min-worker-port", "0", "--max-worker-port", "0"]
    command += ["--dashboard-agent-listen-port", str(agent)]  # the default port may belong to another Ray
    with open(tmp_path / "head.log", "w") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for_port(dashboard, process, tmp_path / "head.log")
        yield environment, f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()  # --block: the head ends with its own children
        process.wait(60)
        subprocess.run(["rm", "-rf", str(temporary)], check=True)


def wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    import time

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the head did not come up: " + log.read_text())


def submit(environment: dict, address: str, *entrypoint: str) -> subprocess.CompletedProcess:
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *entrypoint]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_quickstart_runs_as_a_submitted_job(head, tmp_path):
    environment, address = head
    done = submit(
        environment,
        address,
        *("python", "-m", "engine", "run", "pipelines/specs/quickstart.yaml"),
        *(f"run.output_dir={tmp_path / 'output'}", f"alignment.cache_dir={tmp_path / 'tables'}"),
        *("training.max_steps=4", "evaluation.corpora={}"),
        *("source_models.1.backend=transformers", "source_models.2.backend=transformers"),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout + done.stderr
    assert (tmp_path / "output" / "export" / "model.safetensors").stat().st_size > 100_000
    assert (tmp_path / "output" / "report.html").exists()


def test_a_client_without_the_token_is_refused(head):
    environment, address = head
    stranger = {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = submit(stranger, address, "python", "-c", "print('ran')")
    assert done.returncode != 0
    assert "ran\n" not in done.stdout
