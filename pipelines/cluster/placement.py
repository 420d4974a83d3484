"""Whether the processes of a run fit on the nodes of a cluster, by what each node has or what is free of it.

A stream with a process that fits on no node waits for it forever, without a message.

To find out whether many processes of several sizes fit on many nodes is hard. Two simpler answers stand in for it.
``shortages`` lists what surely cannot fit, and is the only reason to refuse a run. ``first_fit`` finds nodes for all in
most cases where they fit, but not in all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import Fault
from pipelines.cluster.needs import Need, as_ray_counts, total_cpus, total_gpus

#: Ray counts resources in units of 0.0001.
UNITS = 10_000

#: Nodes that a message lists.
MOST_NODES = 8


@dataclass(frozen=True)
class Room:
    """What a node has, or what is free there.

    Attributes:
        node: its host name.
        labels: of the node.
        cpus, gpus: logical CPUs and GPUs.
        devices: the GPUs of the node, free or not; a part of a GPU must be of one of them.
    """

    node: str
    labels: Mapping[str, str]
    cpus: float
    gpus: float
    devices: int

    @classmethod
    def of(cls, node: Mapping[str, Any], resources: Mapping[str, float]) -> Room:
        """The room of a node as ``ray.nodes`` returns it, if it has these resources."""
        devices = math.ceil(node["Resources"].get("GPU", 0.0))
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        return cls(node.get("NodeManagerHostname", ""), node.get("Labels", {}), cpus, gpus, devices)

    def can_hold(self, need: Need) -> bool:
        """Whether one process of a need fits here if nothing else does, by its labels too."""
        return has_labels(self.labels, need.labels) and self.most(need) > 0

    def most(self, need: Need) -> float:
        """How many processes of a need fit here if nothing else does; infinity for one that reserves nothing."""
        gpus = _times(self.gpus, need.gpus)
        if 0.0 < need.gpus < 1.0:
            gpus = min(gpus, self.devices * _times(1.0, need.gpus))
        return min(_times(self.cpus, need.cpus), gpus)


def shortages(needs: Sequence[Need], rooms: Sequence[Room], free_of: Sequence[Room] = ()) -> list[Fault]:
    """A fault for everything that surely does not fit, in whatever way the processes are placed.

    These are labels that no node has; one process larger than every node that it may be on; all that must be on some
    nodes if it is more than they have together; and, where none of these is the case, more processes of at least one
    size than these nodes can hold of that size.

    Args:
        rooms: what each node has.
        free_of: what each node has, where ``rooms`` says what is free of it; for the messages.
    """
    labelled = [_labelled(need, rooms) for need in needs]
    faults = [_missing_labels(need) for need, found in zip(needs, labelled, strict=True) if not found]
    placeable = [(need, found) for need, found in zip(needs, labelled, strict=True) if found]
    faults += [
        _too_large(need, rooms, found, bool(free_of))
        for need, found in placeable
        if not any(rooms[number].most(need) for number in found)
    ]
    faults += _sums(placeable, rooms, free_of)
    faults = faults or _too_many(placeable, rooms, bool(free_of))
    return list(dict.fromkeys(faults))  # all sources share one fault about missing labels


def first_fit(needs: Sequence[Need], rooms: Sequence[Room]) -> list[tuple[Need, int]]:
    """The processes without a node after all were placed, one after the other, and how many of each need.

    First come those that may be on the fewest nodes, and of these the largest; each goes where it leaves the least.
    Another order may find a node for all.
    """
    shelves = [_Shelf(room) for room in rooms]
    order = sorted(needs, key=lambda need: (len(_labelled(need, rooms)), -need.gpus, -need.cpus))
    left = []
    for need in order:
        allowed = [shelves[number] for number in _labelled(need, rooms)]
        for placed in range(need.count):
            fitting = [shelf for shelf in allowed if shelf.holds(need)]
            if not fitting:
                left.append((need, need.count - placed))
                break
            min(fitting, key=lambda shelf: (sum(shelf.gpus), shelf.cpus)).take(need)
    return left


class _Shelf:
    """What is left of a room, in Ray's units, GPU by GPU; of a GPU in use it is not known which, so all is on one."""

    def __init__(self, room: Room):
        self.cpus = _units(room.cpus)
        whole, part = divmod(_units(room.gpus), UNITS)
        self.gpus = [UNITS] * whole + [part] * bool(part)

    def holds(self, need: Need) -> bool:
        return self.cpus >= _units(need.cpus) and len(self._devices(need)) >= math.ceil(need.gpus)

    def take(self, need: Need) -> None:
        self.cpus -= _units(need.cpus)
        for device in self._devices(need)[: math.ceil(need.gpus)]:
            self.gpus[device] -= min(UNITS, _units(need.gpus))

    def _devices(self, need: Need) -> list[int]:
        """The GPUs with room for the part of one that is needed, or that are free as a whole; the fullest first."""
        part = min(UNITS, _units(need.gpus))
        return sorted((place for place, free in enumerate(self.gpus) if free >= part), key=self.gpus.__getitem__)


def _missing_labels(need: Need) -> Fault:
    reason = f"no node of the cluster has {_shown(need.labels)}"
    return Fault(need.labels_where, reason, "start nodes with these labels, or select others")


