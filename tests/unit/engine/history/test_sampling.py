"""Steps that a page shows: evenly spread over a run of any length, and never a step that was not taken when it came."""

from itertools import pairwise

import pytest

from engine.history.sampling import FEWEST_STEPS, is_sampled

pytestmark = pytest.mark.timeout(10)


@pytest.mark.parametrize("newest", [1, 7, 16, 17, 100, 6_250])
def test_a_run_of_any_length_shows_a_few_steps(newest):
    shown = [step for step in range(1, newest + 1) if is_sampled(step, newest)]
    assert shown[0] == 1
    assert min(newest, FEWEST_STEPS) <= len(shown) <= 2 * FEWEST_STEPS + 1
    assert all(is_sampled(step, step) for step in shown), "each was sampled when it was taken"
    gaps = [later - earlier for earlier, later in pairwise(shown[1:])]
    assert len(set(gaps)) <= 1
