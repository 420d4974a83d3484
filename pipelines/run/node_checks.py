"""The look at every node of a cluster before a run starts: what the driver reaches may be out of reach elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fsspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.corpus.files import find_files
from engine.errors import Fault, PreflightError, first_line
from engine.model_files.local import CACHE_DIR
from engine.spec import FusionSpec, SourceModelSpec, TargetModelSpec
from engine.store import FIRST_PAUSE_SECONDS, TRIES
from pipelines.cluster.placement import Room
from pipelines.evaluation.merges import parts_of
from pipelines.evaluation.needs import evaluation_needs, merge_need
from pipelines.run.lease import LEASE_FILE
from pipelines.stream.needs import stream_needs
from pipelines.stream.output_folder import local_folder_faults
from pipelines.stream.sizes import FlowPlan

#: The longest wait for all nodes; a first look imports this project there.
MOST_SECONDS = 300.0

#: The longest wait of a node for all places that it looks at, at once: the client of a store that does not answer may
#: go on trying for many minutes.
MOST_SECONDS_THERE = 120.0

#: What is read of a file, in bytes.
FIRST_BYTES = 64

_COPY = "copy it to every node that needs it, or give a URL"
_REACH = "see that the node has the protocol's fsspec package, the store's credentials and a way to it"


@dataclass(frozen=True)
class Duties:
    """What may run on a node.

    Attributes:
        reads: readers and aligners; they need no label.
        scores: source models.
        trains: training workers.
        evaluates: models that are evaluated after training, and merges.
    """

    reads: bool = False
    scores: bool = False
    trains: bool = False
    evaluates: bool = False

    @classmethod
    def of(cls, spec: FusionSpec, node: Mapping[str, Any]) -> Duties:
        """The duties of a node as ``ray.nodes`` returns it: of all whose labels it has, those that fit on it."""
        *sources, worker, reader, aligner = stream_needs(spec, readers=1, aligners=1)
        merge = (merge_need(spec),) if spec.evaluation.merges else ()
        room = Room.of(node, node["Resources"])
        return cls(
            reads=any(map(room.can_hold, (reader, aligner))),
            scores=any(map(room.can_hold, sources)),
            trains=room.can_hold(worker),
            evaluates=any(map(room.can_hold, (*evaluation_needs(spec), *merge))),
        )


def check_nodes(spec: FusionSpec, flow: FlowPlan) -> None:
    """Ask all nodes at once, each by a task of its own; a cluster of one node has been looked at already.

    Raises:
        PreflightError: lists what is missing and where, and the nodes that do not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    mark, texts = _mark(spec.run.output_dir), _first_files(flow)
    look = ray.remote(num_cpus=0)(faults_here)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        found = look.options(scheduling_strategy=there).remote(spec, Duties.of(spec, node), texts, mark)
        asked[found] = node["NodeManagerHostname"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=MOST_SECONDS)
    nodes_of: dict[Fault, list[str]] = {}
    for found, name in asked.items():
        for fault in _answer(found) if found in answered else [_silence(MOST_SECONDS)]:
            nodes_of.setdefault(fault, []).append(name)
    if nodes_of:
        raise PreflightError(replace(fault, what=f"{_on(names)}: {fault.what}") for fault, names in nodes_of.items())


def faults_here(spec: FusionSpec, duties: Duties, texts: Mapping[str, str], mark: bytes | None) -> list[Fault]:
    """What this node lacks for its duties.

    Args:
        texts: field of the spec to the first file of each domain of the corpus.
        mark: content of the lease in the output folder, which a node that trains or evaluates must see.
    """
    looks = [_Look(where, place, _model) for where, place in _models(spec, duties)]
    if duties.reads:
        looks += [_Look(where, path, _first_bytes) for where, path in texts.items()]
        looks.append(_Look("alignment.cache_dir", spec.alignment.cache_dir, _folder))
    if duties.trains and spec.evaluation.every_steps:
        for domain, paths in spec.evaluation.corpora.items():
            where = f"evaluation.corpora.{domain}"
            looks.append(_Look(where, ", ".join(paths), partial(_held_out, where, paths)))
    if duties.evaluates and spec.evaluation.tasks:
        for index, folder in enumerate(spec.evaluation.task_folders):
            looks.append(_Look(f"evaluation.task_folders.{index}", folder, _model))
    if duties.trains or duties.evaluates:
        looks.append(_Look("run.output_dir", spec.run.output_dir, partial(_same_folder, mark)))
    faults = _faults_at_once(looks)
    remedy = "set HOME to a folder that can be written: checkpoints are copied there"
    return faults + [
        replace(fault, remedy=remedy) for fault in local_folder_faults("environment variable HOME", CACHE_DIR)
    ]


@dataclass(frozen=True)
class _Look:
    """A look at a place that a field of the spec names; ``reach`` returns its faults, or raises what is in the way."""

    where: str
    place: str
    reach: Callable[[str], list[Fault]]

    def faults(self) -> list[Fault]:
        """The faults of the last look; a store may fail for a moment, and is asked as often as by a reader."""
        is_in_store = "://" in self.place.replace("file://", "")
        found = self._faults_now()
        for number in range(TRIES - 1 if is_in_store else 0):
            if not found:
                break
            time.sleep(FIRST_PAUSE_SECONDS * 2**number)
            found = self._faults_now()
        return found

    def _faults_now(self) -> list[Fault]:
        remedy = _REACH if "://" in self.place else _COPY
        try:
            return [fault if fault.remedy else replace(fault, remedy=remedy) for fault in self.reach(self.place)]
        except Exception as error:  # every filesystem has its own errors, and its package may not be installed
            reason = f"{self.place} cannot be used: {type(error).__name__}: {first_line(error)}"
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) and "://" not in self.place:
                reason = f"there is no {self.place}"
            return [Fault(self.where, reason, remedy)]


