"""Levenshtein distances in numba: exact, with the ties as the authors' code breaks them."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.method.edit_distance import align_by_edits, nearest
from tests.support import slow_edit_distance as slow

#: Few letters, so that many pairs tie; letters beyond ASCII, beyond the first plane, and half a surrogate pair.
TIES = st.text("ab▁", max_size=6)
ANY = st.text(max_size=12)
RARE = st.text(["a", "é", "▁", "Ġ", "\u0301", "\U0001f600", "\U00010348", "\ud800", "\x00"], max_size=10)
LONG = st.builds(
    lambda text, times, tail: text * times + tail, st.text("abc", min_size=1, max_size=9), st.integers(6, 20), TIES
)
MIXED = st.one_of(TIES, ANY, RARE, LONG)


def assert_nearest(sources: list[str], targets: list[str], threads: int = 1) -> None:
    found, distances = nearest(sources, targets, threads)
    assert found.dtype == distances.dtype == np.int32
    assert (found.tolist(), distances.tolist()) == slow.nearest(sources, targets)


def assert_aligned(targets: list[str], sources: list[str]) -> None:
    cost, first, last = align_by_edits(targets, sources)
    assert type(cost) is int and first.dtype == last.dtype == np.int32
    assert (cost, ranges(first, last)) == slow.align_by_edits(targets, sources)


def ranges(first: np.ndarray, last: np.ndarray) -> list[list[int]]:
    return [list(range(start, end + 1)) for start, end in zip(first.tolist(), last.tolist(), strict=True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(TIES, max_size=12), st.lists(TIES, min_size=1, max_size=25))
def test_nearest_equals_its_twin_where_many_tie(sources, targets):
    assert_nearest(sources, targets)


@settings(max_examples=150, deadline=None)
@given(st.lists(MIXED, max_size=5), st.lists(MIXED, min_size=1, max_size=6), st.integers(1, 3))
def test_nearest_equals_its_twin(sources, targets, threads):
    assert_nearest(sources, targets, threads)


@pytest.mark.parametrize("lengths", [(63, 64), (64, 65), (65, 130), (200, 3), (3, 200)])
def test_strings_around_and_beyond_one_machine_word(lengths):
    draw = random.Random(7)
    sources, targets = (["".join(draw.choices("abcd", k=length)) for _ in range(3)] for length in lengths)
    assert_nearest(sources, targets)
    assert_nearest([source[:-2] + "x" + source[-1] for source in sources], sources)
    assert_aligned(targets, sources)


def test_several_threads_share_many_sources():
    draw = random.Random(3)
    sources = ["".join(draw.choices("abcdef", k=draw.randint(0, 7))) for _ in range(2500)]
    targets = ["".join(draw.choices("abcdef", k=draw.randint(0, 7))) for _ in range(40)]
    assert_nearest(sources, targets, threads=3)


def test_of_equal_targets_the_first_counts():
    found, distances = nearest(["b", "zz", "b"], ["a", "b", "b", "zzz", "zzz"])
    assert (found.tolist(), distances.tolist()) == ([1, 3, 1], [0, 1, 0])


def test_without_sources_there_is_nothing_to_find():
    found, distances = nearest([], ["a"])
    assert found.shape == distances.shape == (0,) and found.dtype == distances.dtype == np.int32


def test_without_targets_there_is_nothing_to_choose_from():
    with pytest.raises(ValueError, match="0 target strings for 2 source strings"):
        nearest(["a", "b"], [])


@settings(max_examples=150, deadline=None)
@given(st.lists(TIES, max_size=14), st.lists(TIES, max_size=14))
def test_alignment_equals_its_twin_where_many_tie(targets, sources):
    assert_aligned(targets, sources)


@settings(max_examples=100, deadline=None)
@given(st.lists(MIXED, max_size=5), st.lists(MIXED, max_size=5))
def test_alignment_equals_its_twin(targets, sources):
    assert_aligned(targets, sources)


def test_alignment_without_tokens_on_one_side_finds_none():
    for targets, sources, expected in ([[], ["a"], []], [["a", ""], [], [-1, -1]], [[], [], []]):
        cost, first, last = align_by_edits(targets, sources)
        assert (cost, first.tolist(), last.tolist()) == (0, expected, expected)
        assert first.dtype == last.dtype == np.int32
