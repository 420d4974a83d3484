"""What must be true of the output folder before work starts."""

import pytest

from engine import load_spec
from engine.errors import PreflightError
from engine.preflight import preflight

pytestmark = pytest.mark.timeout(60)


def check(tmp_path, *overrides: str) -> None:
    preflight(load_spec("pipelines/specs/quickstart.yaml", [f"run.output_dir={tmp_path / 'out'}", *overrides]))


def test_an_output_folder_of_another_run_is_refused(tmp_path):
    check(tmp_path)
    with pytest.raises(PreflightError, match=r"holds another run \(its training.block_length is 256, not 128\)"):
        check(tmp_path, "training.block_length=128")


def test_a_run_may_go_on_elsewhere_and_otherwise_placed(tmp_path):
    check(tmp_path)
    check(tmp_path, "training.num_workers=1", "training.max_restarts=0", "source_models.0.replicas=3")
