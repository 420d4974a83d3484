"""Replicas and training workers that fit on no node are faults before a run, which would wait for them for ever."""

import pytest

from engine.spec import FusionSpec
from pipelines.cluster import placement
from pipelines.cluster.placement import node_faults


def spec(source: dict | None = None, training: dict | None = None, cluster: dict | None = None) -> FusionSpec:
    return FusionSpec(
        run={"name": "x", "output_dir": "out"},
        corpus={"paths": ["a.jsonl"]},
        target_model={"checkpoint": "target"},
        source_models=[{"name": name, "checkpoint": name, **(source or {})} for name in ("first", "second")],
        training=training or {},
        cluster=cluster or {},
    )


def node(cpus: float, gpus: float = 0.0, alive: bool = True, **labels: str) -> dict:
    """A node as ``ray.nodes`` returns it, which leaves out resources that the node does not have."""
    resources = {name: amount for name, amount in {"CPU": cpus, "GPU": gpus}.items() if amount}
    return {"Alive": alive, "Resources": resources, "Labels": {"ray.io/node-id": "0", **labels}}


def faults(spec: FusionSpec, *nodes: dict) -> list[str]:
    return [str(fault) for fault in node_faults(spec, nodes)]


def test_a_replica_that_fits_on_no_node_is_told_whatever_all_of_them_have():
    parallel = spec({"num_gpus": 1, "tensor_parallel_size": 2}, {"num_cpus_per_worker": 8})
    assert faults(parallel, node(8, 1), node(4, 2), node(64, 4, alive=False)) == []
    assert faults(parallel, node(4, 1), node(6), node(64, 4, alive=False)) == [
        "source_models.0: one replica of first needs 1 logical CPUs and 2 GPUs on one node, the best has 4 logical "
        "CPUs and 1 GPUs; add a larger node, or lower num_cpus, num_gpus or tensor_parallel_size",
        "source_models.1: one replica of second needs 1 logical CPUs and 2 GPUs on one node, the best has 4 logical "
        "CPUs and 1 GPUs; add a larger node, or lower num_cpus, num_gpus or tensor_parallel_size",
        "training: one training worker needs 8 logical CPUs and 0 GPUs on one node, the best has 6 logical CPUs and 0 "
        "GPUs; add a larger node, or lower num_cpus_per_worker or num_gpus_per_worker",
    ]


def test_a_part_of_a_gpu_fits_where_there_is_one():
    assert faults(spec({"num_gpus": 0.25}), node(2, 1)) == []
    assert len(faults(spec({"num_gpus": 0.25}), node(2))) == 2


def test_labels_that_no_node_has_are_told_once():
    labels = {"source_model_labels": {"pool": "sources", "zone": "!b"}, "training_labels": {"pool": "training"}}
    assert faults(spec(cluster=labels), node(2, pool="sources"), node(2, pool="training", zone="b")) == []
    assert faults(spec(cluster=labels), node(2, pool="sources", zone="b"), node(0.5, pool="training"), node(9)) == [
        "cluster.source_model_labels: no node of the cluster has pool: sources, zone: !b; start nodes with these "
        "labels, or select others",
        "training: one training worker needs 1 logical CPUs and 0 GPUs on one node, the best of those with pool: "
        "training has 0.5 logical CPUs and 0 GPUs; add a larger node, or lower num_cpus_per_worker or "
        "num_gpus_per_worker",
    ]


@pytest.mark.parametrize(
    ("selector", "matching"),
    [
        ("a", {"a"}),
        ("!a", {"b", None}),
        ("in(a, b)", {"a", "b"}),
        ("in(a,c)", {"a"}),
        ("!in(a)", {"b", None}),
    ],
)
def test_labels_are_matched_as_ray_matches_them(selector, matching):
    """Ray's own answers to these were seen from tasks on a labelled node; it does this in C++ alone."""
    wanted = spec(cluster={"source_model_labels": {"pool": selector}})
    nodes = {label: node(2, pool=label) if label else node(2) for label in ("a", "b", None)}
    assert {label for label, one in nodes.items() if not faults(wanted, one)} == matching


def test_an_autoscaler_is_asked_for_every_replica_and_worker_and_then_no_more(monkeypatch):
    asked = []
    monkeypatch.setattr(placement, "request_resources", lambda **request: asked.append(request))
    monkeypatch.setattr(placement, "_grows", lambda: True)
    labels = {"source_model_labels": {"pool": "sources"}}
    wanted = spec({"num_gpus": 0.5, "replicas": 2}, {"num_workers": 2, "global_batch_blocks": 2}, cluster=labels)
    with placement.nodes_asked_for(wanted):
        (request,) = asked
        assert request["bundles"] == [{"CPU": 1.0, "GPU": 0.5}] * 4 + [{"CPU": 1.0}] * 2
        assert request["bundle_label_selectors"] == [{"pool": "sources"}] * 4 + [{}] * 2
    assert asked[1:] == [{"bundles": []}]
