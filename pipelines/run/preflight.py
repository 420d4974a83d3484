"""The checks before a run starts; all faults are collected and raised once."""

from __future__ import annotations

import json
import os
from typing import Any

from actors.training.checkpoint_index import checkpoints_folder, latest
from engine.corpus.first_rows import unreadable_corpus
from engine.corpus.shards import fingerprint
from engine.errors import Fault, PreflightError, StoreError
from engine.reporting.trackers import tracker_faults
from engine.spec import EvaluationSpec, FusionSpec
from engine.spec.loading import dump_spec, load_spec
from engine.store import content, located, writing
from pipelines.evaluation.models import comparison_faults
from pipelines.stream.output_folder import written_folder_faults
from pipelines.stream.sizes import FlowPlan, derive_flow

SPEC_FILE = "spec.yaml"

#: Names the shards that the ledger counts.
CORPUS_FILE = "corpus.json"

#: Decides when a source model with ``retire`` is judged, and by which steps: there it may not change either.
_RETIRE_STEPS = "training.checkpoint_every_steps"

#: Fields that may change between two starts of a run: where and how fast it works, not what it computes.
PLACEMENT: dict[str, Any] = {
    "cluster": True,
    "corpus": {"most_skipped", "readers"},
    "run": {"tensorboard", "wandb_project"},
    "evaluation": set(EvaluationSpec.model_fields) - {"patience"},  # patience decides which weights are exported
    "alignment": {"cache_dir"},
    "training": {
        "num_workers",
        "num_cpus_per_worker",
        "num_gpus_per_worker",
        "micro_batch_blocks",
        "shard_within",
        "sync_gradients",
        "collective_timeout_hours",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "export_dtype",
        "max_tokens",
        "max_hours",
        "max_restarts",
    },
    "source_models": {
        "__all__": {
            "replicas",
            "most_replicas",
            "num_cpus",
            "num_gpus",
            "tensor_parallel_size",
            "batched_tokens",
            "kv_cache_bytes",
            "max_restarts",
        },
    },
}


def preflight(spec: FusionSpec) -> FlowPlan:
    """Check models, corpora and the output folder; nothing is written.

    Raises:
        PreflightError: lists everything that is missing or in the way.
    """
    further = [*comparison_faults(spec, trains_first=True), *tracker_faults(spec)]
    further += written_folder_faults(spec) or _occupied(spec)
    flow = derive_flow(spec, further)
    domains = {domain.name: domain.units for domain in flow.domains}
    faults = _other_corpus(spec, flow) or unreadable_corpus(spec.corpus, domains)
    if faults:
        raise PreflightError(faults)
    return flow


def _occupied(spec: FusionSpec) -> list[Fault]:
    """A fault if the output folder holds another run that has learned something: this one must not go on from there.

    A run that has failed before its first checkpoint may be started again with a corrected spec.
    """
    try:
        data = content(os.path.join(spec.run.output_dir, SPEC_FILE))
        if data is None:
            return []
        earlier = load_spec(_yaml(data))
        if _essence(earlier) == _essence(spec) or latest(checkpoints_folder(spec.run.output_dir)) is None:
            return []
    except Exception as error:  # any filesystem's own error, none installed, or a spec that is no longer one
        reason = f"{spec.run.output_dir} cannot be used: {type(error).__name__}: {error}"
        return [Fault("run.output_dir", reason, "choose another folder")]
    difference = _first_difference(earlier, spec)
    if difference.startswith(f"its {_RETIRE_STEPS}"):
        difference += ": a source with retire is judged at each checkpoint, by the steps since the one before"
    reason = f"{spec.run.output_dir} holds another run ({difference})"
    return [Fault("run.output_dir", reason, "set it back, choose another folder, or remove that run")]


def _other_corpus(spec: FusionSpec, flow: FlowPlan) -> list[Fault]:
    """A fault if the run has learned something of a corpus with other shards; the ledger knows only their numbers."""
    try:
        data = content(os.path.join(spec.run.output_dir, CORPUS_FILE))
        if data is None or latest(checkpoints_folder(spec.run.output_dir)) is None:
            return []
    except StoreError as error:
        return [Fault("run.output_dir", str(error))]
    earlier, now = json.loads(data), _corpus(flow)
    if earlier == now:
        return []
    seen = f"it had {earlier['units']} units in {earlier['shards']} shards, now {now['units']} in {now['shards']}"
    reason = f"the corpus of {spec.run.output_dir} has changed since its last checkpoint: {seen}, or other names"
    where = "corpus.domains" if spec.corpus.domains else "corpus.paths"
    return [Fault(where, reason, "bring its files back, or choose another run.output_dir")]


def _corpus(flow: FlowPlan) -> dict[str, Any]:
    """What must stay the same of the corpus while a run goes on."""
    shards = flow.corpus_shards
    return {"shards": len(shards), "units": len(flow.corpus_units), "fingerprint": fingerprint(shards)}


def _yaml(data: bytes) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(data)


def _essence(spec: FusionSpec) -> dict[str, Any]:
    """The fields that must stay as they are while a run goes on."""
    essence = spec.model_dump(mode="json", exclude=PLACEMENT)
    if any(source.retire for source in spec.source_models):
        essence["training"]["checkpoint_every_steps"] = spec.training.checkpoint_every_steps
    return essence


def _first_difference(earlier: FusionSpec, spec: FusionSpec) -> str:
    before, now = _essence(earlier), _essence(spec)
    section = next(name for name in now if before[name] != now[name])
    if not isinstance(now[section], dict):
        return f"its {section} differ"
    name = next(name for name in now[section] if before[section].get(name) != now[section][name])
    return f"its {section}.{name} is {before[section].get(name)!r}, not {now[section][name]!r}"


def write_spec(spec: FusionSpec, flow: FlowPlan) -> None:
    """Write the resolved spec, and what the run's corpus is, to the output folder.

    Raises:
        StoreError: they cannot be written.
    """
    filesystem, folder = located(spec.run.output_dir)
    with writing(spec.run.output_dir, "the run's spec"):
        filesystem.makedirs(folder, exist_ok=True)
        filesystem.pipe_file(os.path.join(folder, CORPUS_FILE), json.dumps(_corpus(flow)).encode("utf8"))
        filesystem.pipe_file(os.path.join(folder, SPEC_FILE), dump_spec(spec).encode("utf8"))
