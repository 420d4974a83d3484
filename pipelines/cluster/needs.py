"""What the processes of a run need of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Need:
    """The need of processes that are alike, such as the replicas of a source; each must fit on one node.

    Attributes:
        where: dotted path of the section that asks for them.
        who: one of them, in words.
        cpus, gpus: logical CPUs and GPUs that each reserves; a part of a GPU is a part of one.
        count: how many of them run at once.
        labels: label selector that their nodes must match; empty: any node.
        labels_where: dotted path of ``labels``.
        count_fields, size_fields: fields of the spec that lower their number, and the need of each.
    """

    where: str
    who: str
    cpus: float
    gpus: float = 0.0
    count: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    labels_where: str = ""
    count_fields: tuple[str, ...] = ()
    size_fields: tuple[str, ...] = ()


def total_cpus(needs: Iterable[Need]) -> float:
    """Logical CPUs that all processes reserve at once."""
    return as_ray_counts(sum(need.count * need.cpus for need in needs))


def total_gpus(needs: Iterable[Need]) -> float:
    """GPUs that all processes reserve at once."""
    return as_ray_counts(sum(need.count * need.gpus for need in needs))


def as_ray_counts(amount: float) -> float:
    """An amount in Ray's units of 0.0001: parts of a GPU that fill it may add up to 1.0000000000000002."""
    return round(amount, 4)
