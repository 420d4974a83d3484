"""Which pool to grow, and by how much, from its load and that of training."""

import math

import pytest

from engine.reporting.starvation import Load, replicas_needed, starvation


def test_the_full_pool_is_named_with_the_replicas_that_it_lacks():
    """One replica that works all the time feeds training for 39 % of its time: 1 / 0.39 = 2.6, so three are needed."""
    loads = [Load("corpus", 1, 0.1), Load("llama-2-7b", 3, 0.2), Load("mpt-7b", 1, 1.0)]
    assert starvation(loads, 0.39) == "mpt-7b: add 2 replicas, training waits 61 %"


def test_every_pool_that_would_hold_training_up_is_named():
    loads = [Load("corpus", 2, 0.6), Load("mpt-7b", 4, 0.9), Load("align and fuse", 2, 0.3)]
    expected = "corpus: add 1 replica, mpt-7b: add 3 replicas, training waits 50 %"
    assert starvation(loads, 0.5) == expected


@pytest.mark.parametrize("training", [1.0, 0.85, 0.0, math.nan])
def test_nothing_is_said_while_training_waits_little_or_has_not_begun(training):
    assert starvation([Load("mpt-7b", 1, 1.0)], training) == ""


def test_nothing_is_said_where_more_replicas_would_not_help():
    assert starvation([Load("mpt-7b", 2, 0.3), Load("corpus", 0, math.nan)], 0.6) == ""


def test_a_pool_with_the_replicas_that_it_needs_needs_no_more():
    load = Load("mpt-7b", 3, 0.8)
    needed = replicas_needed(load, 0.4)
    assert needed == 6
    grown = Load("mpt-7b", needed, 3 * 0.8 / 0.4 / needed)  # its work beside a training that never waits
    assert replicas_needed(grown, 1.0) == needed
