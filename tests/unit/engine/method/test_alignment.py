"""Token alignment: shared end offsets, and nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.method.alignment import match_end_bytes
from tests import oracles

#: End offsets of one passage: ascending, with tokens of no bytes and a BOS at 0.
ENDS = st.lists(st.integers(0, 4), min_size=1, max_size=25).map(lambda steps: np.cumsum(steps).tolist())


def align(targets: list[list[int]], sources: list[list[int]], alike: list[bool] | None = None) -> list[list[int]]:
    offsets = [np.cumsum([0, *map(len, rows)], dtype=np.int64) for rows in (targets, sources)]
    flat = [np.array([end for row in rows for end in row], np.int32) for rows in (targets, sources)]
    match = match_end_bytes(flat[0], offsets[0], flat[1], offsets[1], np.array(alike or [True] * len(targets)))
    return [match[a:b].tolist() for a, b in zip(offsets[0][:-1], offsets[0][1:], strict=True)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ENDS, st.one_of(st.just([]), ENDS), st.booleans()), min_size=1, max_size=5))
def test_the_kernel_equals_its_twin(passages):
    targets, sources, alike = [list(side) for side in zip(*passages, strict=True)]
    expected = [oracles.match_end_bytes(*passage) for passage in passages]
    assert align(targets, sources, alike) == expected


def test_the_row_before_eos_learns_eos():
    # Target: BOS a b EOS. Source rows: BOS a b, where row "b" is what the source says after all bytes: its EOS.
    assert align([[0, 1, 2, 2]], [[0, 1, 2]]) == [[0, 1, 2, -1]]


def test_a_token_of_no_bytes_leaves_only_the_last_row_of_its_place():
    # A lone dummy prefix after BOS: the row of BOS predicts the prefix, the row after it the first character.
    assert align([[0, 0, 3, 3]], [[0, 0, 3]]) == [[-1, 1, 2, -1]]
    assert align([[2, 5, 5, 7, 7]], [[2, 2, 5, 7]]) == [[1, -1, 2, 3, -1]]


def test_at_the_beginning_only_like_rows_match():
    # After BOS a tokenizer with dummy prefix says " The", one without says "The".
    assert align([[0, 3, 3]], [[0, 3]], [False]) == [[-1, 1, -1]]
    # Both have the prefix, but for one it is a token of its own: BOS of the other predicts more than that.
    assert align([[0, 0, 3, 3]], [[0, 3]]) == [[-1, -1, 1, -1]]
    assert align([[0, 3, 3]], [[0, 0, 3]]) == [[-1, 2, -1]]


def test_without_bos_the_first_row_has_no_partner():
    assert align([[0, 3, 3]], [[3]]) == [[-1, 0, -1]]
