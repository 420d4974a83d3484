"""What an autoscaler is asked for, and for how long."""

import json
from types import SimpleNamespace

import pytest
from ray.autoscaler._private import commands
from ray.autoscaler.v2 import sdk as second
from ray.autoscaler.v2 import utils as version

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


def test_the_error_of_a_run_is_not_replaced_by_that_of_a_cluster_that_is_gone(monkeypatch):
    def request(bundles: list[dict], **_selectors: list) -> None:
        if not bundles:
            raise ConnectionError("the cluster is gone")

    monkeypatch.setattr(autoscaling, "request_resources", request)
    with pytest.raises(ValueError, match="of the run"), nodes_asked_for(NEEDS):
        raise ValueError("of the run")


def test_ray_takes_the_demand_where_no_autoscaler_works(monkeypatch):
    """Both of Ray's forms of it, up to the call that hands it to the cluster."""
    written, sent = [], []
    monkeypatch.setattr(commands.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(commands, "_internal_kv_put", lambda key, value, overwrite: written.append(json.loads(value)))
    monkeypatch.setattr(commands, "internal_kv_get_gcs_client", lambda: SimpleNamespace(address="10.0.0.1:6379"))
    monkeypatch.setattr(second, "request_cluster_resources", lambda address, demand: sent.append(demand))
    for is_second in (False, True):
        monkeypatch.setattr(version, "is_autoscaler_v2", lambda is_second=is_second: is_second)
        with nodes_asked_for(NEEDS[:1]):
            pass
    bundle = {"CPU": 1.0, "GPU": 0.5}
    assert written == [[bundle, bundle], []], "the first autoscaler leaves out the labels"
    assert sent == [[{"resources": bundle, "label_selector": {"pool": "sources"}}] * 2, []]
