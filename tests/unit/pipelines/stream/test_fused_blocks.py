"""The order of the batches on their way through the stages."""

from types import SimpleNamespace

import pytest

from pipelines.stream.fused_blocks import keeps_order


def spec(deterministic=False, **corpus):
    corpus = {"passes": 1, "exhausted": "stop", "domains": {}} | corpus
    return SimpleNamespace(run=SimpleNamespace(deterministic=deterministic), corpus=SimpleNamespace(**corpus))


@pytest.mark.parametrize("readers", [1, 3])
def test_text_that_is_read_again_is_learned_after_its_first_pass(readers):
    """Ray gives a replica that still loads several batches, and lets it begin with any of them."""
    assert keeps_order(spec(passes=4), readers)
    assert not keeps_order(spec(), readers)
    assert keeps_order(spec(deterministic=True), readers)


def test_readers_of_a_mixture_side_by_side_do_not_wait_for_each_other():
    mixture = {"domains": {"docs": None, "code": None}}
    assert not keeps_order(spec(**mixture), 1)
    for again in ({"passes": 2}, {"exhausted": "repeat"}):
        assert keeps_order(spec(**mixture, **again), 1)
        assert not keeps_order(spec(**mixture, **again), 2)
