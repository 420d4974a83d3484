"""The benchmark of a GPU in small on a CPU: every line of it runs, so that it works when there is a GPU."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(600)

FIGURES = {
    "loss": {"gpu_loss_time", "gpu_loss_kernels"},  # gpu_loss_memory is PyTorch's own count of a GPU's
    "training": {"gpu_train_vs_plain", "gpu_train_mfu"},
    "scoring": {"gpu_scoring_vs_prefill", "gpu_scoring_vs_engine", "gpu_scoring_in_flight"},
    "stream": {"gpu_stream"},
}


def test_every_part_runs():
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--device", "cpu", "--passes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"figure"')]
    assert {line["figure"] for line in lines} == set().union(*FIGURES.values())
    for line in lines:
        assert line["ratio"] > 0 and line["against"] and line["unit"] and line["on"]["card"] == "cpu"
