"""Ensembles in bytes against a slow twin, against the usual ensemble of equal tokenizers, and within their bounds."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.bits_per_byte import ScoredText, bits_per_byte
from pipelines.evaluation.ensemble import ensemble

pytestmark = pytest.mark.timeout(60)

NUM_BYTES = 12


@st.composite
def scored_text(draw):
    """A text of a few bytes, scored: tokens of any length, some of no bytes, with or without BOS."""
    inner = draw(st.lists(st.integers(0, NUM_BYTES), max_size=8))
    first = 0 if draw(st.booleans()) else min([*inner, NUM_BYTES])
    boundaries = np.array([first, *sorted(inner), NUM_BYTES])
    nats = draw(st.lists(st.floats(0, 20), min_size=len(boundaries) - 1, max_size=len(boundaries) - 1))
    return ScoredText(boundaries, np.array(nats))


members = st.lists(scored_text(), min_size=1, max_size=4)


def spans_of(member, common):
    """Nats of one member between common boundaries: each token belongs to the span in which it ends."""
    found = [0.0] * (len(common) - 1)
    for end, nats in zip(member.boundaries[1:], member.nats, strict=True):
        for index, (left, right) in enumerate(pairwise(common)):
            begins_there = index == 0 and left == member.boundaries[0]
            if left < end <= right or (begins_there and end == left):
                found[index] += nats
    return found


@given(members)
def test_it_equals_its_slow_twin(members):
    common = sorted(set.intersection(*(set(member.boundaries.tolist()) for member in members)))
    by_member = [spans_of(member, common) for member in members]
    expected = [
        -math.log(sum(math.exp(-nats) for nats in span) / len(members)) for span in zip(*by_member, strict=True)
    ]
    found = ensemble(members)
    assert found.boundaries.tolist() == common
    assert found.nats == pytest.approx(expected, abs=1e-9)


@given(members)
def test_it_stays_within_its_bounds_on_every_span(members):
    found = ensemble(members)
    spans = np.array([spans_of(member, found.boundaries.tolist()) for member in members])
    if len(found.nats):
        assert (found.nats >= spans.min(axis=0) - 1e-9).all()
        assert (found.nats <= spans.min(axis=0) + math.log(len(members)) + 1e-9).all()
        assert (found.nats <= spans.mean(axis=0) + 1e-9).all()


@given(st.integers(1, 4), st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=1, max_size=6))
def test_equal_tokenizers_make_the_usual_ensemble(count, rows):
    """By hand: the mean of the models' probabilities of every token."""
    probs = np.array(rows)[:, :count]
    boundaries = np.cumsum([0, *range(1, len(rows) + 1)])
    found = ensemble([ScoredText(boundaries, -np.log(column)) for column in probs.T])
    assert found.nats == pytest.approx(-np.log(probs.mean(axis=1)))
    assert bits_per_byte([found]) == pytest.approx(-np.log2(probs.mean(axis=1)).sum() / boundaries[-1])


def test_three_tokens_against_two_by_hand():
    """``ab|c|d`` and ``ab|cd``: the spans are ab, with 1/2 and 1/4, and cd, with 1/2 * 1/4 and 3/8."""
    fine = ScoredText(np.array([0, 2, 3, 4]), -np.log([1 / 2, 1 / 2, 1 / 4]))
    coarse = ScoredText(np.array([0, 2, 4]), -np.log([1 / 4, 3 / 8]))
    found = ensemble([fine, coarse])
    assert found.boundaries.tolist() == [0, 2, 4]
    assert np.exp(-found.nats) == pytest.approx([3 / 8, 1 / 4])
