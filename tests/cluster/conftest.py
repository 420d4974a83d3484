"""What the tests of this folder share: a run that nothing disturbed."""

import pytest

from tests.support.interrupted_runs import InterruptedRun

#: With transformers the numbers depend on what else is in the batch, so that equal losses prove equal batches.
OVERRIDES = ("source_models.0.backend=transformers", "run.deterministic=true")


@pytest.fixture(scope="session")
def undisturbed_curve(tmp_path_factory):
    """The fields of each step that must not depend on time, of a run on one machine and local files."""
    with InterruptedRun(tmp_path_factory.mktemp("undisturbed"), *OVERRIDES).start() as run:
        assert run.wait() == 0, run.log
        run.check_exactly_once()
        return run.curve
