"""What surely does not fit on the nodes of a cluster, and where processes go that do."""

import itertools
import random

import pytest

from engine.spec import FusionSpec
from pipelines.cluster.needs import Need
from pipelines.cluster.placement import Room, first_fit, shortages
from pipelines.stream.needs import stream_needs


def needs(source: dict | None = None, training: dict | None = None, cluster: dict | None = None) -> tuple[Need, ...]:
    """Those of a stream with two sources, a reader and an aligner."""
    spec = FusionSpec(
        run={"name": "x", "output_dir": "out"},
        corpus={"paths": ["a.jsonl"]},
        target_model={"checkpoint": "target"},
        source_models=[{"name": name, "checkpoint": name, **(source or {})} for name in ("first", "second")],
        training=training or {},
        cluster=cluster or {},
    )
    return stream_needs(spec, readers=1, aligners=1)


def room(cpus: float, gpus: float = 0.0, name: str = "a", **labels: str) -> Room:
    """A node as ``ray.nodes`` returns it, which leaves out resources that the node does not have."""
    resources = {name: amount for name, amount in {"CPU": cpus, "GPU": gpus}.items() if amount}
    node = {"NodeManagerHostname": name, "Resources": resources, "Labels": {"ray.io/node-id": "0", **labels}}
    return Room.of(node, resources)


def faults(wanted: tuple[Need, ...], *rooms: Room) -> list[str]:
    return [str(fault) for fault in shortages(wanted, rooms)]


def test_a_process_that_fits_on_no_node_is_named_whatever_all_of_them_have():
    parallel = needs({"num_gpus": 1, "tensor_parallel_size": 2}, {"num_cpus_per_worker": 8})
    assert faults(parallel, room(10, 1), room(4, 4)) == []
    assert faults(parallel, room(6, 1), room(4, 1), room(6, 1), room(6, 1)) == [
        "source_models.0: one replica of first needs 1 logical CPU and 2 GPUs on one node, the best has 6 logical CPUs "
        "and 1 GPU; add a larger node, or lower source_models[].num_cpus, source_models[].num_gpus or "
        "source_models[].tensor_parallel_size",
        "source_models.1: one replica of second needs 1 logical CPU and 2 GPUs on one node, the best has 6 logical "
        "CPUs and 1 GPU; add a larger node, or lower source_models[].num_cpus, source_models[].num_gpus or "
        "source_models[].tensor_parallel_size",
        "training: one training worker needs 8 logical CPUs on one node, the best has 6 logical CPUs and 1 GPU; add a "
        "larger node, or lower training.num_cpus_per_worker or training.num_gpus_per_worker",
    ]
    tiny = [fault.partition(": one ")[2] for fault in faults(parallel, *[room(0.4)] * 40)]
    assert tiny[0].startswith(
        "replica of first needs 1 logical CPU and 2 GPUs on one node, the best has 0.4 logical CPUs and no GPU;"
    )
    assert "reader needs 0.5 logical CPUs on one node, the best has 0.4 logical CPUs; add a larger node" in tiny


def test_labels_that_no_node_has_are_told_once():
    labels = {"source_model_labels": {"pool": "sources", "zone": "!b"}, "training_labels": {"pool": "training"}}
    wanted = needs(cluster=labels)
    assert faults(wanted, room(4, pool="sources"), room(2, pool="training", zone="b")) == []
    assert faults(wanted, room(2, pool="sources", zone="b"), room(0.5, pool="training"), room(9))[:2] == [
        "cluster.source_model_labels: no node of the cluster has pool: sources, zone: !b; start nodes with these "
        "labels, or select others",
        "training: one training worker needs 1 logical CPU on one node, the best of those with pool: training has 0.5 "
        "logical CPUs; add a larger node, or lower training.num_cpus_per_worker or training.num_gpus_per_worker",
    ]


def test_everything_with_a_label_is_summed_over_the_nodes_that_have_it():
    """The whole cluster has twelve GPUs for ten; those that the sources may use are four for eight."""
    wanted = needs(
        {"num_gpus": 1, "replicas": 4},
        {"num_workers": 2, "global_batch_blocks": 2, "num_gpus_per_worker": 1},
        {"source_model_labels": {"pool": "sources"}},
    )
    rooms = [room(16, 4, pool="sources"), room(16, 8)]
    assert faults(wanted, *rooms) == [
        "cluster.source_model_labels: what needs pool: sources reserves 8 GPUs at once, these nodes have 4; add nodes, "
        "or ask for fewer processes (source_models[].replicas) or for smaller ones (source_models[].num_cpus, "
        "source_models[].num_gpus or source_models[].tensor_parallel_size)"
    ]
    assert faults(wanted, *rooms, room(4, 4, pool="sources")) == []
    busy = shortages(wanted, [room(1, 1, pool="sources"), room(15, 9)], free_of=[rooms[0], room(16, 9)])
    assert [fault.what for fault in busy] == [
        "what needs pool: sources reserves 8 logical CPUs at once, 1 of 16 are free",
        "what needs pool: sources reserves 8 GPUs at once, 1 of 4 are free",
    ]


