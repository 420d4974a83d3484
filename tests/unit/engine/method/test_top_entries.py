"""The highest masses of a row, and their numbers in float16."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.method.top_entries import add, as_float16, choosing_room, take_masses, write_top


def test_probabilities_are_rounded_to_float16_as_numpy_does():
    """All numbers of float16 up to 1, those half way between two of them, and others."""
    halves = np.arange(np.float16(1.0).view(np.uint16) + 1, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    others = np.exp(np.random.default_rng(0).uniform(-20, 0, 100_000))
    for probs in (halves, between, others, np.zeros((0, 4)), np.ones((2, 3))):
        probs = probs.astype(np.float32)
        np.testing.assert_array_equal(as_float16(probs), probs.astype(np.float16))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 80))
def test_the_highest_masses_are_written(seed, size, top_k):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 100, size)
    masses = np.round(np.exp(random.uniform(-8, -6, size)), 4)  # several are equal, some are 0
    accumulator, touched, count, room = np.zeros(100), np.empty(size, np.int64), 0, choosing_room(size)
    for token, mass in zip(tokens, masses, strict=True):
        count = add(token, mass, accumulator, touched, count)
    ids, probs = np.full((1, top_k), -1, np.int32), np.zeros((1, top_k), np.float32)
    total = take_masses(accumulator, touched, count, room[0])
    write_top(touched, count, room, 2.0, ids, probs, 0)
    sums = np.zeros(100)
    np.add.at(sums, tokens, masses)
    expected = sorted((-mass, token) for token, mass in enumerate(sums) if mass)[:top_k]
    assert not accumulator.any()
    assert np.isclose(total, masses.sum())
    assert (ids[0, len(expected) :] == -1).all()
    found = dict(zip(ids[0, : len(expected)].tolist(), probs[0].tolist(), strict=False))
    assert found == pytest.approx({token: -2 * mass for mass, token in expected}, rel=1e-6)
