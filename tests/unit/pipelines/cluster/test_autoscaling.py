"""What an autoscaler is asked for, and for how long."""

from types import SimpleNamespace

import pytest

from pipelines.cluster import autoscaling
from pipelines.cluster.autoscaling import NodesInUse, nodes_asked_for
from pipelines.cluster.needs import Need

NEEDS = (
    Need("source_models.0", "replica of one", 1.0, 0.5, 2, {"pool": "sources"}),
    Need("training", "training worker", 1.0, count=2),
    Need("corpus", "reader", 0.5, count=3),
)


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """The demands that an autoscaler of a test hears."""
    heard: list[dict] = []
    monkeypatch.setattr(autoscaling, "request_resources", lambda **request: heard.append(request))
    monkeypatch.setattr(autoscaling, "_grows", lambda: True)
    return heard


def test_an_autoscaler_is_asked_for_every_process_and_then_no_more(asked):
    with nodes_asked_for(NEEDS):
        (request,) = asked
        assert request["bundles"] == [{"CPU": 1.0, "GPU": 0.5}] * 2 + [{"CPU": 1.0}] * 2 + [{"CPU": 0.5}] * 3
        assert request["bundle_label_selectors"] == [{"pool": "sources"}] * 2 + [{}] * 5
    assert asked[1:] == [{"bundles": []}]


def test_the_demand_is_taken_back_at_the_first_step_so_that_it_outlives_no_killed_driver(asked):
    in_use = NodesInUse()
    in_use.see(SimpleNamespace(steps=()), now=0.0)
    assert asked == []
    for now in (1.0, 2.0):
        in_use.see(SimpleNamespace(steps=("a step",)), now)
    assert asked == [{"bundles": []}]


def test_a_cluster_that_does_not_grow_is_asked_for_nothing(asked, monkeypatch):
    monkeypatch.setattr(autoscaling, "_grows", lambda: False)
    with nodes_asked_for(NEEDS):
        NodesInUse().see(SimpleNamespace(steps=("a step",)), now=0.0)
    assert asked == []