def test_more_processes_of_a_size_than_the_nodes_hold_are_named_with_the_nodes():
    """Nine GPUs are free, but of the replicas with two each only three fit."""
    wanted = needs({"num_gpus": 1, "tensor_parallel_size": 2, "replicas": 2})
    rooms = [room(8, 3, "one"), room(8, 3, "two"), room(8, 3, "three")]
    assert faults(wanted, *rooms) == [
        "source_models.0: 4 processes (replica of first: 2, replica of second: 2) need at least 1 logical CPU and 2 "
        "GPUs each on one node, 3 of them fit (one 1, two 1, three 1); add nodes, or ask for fewer processes "
        "(source_models[].replicas) or for smaller ones (source_models[].num_cpus, source_models[].num_gpus or "
        "source_models[].tensor_parallel_size)"
    ]
    assert faults(wanted, *rooms[1:], room(8, 4, "four")) == []


@pytest.mark.parametrize(
    ("part", "replicas", "gpus", "fits"),
    [(0.25, 1, 1, True), (0.25, 1, 0, False), (0.6, 1, 2, True), (0.6, 2, 2, False), (0.1, 5, 1, True)],
)
def test_a_part_of_a_gpu_is_a_part_of_one(part, replicas, gpus, fits):
    """Ten parts of 0.1 fill one GPU, although the sum is not 1; 0.6 of a GPU leaves no other 0.6."""
    wanted = needs({"num_gpus": part, "replicas": replicas})
    found = shortages(wanted, [room(20, gpus)])
    assert (not found, not first_fit(wanted, [room(20, gpus)])) == (fits, fits)


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
    wanted = needs(cluster={"source_model_labels": {"pool": selector}})
    rooms = {label: room(9, pool=label) if label else room(9) for label in ("a", "b", None)}
    assert {label for label, one in rooms.items() if not faults(wanted, one)} == matching


def test_processes_that_may_be_on_few_nodes_and_large_ones_are_placed_first():
    """In the order of the spec the small ones would take the only places of the large ones."""
    small, large = Need("a", "small", 1, 1, count=4), Need("b", "large", 1, 4)
    picky = Need("c", "picky", 3, count=2, labels={"pool": "x"})
    rooms = [room(4, 4), room(4, 4), room(6, pool="x")]
    assert first_fit([small, large, picky], rooms) == []
    assert first_fit([small, large, picky], rooms[1:]) == [(small, 4)]


def fits_in_some_order(wanted: list[Need], rooms: list[Room]) -> bool:
    """The slow twin: tries every node for every process."""
    processes = [need for need in wanted for _ in range(need.count)]
    for places in itertools.product(range(len(rooms)), repeat=len(processes)):
        cpus, gpus = [one.cpus for one in rooms], [one.gpus for one in rooms]
        for need, place in zip(processes, places, strict=True):
            cpus[place] -= need.cpus
            gpus[place] -= need.gpus
            if need.labels and rooms[place].labels["pool"] != need.labels["pool"]:
                gpus[place] = -1
        if min(*cpus, *gpus) >= 0:
            return True
    return False


def test_nothing_is_refused_that_fits_and_what_is_placed_fits():
    """Against the slow twin on small clusters; where the two answers differ, neither claims too much."""
    draw = random.Random(0)
    missed = 0
    for _ in range(300):
        rooms = [room(draw.randint(1, 4), draw.randint(0, 4), pool=draw.choice("xy")) for _ in range(2)]
        wanted = [
            Need(
                str(n),
                str(n),
                draw.randint(1, 2),
                draw.randint(0, 2),
                draw.randint(1, 2),
                draw.choice([{}, {"pool": "x"}]),
            )
            for n in range(3)
        ]
        fits, placed = fits_in_some_order(wanted, rooms), not first_fit(wanted, rooms)
        assert not (fits and shortages(wanted, rooms)), (wanted, rooms)
        assert fits or not placed, (wanted, rooms)
        missed += fits != placed
    assert missed <= 3
