"""A run whose corpus, output, checkpoints, export and mapping tables are in object storage."""

import json
import os
import signal

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests.support.interrupted_runs import TRANSFORMERS, InterruptedRun

pytestmark = pytest.mark.timeout(600)

BUCKET = "s3://fusion"


@pytest.fixture
def store(monkeypatch):
    """A bucket of a server that speaks S3; fsspec and pyarrow find it by the same variables of the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3").mkdir(BUCKET)
    yield BUCKET
    server.stop()


def test_a_run_in_object_storage_goes_on_after_its_driver_was_killed(tmp_path, store, undisturbed_curve):
    seldom = "training.checkpoint_every_steps=10"  # the server takes seconds for a checkpoint
    with InterruptedRun(tmp_path, TRANSFORMERS, seldom, store=store).start() as run:
        run.wait_for_step(10)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        before = run.state
        assert run.start().wait() == 0, run.log
        assert run.state["history"][: before["step"]] == before["history"]
        run.check_exactly_once()
        assert [record[1:4] for record in run.curve] == [record[1:4] for record in undisturbed_curve]
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    assert files.exists(f"{store}/out/export/model.safetensors")
    assert files.exists(f"{store}/out/report.html")
    events = [json.loads(line) for line in files.cat_file(f"{store}/out/logs/events.jsonl").splitlines()]
    starts = [event["step"] for event in events if event["event"] == "started"]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= before["step"], "both are in one file"
    assert events[-1]["event"] == "stopped"
    assert files.ls(f"{store}/tables")
    assert not files.exists(f"{store}/out/lease.json"), "the run has ended"
