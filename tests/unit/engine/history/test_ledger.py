"""The ledger: every training block once, and where reading begins."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.history.intervals import Intervals
from engine.history.ledger import SHARD_END, SHARD_START, Cursor, Entry, Ledger

#: A shard of ten blocks: lots of four, four and two blocks; batches of three.
AFTER = {
    3: SHARD_START,
    6: Cursor(4, 0, 20, 0, 0),
    9: Cursor(8, 1, 5, 700, 2),
    10: Cursor(10, SHARD_END, 0, 0, 0),
}


def entry(block: int, shard: int = 0) -> list[int]:
    end = min(end for end in AFTER if end > block)
    return Entry(shard, block, end, AFTER[end]).numbers()


def learned(*blocks: int, shard: int = 0) -> Ledger:
    ledger = Ledger()
    for block in blocks:
        ledger.learn(np.array([entry(block, shard)]))
        ledger = Ledger.of(json.loads(json.dumps(ledger.state())))
    return ledger


@settings(deadline=None)
@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_intervals_are_a_set(first, second):
    intervals = Intervals()
    intervals.add(first)
    intervals.add(second - first)
    union = first | second
    assert {number for number in range(50) if number in intervals} == union
    assert len(intervals) == len(union)
    assert list(Intervals(intervals)) == list(intervals)
    for start in (0, 7, 40):
        assert intervals.first_missing(start) == next(n for n in range(start, 50) if n not in union)
    if union:
        with pytest.raises(ValueError, match=f"^{max(union)} is in the set already"):
            intervals.add([max(union)])
    with pytest.raises(ValueError, match=r"^45 is in the set already"):
        intervals.add([44, 45, 46, 45])
    intervals.drop_below(11)
    assert {number for number in range(50) if number in intervals} == {number for number in union if number > 10}


def test_reading_begins_where_the_first_batch_that_is_not_learned_does():
    assert learned(0, 2, 5).progress(0).cursor == SHARD_START
    progress = learned(5, 4, 3, 8, 0, 2, 1).progress(0)
    assert progress.cursor == AFTER[6]
    assert list(progress.learned) == [(4, 6), (8, 9)]
    assert learned(*range(9)).progress(0).cursor == AFTER[9]


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(10)))
def test_a_shard_is_done_when_all_blocks_are_learned_whatever_their_order(order):
    ledger = learned(*order[:9], shard=7)
    assert not ledger.is_done(7)
    ledger.learn(np.array([entry(order[9], shard=7)]))
    assert ledger.is_done(7)
    assert ledger.state() == {"done": [(7, 8)], "blocks_done": 10, "open": {}}


def test_learning_a_block_twice_is_refused():
    for again in (0, 5):
        with pytest.raises(
            ValueError, match=f"shard 0: a training block would be learned twice: {again} is in the set"
        ):
            learned(0, 1, 2, 3, 5).learn(np.array([entry(again)]))
    with pytest.raises(ValueError, match="shard 0 has been learned to its end"):
        learned(*range(10)).learn(np.array([entry(3)]))


def test_workers_that_have_learned_nothing_change_nothing():
    ledger = Ledger()
    ledger.learn(np.empty((0, 8), np.int64))
    assert not ledger.is_begun
