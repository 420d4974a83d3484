"""Check that each replica and training worker fits on one node of the cluster that has the labels it needs.

A stream with a replica that fits on no node waits for it for ever, without a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state
from ray.autoscaler.sdk import request_resources

from engine.errors import Fault
from engine.spec import FusionSpec


def place_faults(spec: FusionSpec) -> list[Fault]:
    """A fault for each replica or worker that fits on no node of the Ray that this process uses."""
    return node_faults(spec, ray.nodes())


@contextmanager
def nodes_asked_for(spec: FusionSpec) -> Iterator[None]:
    """Ask an autoscaler, if the cluster has one, for nodes for all replicas and workers as long as the block lasts."""
    if not _grows():
        yield
        return
    needs = [need for need in _needs(spec) for _ in range(need.count)]
    request_resources(
        bundles=[
            {name: amount for name, amount in (("CPU", need.cpus), ("GPU", need.gpus)) if amount} for need in needs
        ],
        bundle_label_selectors=[dict(need.labels) for need in needs],
    )
    try:
        yield
    finally:
        request_resources(bundles=[])


def _grows() -> bool:
    """Whether an autoscaler may add nodes. It reports which, but not their labels."""
    config = state.state.get_cluster_config()
    return config is not None and bool(config.node_group_configs)


@dataclass(frozen=True)
class _Need:
    """The need of a source's replica or a training worker, which must fit on one node.

    Attributes:
        where: dotted path of its section.
        who: the replica or worker, in words.
        cpus, gpus: logical CPUs and GPUs that it reserves.
        labels_where: dotted path of ``labels``.
        labels: label selector that the node must match.
        fields: fields of the section that lower the need.
        count: how many of them run at once.
    """

    where: str
    who: str
    cpus: float
    gpus: float
    labels_where: str
    labels: Mapping[str, str]
    fields: str
    count: int = 1


def node_faults(spec: FusionSpec, nodes: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """A fault for each need that fits on no single node, however much all nodes have together.

    Args:
        nodes: as ``ray.nodes`` returns them; dead ones do not count.
    """
    nodes = [node for node in nodes if node["Alive"]]
    faults = (_node_fault(need, nodes) for need in _needs(spec))
    return list(dict.fromkeys(fault for fault in faults if fault))  # all sources share one fault about missing labels


def _needs(spec: FusionSpec) -> list[_Need]:
    training, labels = spec.training, spec.cluster.source_model_labels
    needs = [
        _Need(
            f"source_models.{index}",
            f"one replica of {source.name}",
            source.num_cpus,
            source.num_gpus * source.tensor_parallel_size,
            "cluster.source_model_labels",
            labels,
            "num_cpus, num_gpus or tensor_parallel_size",
            source.replicas,
        )
        for index, source in enumerate(spec.source_models)
    ]
    worker = _Need(
        "training",
        "one training worker",
        training.num_cpus_per_worker,
        training.num_gpus_per_worker,
        "cluster.training_labels",
        spec.cluster.training_labels,
        "num_cpus_per_worker or num_gpus_per_worker",
        training.num_workers,
    )
    evaluation = _Need(
        "evaluation",
        "one evaluated model",
        1.0,
        training.num_gpus_per_worker,
        "evaluation.labels",
        spec.evaluation.labels,
        "training.num_gpus_per_worker",
    )
    return [*needs, worker, *([evaluation] if spec.evaluation.labels else [])]


def _node_fault(need: _Need, nodes: Sequence[Mapping[str, Any]]) -> Fault | None:
    labelled = [node["Resources"] for node in nodes if has_labels(node.get("Labels", {}), need.labels)]
    if not labelled:
        reason = f"no node of the cluster has {_shown(need.labels)}"
        return Fault(need.labels_where, reason, "start nodes with these labels, or select others")
    rooms = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in labelled]
    if any(cpus >= need.cpus and gpus >= need.gpus for cpus, gpus in rooms):
        return None
    # The best node is the one closest to the need: first in GPUs, which are dearer, then in CPUs.
    cpus, gpus = max(rooms, key=lambda room: (min(room[1], need.gpus), room[0]))
    among = f" of those with {_shown(need.labels)}" if need.labels else ""
    reason = f"{need.who} needs {_amount(need.cpus, need.gpus)} on one node, the best{among} has {_amount(cpus, gpus)}"
    return Fault(need.where, reason, f"add a larger node, or lower {need.fields}")


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} logical CPUs and {gpus:g} GPUs"


def _shown(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {wanted}" for name, wanted in labels.items())


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Match a selector as Ray does: ``value`` or ``in(value, ...)``, negated by ``!``, also for a missing label."""
    return all(_is_selected(labels.get(name), wanted) for name, wanted in selector.items())


def _is_selected(label: str | None, wanted: str) -> bool:
    values = wanted.removeprefix("!")
    if values.startswith("in(") and values.endswith(")"):
        is_one = label in {value.strip() for value in values[3:-1].split(",")}
    else:
        is_one = label == values
    return is_one != wanted.startswith("!")
