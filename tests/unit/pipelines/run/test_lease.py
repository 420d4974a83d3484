"""One run at a time works in an output folder."""

import json
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from engine.errors import FusionError, PreflightError
from pipelines.run import lease as leases
from pipelines.run.lease import EXPIRE_SECONDS, LEASE_FILE, lease

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)


def change(folder, **fields):
    """Rewrite the lease as that of another owner."""
    path = folder / LEASE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": "other", **fields}))


def leave_lease(folder, **fields):
    """Leave a lease as another owner would."""
    with lease(str(folder)):
        content = json.loads((folder / LEASE_FILE).read_text())
    (folder / LEASE_FILE).write_text(json.dumps({**content, "token": "other", **fields}))


def test_a_second_run_is_refused_with_the_first_ones_host_process_and_start(tmp_path):
    with lease(str(tmp_path)):
        with pytest.raises(PreflightError) as refused, lease(str(tmp_path)):
            pass
        own = json.loads((tmp_path / LEASE_FILE).read_text())
    assert f"process {own['pid']} on {own['host']}, started 20" in str(refused.value)
    assert not (tmp_path / LEASE_FILE).exists()
    with lease(str(tmp_path)):
        pass


def test_two_processes_that_start_at_once_do_not_both_work(tmp_path):
    code = (
        "import sys, time\nfrom pipelines.run.lease import lease\n"
        f"with lease({str(tmp_path)!r}):\n    print('works', flush=True); time.sleep(6)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=50) for run in runs]
    assert sum("works" in out for out, _ in outputs) == 1
    assert sum("belongs to a run that is at work" in err for _, err in outputs) == 1


def test_a_dead_process_of_the_same_machine_gives_the_folder_free_at_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    leave_lease(tmp_path, pid=int(done.stdout), renewed=time.time())
    with lease(str(tmp_path)):
        pass


def test_a_process_id_that_came_again_is_not_the_owner(tmp_path):
    leave_lease(tmp_path, started=1000.0, renewed=time.time())
    with lease(str(tmp_path)):
        pass


def test_a_lease_of_another_machine_outlives_a_crash_until_it_expires(tmp_path):
    leave_lease(tmp_path, host="elsewhere", renewed=time.time() - EXPIRE_SECONDS + 20)
    with pytest.raises(PreflightError, match=r"process \d+ on elsewhere, .*is free 90 s"), lease(str(tmp_path)):
        pass
    change(tmp_path, host="elsewhere", renewed=time.time() - EXPIRE_SECONDS - 1)
    with lease(str(tmp_path)):
        pass


def test_the_owner_renews_its_lease(tmp_path):
    with lease(str(tmp_path)):
        before = json.loads((tmp_path / LEASE_FILE).read_text())["renewed"]
        time.sleep(0.5)
        assert json.loads((tmp_path / LEASE_FILE).read_text())["renewed"] > before


def test_a_store_that_is_out_of_reach_for_a_moment_ends_no_renewal(tmp_path, monkeypatch):
    """The errors of a store's client need not be OSErrors."""
    failed = []

    def fails_twice(output_dir):
        if len(failed) < 2:
            failed.append(output_dir)
            raise RuntimeError("connection closed")
        return read(output_dir)

    read = leases._read
    with lease(str(tmp_path)):
        monkeypatch.setattr(leases, "_read", fails_twice)
        before = json.loads((tmp_path / LEASE_FILE).read_text())["renewed"]
        time.sleep(1.0)
        assert len(failed) == 2
        assert json.loads((tmp_path / LEASE_FILE).read_text())["renewed"] > before


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_an_owner_whose_folder_was_taken_over_stops(tmp_path, handler):
    """In the background of a script too, where the shell makes programs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        check_that_it_stops(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def check_that_it_stops(tmp_path):
    sentence = r"another run has taken the folder over: process .* on elsewhere"
    with pytest.raises(FusionError, match=sentence), lease(str(tmp_path)):
        for _ in range(100):  # a renewal that has just looked writes over the first change
            change(tmp_path, host="elsewhere", renewed=time.time() + 60)
            time.sleep(0.1)
    assert json.loads((tmp_path / LEASE_FILE).read_text())["token"] == "other"


def test_a_lease_works_in_any_filesystem(tmp_path):
    with lease("memory://lease-test/out"):
        assert fsspec.filesystem("memory").exists("/lease-test/out/" + LEASE_FILE)
        with pytest.raises(PreflightError), lease("memory://lease-test/out"):
            pass
    assert not fsspec.filesystem("memory").exists("/lease-test/out/" + LEASE_FILE)


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("x")
    sentence = r"run\.output_dir: .*file/out cannot be written"
    with pytest.raises(PreflightError, match=sentence), lease(str(tmp_path / "file" / "out")):
        pass
