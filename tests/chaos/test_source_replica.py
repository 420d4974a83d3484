"""A source whose replicas die again and again stops the run with a sentence, unless the run can do without it."""

import time

import pytest

from tests.support.interrupted_runs import InterruptedRun

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("required", [True, False])
def test_a_replica_that_dies_on_every_start_stops_the_run_or_is_done_without(tmp_path, required):
    overrides = ("source_models.0.max_restarts=1", f"source_models.0.required={str(required).lower()}")
    with InterruptedRun(tmp_path, *overrides).start() as run:
        killed = 0
        while run.process.poll() is None:
            assert killed < 10
            for replica in run.processes("Source") if killed < 3 else []:
                time.sleep(1.0)
                if replica.is_running():
                    replica.kill()
                    killed += 1
            time.sleep(0.05)
        assert run.wait() == int(required), run.log
        assert "gpt2-code: a replica has died" in run.log
        if not required:
            assert "Passages without a source" in run.report
