"""The ledger: every passage once."""

import pytest

from engine.history.ledger import Ledger


def test_what_has_been_learned_is_known_and_listed_in_order():
    ledger = Ledger(["b"])
    ledger.learn(["c", "a"])
    assert "a" in ledger
    assert "d" not in ledger
    assert ledger.passage_ids() == ["a", "b", "c"]
    assert len(ledger) == 3


def test_learning_a_passage_twice_is_refused():
    ledger = Ledger(["a"])
    with pytest.raises(ValueError, match="'a' would be learned twice"):
        ledger.learn(["b", "a"])
