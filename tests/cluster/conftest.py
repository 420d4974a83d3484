"""What the tests of this folder share: a run that nothing disturbed."""

import pytest

from tests.support.interrupted_runs import TRANSFORMERS


@pytest.fixture(scope="session")
def undisturbed_curve(undisturbed):
    """The fields of each step that must not depend on time; made before a test changes the environment."""
    return undisturbed(TRANSFORMERS)