def _faults_at_once(looks: Sequence[_Look]) -> list[Fault]:
    """The faults of all looks. One that takes too long is a fault, and its thread is left to itself."""
    found: dict[int, list[Fault]] = {}

    def make(number: int) -> None:
        found[number] = looks[number].faults()

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(len(looks))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + MOST_SECONDS_THERE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = f"does not answer within {MOST_SECONDS_THERE:g} seconds"
    return [
        fault
        for number, look in enumerate(looks)
        for fault in found.get(number, [Fault(look.where, f"{look.place} {silent}", _REACH)])
    ]


def _models(spec: FusionSpec, duties: Duties) -> Iterator[tuple[str, str]]:
    """Field and place of all model files that a node needs: weights where models run, tokenizers wherever text is cut
    and aligned."""
    if duties.trains or duties.reads or duties.evaluates:
        yield from _files_of("target_model", spec.target_model)
    if duties.scores or duties.reads or duties.evaluates:
        for index, source in enumerate(spec.source_models):
            yield from _files_of(f"source_models.{index}", source)
    if duties.evaluates:
        settings = spec.evaluation
        yield from ((f"evaluation.models.{label}", path) for label, path in settings.models.items())
        members = {f"evaluation.ensembles.{label}": names for label, names in settings.ensembles.items()}
        members |= {f"evaluation.merges.{label}": parts_of(merge) for label, merge in settings.merges.items()}
        yield from ((where, name) for where, names in members.items() for name in names)


def _files_of(where: str, model: TargetModelSpec | SourceModelSpec) -> Iterator[tuple[str, str]]:
    yield f"{where}.checkpoint", model.checkpoint
    if isinstance(model, SourceModelSpec) and model.adapter:
        yield f"{where}.adapter", model.adapter
    if model.chat_template:
        yield f"{where}.chat_template", model.chat_template


def _model(place: str) -> list[Fault]:
    """Reach a file or folder. Relative paths were made absolute; what is left is a hub's name, or a label."""
    if "://" in place:
        filesystem, path = fsspec.core.url_to_fs(place)
        filesystem.info(path)
    elif os.path.isabs(os.path.expanduser(place)):
        os.stat(os.path.expanduser(place))
    return []


def _folder(place: str) -> list[Fault]:
    """Reach a folder that may not be there yet. A store is not tried by writing: its owner may charge for that."""
    if "://" not in place:
        return local_folder_faults("alignment.cache_dir", place)
    filesystem, path = fsspec.core.url_to_fs(place)
    with suppress(FileNotFoundError):  # the store has answered, and the folder is made when it is needed
        filesystem.info(path)
    return []


def _first_bytes(path: str) -> list[Fault]:
    """Read a file's first bytes."""
    filesystem, name = fsspec.core.url_to_fs(path)
    if filesystem.info(name)["size"] != 0:  # a store refuses any range of an empty file
        filesystem.cat_file(name, start=0, end=FIRST_BYTES)
    return []


def _held_out(where: str, paths: Sequence[str], _place: str) -> list[Fault]:
    """Find the files of a held-out domain and read the first one's first bytes."""
    files, faults = find_files(paths, where)
    return faults or _first_bytes(files[0])


def _same_folder(mark: bytes | None, output_dir: str) -> list[Fault]:
    """A fault if the output folder is not the driver's, or a shared one cannot be written here."""
    if _mark(output_dir) != mark:
        reason = f"{output_dir} is not the folder that the driver writes"
        return [Fault("run.output_dir", reason, "give a URL (s3://...), or a folder that all nodes share")]
    protocol, _, folder = output_dir.rpartition("://")
    faults = local_folder_faults("run.output_dir", folder) if protocol in ("", "file") else []
    return [replace(fault, remedy="mount it for writing on every node that needs it") for fault in faults]


def _mark(output_dir: str) -> bytes | None:
    """What does not change of the lease in an output folder while it is renewed; None where there is no lease."""
    filesystem, folder = fsspec.core.url_to_fs(output_dir)
    try:
        return filesystem.cat_file(os.path.join(folder, LEASE_FILE)).rpartition(b'"token"')[2]
    except (FileNotFoundError, NotADirectoryError):
        return None


def _first_files(flow: FlowPlan) -> dict[str, str]:
    """The first file of each domain of the corpus, by the field of the spec that names it."""
    return {
        f"corpus.domains.{domain.name}.paths" if domain.name else "corpus.paths": domain.units[0].path
        for domain in flow.domains
    }


def _answer(found: ray.ObjectRef) -> list[Fault]:
    """A node's own faults, or one if it could not look."""
    try:
        return ray.get(found)
    except Exception as error:  # Ray's, of a node that was lost or could start no process; or of an import there
        reason = f"the look at what it lacks failed: {type(error).__name__}: {first_line(error)}"
        return [Fault("cluster", reason, "install this project with the same versions there, or remove the node")]


def _silence(seconds: float) -> Fault:
    remedy = "see by `ray status` and in Ray's logs there whether it can start a process, or remove the node"
    return Fault("cluster", f"no answer within {seconds:g} seconds", remedy)


def _on(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return f"on node {names[0]}" if len(names) == 1 else f"on the nodes {', '.join(names)}"
