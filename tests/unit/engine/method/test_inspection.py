"""Which answers and rows a look shows, and how it says that a source's row is aligned, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from engine.method.inspection import (
    AT_RANDOM,
    INSIDE,
    LONGER,
    NO_SUCH_ROW,
    SAME_TOKEN,
    SOURCES_DIFFER,
    SPLIT,
    chosen_answers,
    how_aligned,
    rounded,
)
from engine.method.rows import NO_ROW, SourceRows, TargetRows

pytestmark = pytest.mark.timeout(30)


def target_rows(*end_bytes: list[int]) -> TargetRows:
    """Answers whose tokens end at these bytes."""
    ends = np.array([end for ends in end_bytes for end in ends], np.int32)
    return TargetRows(
        token_ids=np.arange(len(ends), dtype=np.int32),
        end_bytes=ends,
        offsets=np.cumsum([0, *map(len, end_bytes)]),
        num_bytes=np.array([ends[-1] for ends in end_bytes], np.int32),
        first_bytes=np.zeros(len(end_bytes), np.int32),
        ends_document=np.ones(len(end_bytes), bool),
    )


def test_answers_whose_sources_differ_and_drawn_ones_take_turns():
    target = target_rows([0, 1, 2], [0, 1, 2], [0, 1, 2], [5])
    costs = np.array([[1.0, 1.5], [1.0, 3.0], [2.0, np.nan], [9.0, 1.0]])
    names = ["a", "b", "c", "d"]
    assert chosen_answers(names, target, costs) == {1: SOURCES_DIFFER, 2: AT_RANDOM}
    every = {1: SOURCES_DIFFER, 2: AT_RANDOM, 0: SOURCES_DIFFER}
    assert chosen_answers(names, target, costs, most=9) == every, "the last one has no row to learn"
    assert chosen_answers([], target_rows(), np.empty((0, 2))) == {}


def test_how_a_row_is_aligned():
    target = target_rows([0, 3, 7, 11, 14])
    ends = np.array([0, 3, 5, 14], np.int32)  # the source's tokens: 0-3, 3-5, 5-14
    source = SourceRows(
        *(
            np.array([0, len(ends)]),
            ends,
            ends,
            ends[:, None],
            ends[:, None].astype(np.float16),
            ends.astype(np.float32),
        ),
        mapping=ends,
        match=np.array([0, 1, 2, 2, NO_ROW], np.int32),
        cut=np.array([0, 0, 2, 6, 0], np.int32),
    )
    assert how_aligned(target, source).tolist() == [SAME_TOKEN, SPLIT, INSIDE, INSIDE, NO_SUCH_ROW]
    longer = replace(source, match=np.array([0, 1, 2, NO_ROW, NO_ROW], np.int32), cut=None)
    assert how_aligned(target, longer).tolist() == [SAME_TOKEN, SPLIT, LONGER, NO_SUCH_ROW, NO_SUCH_ROW]


def test_numbers_have_five_decimals_and_missing_ones_are_none():
    assert rounded(np.array([[0.123456789, np.nan], [np.inf, 2.0]])) == [[0.12346, None], [None, 2.0]]