def _too_large(need: Need, rooms: Sequence[Room], labelled: Collection[int], is_free: bool) -> Fault:
    # The best node is the one closest to the need: first in GPUs, which are dearer, then in CPUs.
    best = max((rooms[number] for number in labelled), key=lambda room: (min(room.gpus, need.gpus), room.cpus))
    among = f" of those with {_shown(need.labels)}" if need.labels else ""
    lacks_gpus = " and no GPU" if need.gpus and not best.gpus else ""
    seen = f"the best{among} has {_amount(best.cpus, best.gpus)}{lacks_gpus}" + (" free" if is_free else "")
    reason = f"one {need.who} needs {_amount(need.cpus, need.gpus)} on one node, {seen}"
    smaller = f", or lower {_either(need.size_fields)}" if need.size_fields else ""
    return Fault(need.where, reason, f"add a larger node{smaller}")


def _sums(
    placeable: Sequence[tuple[Need, frozenset[int]]], rooms: Sequence[Room], free_of: Sequence[Room]
) -> list[Fault]:
    """Faults of all processes that can be on no other than some nodes, and reserve more than these have together."""
    everywhere = frozenset(range(len(rooms)))
    faults = []
    for nodes in dict.fromkeys([everywhere, *(labelled for _, labelled in placeable)]):
        inside = [(need, labelled) for need, labelled in placeable if labelled <= nodes]
        needs = [need for need, _ in inside]
        selector = next((need for need, labelled in inside if labelled == nodes and nodes != everywhere), None)
        for name, needed, amount in (("logical CPU", total_cpus(needs), "cpus"), ("GPU", total_gpus(needs), "gpus")):
            there = as_ray_counts(sum(getattr(rooms[number], amount) for number in nodes))
            if there >= needed:
                continue
            who = f"what needs {_shown(selector.labels)}" if selector else "the run"
            owner = "these nodes have" if selector else "the cluster has"
            of = as_ray_counts(sum(getattr(free_of[number], amount) for number in nodes)) if free_of else 0.0
            seen = f"{there:g} of {of:g} are free" if free_of else f"{owner} {there:g}"
            reason = f"{who} reserves {_counted(needed, name)} at once, {seen}"
            reserving = [need for need in needs if getattr(need, amount)]
            faults.append(Fault(selector.labels_where if selector else "cluster", reason, _remedy(reserving)))
    return faults


def _too_many(placeable: Sequence[tuple[Need, frozenset[int]]], rooms: Sequence[Room], is_free: bool) -> list[Fault]:
    """Faults of processes of at least one size of which their nodes hold fewer, whichever way they are placed."""
    faults = {}
    for need, labelled in placeable:
        as_large = [
            other
            for other, nodes in placeable
            if other.cpus >= need.cpus and other.gpus >= need.gpus and nodes <= labelled
        ]
        wanted = sum(other.count for other in as_large)
        held = {number: rooms[number].most(need) for number in labelled}
        if wanted <= sum(held.values()):
            continue
        who = ", ".join(f"{other.who}: {other.count}" for other in as_large)
        each = f"{'at least ' if len(as_large) > 1 else ''}{_amount(need.cpus, need.gpus)}"
        reason = f"{wanted} processes ({who}) need {each} each on one node, {sum(held.values()):g} of them fit"
        reason += f"{' now' if is_free else ''} ({_by_node(held, rooms)})"
        faults.setdefault(tuple(map(id, as_large)), Fault(need.where, reason, _remedy(as_large)))
    return list(faults.values())


def _remedy(needs: Sequence[Need]) -> str:
    """What to do where processes are too many for their nodes."""
    ways = {
        "fewer processes": [field for need in needs for field in need.count_fields],
        "smaller ones": [field for need in needs for field in need.size_fields],
    }
    asked = [f"for {way} ({_either(fields)})" for way, fields in ways.items() if fields]
    return "add nodes" + (f", or ask {' or '.join(asked)}" if asked else "")


def _either(fields: Sequence[str]) -> str:
    *first, last = dict.fromkeys(fields)
    return f"{', '.join(first)} or {last}" if first else last


def _by_node(held: Mapping[int, float], rooms: Sequence[Room]) -> str:
    shown = [f"{rooms[number].node} {count:g}" for number, count in sorted(held.items())]
    more = len(shown) - MOST_NODES
    return ", ".join(shown[:MOST_NODES]) + (f" and {more} more nodes" if more > 0 else "")


def _labelled(need: Need, rooms: Sequence[Room]) -> frozenset[int]:
    """The numbers of the rooms where a need may be by its labels."""
    return frozenset(number for number, room in enumerate(rooms) if has_labels(room.labels, need.labels))


def _times(amount: float, part: float) -> float:
    """How often a part is in an amount."""
    return _units(amount) // _units(part) if _units(part) else math.inf


def _units(amount: float) -> int:
    return round(amount * UNITS)


def _amount(cpus: float, gpus: float) -> str:
    return _counted(cpus, "logical CPU") + (f" and {_counted(gpus, 'GPU')}" if gpus else "")


def _counted(amount: float, noun: str) -> str:
    return f"{amount:g} {noun}" + ("" if amount == 1 else "s")


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
