"""The paired bootstrap, on data whose answer is known."""

import math

import numpy as np
import pytest

from pipelines.experiment.bootstrap import Interval, ScoredDomain, mean_bits_per_byte, paired_difference, spread

pytestmark = pytest.mark.timeout(60)

DOCUMENTS = 40


def scored(rates, num_bytes=100.0):
    """A domain whose documents have these bits per byte."""
    sizes = np.broadcast_to(np.asarray(num_bytes, float), np.shape(rates))
    return ScoredDomain(np.asarray(rates, float) * sizes, sizes)


def test_a_domain_is_bits_over_bytes_and_domains_weigh_alike():
    long_and_short = scored([1.0, 4.0], [300.0, 100.0])
    assert mean_bits_per_byte({"a": long_and_short}) == pytest.approx(1.75)
    assert mean_bits_per_byte({"a": long_and_short, "b": scored([2.25])}) == pytest.approx(2.0)


def test_a_constant_difference_has_an_interval_without_width():
    hard = np.random.default_rng(0).uniform(1, 5, DOCUMENTS)
    ours, theirs = [{"a": scored(hard - 0.25)}] * 3, [{"a": scored(hard)}] * 3
    found = paired_difference(ours, theirs, resamples=500)
    assert found.estimate == pytest.approx(-0.25)
    assert (found.low, found.high) == pytest.approx((-0.25, -0.25))
    assert found.excludes_zero


def test_pairing_is_by_document():
    """Documents that are hard for both say nothing about the difference; unpaired they would drown it."""
    draws = np.random.default_rng(1)
    hard = draws.uniform(1, 9, DOCUMENTS)
    ours = [{"a": scored(hard - 0.1 + draws.normal(0, 0.02, DOCUMENTS))}]
    found = paired_difference(ours, [{"a": scored(hard)}], resamples=2000)
    assert found.low < -0.1 < found.high
    assert found.high - found.low < 0.03


def test_with_one_seed_it_is_the_standard_error_of_the_documents():
    difference = np.random.default_rng(2).normal(0.3, 1.0, DOCUMENTS)
    found = paired_difference([{"a": scored(5 + difference)}], [{"a": scored(np.full(DOCUMENTS, 5.0))}])
    error = difference.std() / math.sqrt(DOCUMENTS)
    assert found.estimate == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.15 * error)


def test_seeds_that_disagree_widen_the_interval():
    same = [{"a": scored(np.full(DOCUMENTS, 2.0))}] * 3
    agreeing = [{"a": scored(np.full(DOCUMENTS, 1.9))}] * 3
    disagreeing = [{"a": scored(np.full(DOCUMENTS, 2.0 + shift))} for shift in (-0.5, -0.1, 0.3)]
    sure, unsure = paired_difference(agreeing, same), paired_difference(disagreeing, same)
    assert sure.estimate == pytest.approx(unsure.estimate) == pytest.approx(-0.1)
    assert sure.excludes_zero and not unsure.excludes_zero
    assert (unsure.low, unsure.high) == pytest.approx((-0.5, 0.3)), "all three draws may fall on one seed"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        difference = draws.normal(0.0, 1.0, DOCUMENTS)
        found = paired_difference(
            [{"a": scored(5 + difference)}], [{"a": scored(np.full(DOCUMENTS, 5.0))}], resamples=400, seed=trial
        )
        covered += found.low <= 0.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    rates = np.random.default_rng(4).uniform(1, 3, (2, DOCUMENTS))
    ours, theirs = [{"a": scored(rates[0])}], [{"a": scored(rates[1])}]
    assert paired_difference(ours, theirs, 200) == paired_difference(ours, theirs, 200)
    assert paired_difference(ours, theirs, 200) != paired_difference(ours, theirs, 200, seed=1)


@pytest.mark.parametrize(("low", "high", "excludes"), [(-2, -1, True), (1, 2, True), (-1, 1, False), (-1, 0, False)])
def test_an_interval_that_touches_zero_does_not_exclude_it(low, high, excludes):
    assert Interval(0.0, low, high).excludes_zero is excludes


def test_one_seed_has_no_spread():
    assert math.isnan(spread([1.0]))
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))
