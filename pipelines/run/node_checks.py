"""The look at every node of a cluster before a run starts: a file that the driver sees may be missing elsewhere."""

from __future__ import annotations

import os
from dataclasses import replace

import fsspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.errors import Fault, PreflightError, first_line
from engine.model_files.local import CACHE_DIR
from engine.spec import FusionSpec
from pipelines.cluster.placement import has_labels
from pipelines.run.lease import LEASE_FILE
from pipelines.stream.output_folder import local_folder_faults

#: The longest wait for all nodes; a first look imports this project there.
MOST_SECONDS = 300.0


def check_nodes(spec: FusionSpec) -> None:
    """Look at every node from a task of its own; a cluster of one node has been looked at already.

    Raises:
        PreflightError: lists what is missing, by node.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    mark = _mark(spec.run.output_dir)
    look = ray.remote(num_cpus=0)(faults_here)
    asked = []
    for node in nodes:
        labels, there = node.get("Labels", {}), NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        trains = has_labels(labels, spec.cluster.training_labels)
        scores = has_labels(labels, spec.cluster.source_model_labels)
        found = look.options(scheduling_strategy=there).remote(spec, scores, trains, mark)
        asked.append((node["NodeManagerHostname"], found))
    faults = [
        Fault(fault.where, f"on node {name}: {fault.what}", fault.remedy)
        for name, found in asked
        for fault in ray.get(found, timeout=MOST_SECONDS)
    ]
    if faults:
        raise PreflightError(faults)


def faults_here(spec: FusionSpec, scores: bool, trains: bool, mark: bytes | None) -> list[Fault]:
    """What this node lacks.

    Args:
        scores, trains: whether source models and training workers may run here.
        mark: content of the lease in a local output folder, which a node that trains must see; None for a URL.
    """
    models = {"target_model.checkpoint": spec.target_model.checkpoint} if trains else {}
    if scores:
        for index, source in enumerate(spec.source_models):
            models[f"source_models.{index}.checkpoint"] = source.checkpoint
            models[f"source_models.{index}.adapter"] = source.adapter
    places = {**models, "run.output_dir": spec.run.output_dir, "alignment.cache_dir": spec.alignment.cache_dir}
    faults = [fault for where, place in places.items() for fault in _protocol_faults(where, place)]
    faults += [fault for where, path in models.items() for fault in _missing_model(where, path)]
    if "://" not in spec.alignment.cache_dir:
        faults += local_folder_faults("alignment.cache_dir", spec.alignment.cache_dir)
    remedy = "set HOME to a folder that can be written: checkpoints are copied there"
    faults += [replace(fault, remedy=remedy) for fault in local_folder_faults("environment variable HOME", CACHE_DIR)]
    if trains and mark is not None and _mark(spec.run.output_dir) != mark:
        reason = f"{spec.run.output_dir} is not the folder that the driver writes"
        faults.append(Fault("run.output_dir", reason, "give a URL (s3://...), or a folder that all nodes share"))
    return faults


def _mark(output_dir: str) -> bytes | None:
    """The lease in an output folder, which is written by now; None for a URL, empty where there is none."""
    if "://" in output_dir.removeprefix("file://"):
        return None
    try:
        with open(os.path.join(output_dir.removeprefix("file://"), LEASE_FILE), "rb") as file:
            return _token(file.read())
    except OSError:
        return b""


def _token(lease: bytes) -> bytes:
    """What does not change while the lease is renewed."""
    return lease.rpartition(b'"token"')[2]


def _protocol_faults(where: str, place: str) -> list[Fault]:
    if "://" not in place:
        return []
    try:
        fsspec.core.url_to_fs(place)
    except Exception as error:  # every filesystem has its own errors, and its package may not be installed
        reason = f"{place} cannot be used: {type(error).__name__}: {first_line(error)}"
        return [Fault(where, reason, "install the protocol's fsspec package on every node")]
    return []


def _missing_model(where: str, path: str) -> list[Fault]:
    """A fault if a local model is not here. Relative paths were made absolute; what is left is a hub's name."""
    if not os.path.isabs(os.path.expanduser(path)) or os.path.exists(os.path.expanduser(path)):
        return []
    return [Fault(where, f"there is no {path}", "copy it to every node of this group, or give a URL or a hub name")]
