"""Which models an evaluation compares, by label, and what must be true of them before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from engine.corpus.files import find_files, units_of
from engine.corpus.first_rows import unreadable_domain
from engine.errors import Fault, FusionError
from engine.model_files.checkpoint import Checkpoint
from engine.spec import FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.merges import parts_of, unlike
from pipelines.evaluation.tasks import unknown_tasks

_LIST = "`python -m lm_eval ls tasks` lists them"


def export_dir(spec: FusionSpec) -> str:
    """Where a run leaves the trained target in Hugging Face format."""
    return os.path.join(spec.run.output_dir, "export")


def evaluation_labels(spec: FusionSpec) -> dict[str, str]:
    """Labels of the nodes where the evaluation after training runs."""
    return spec.evaluation.labels or spec.cluster.training_labels


def compared_models(spec: FusionSpec) -> dict[str, Checkpoint]:
    """Label to checkpoint of everything that an evaluation of this spec compares, merges and ensembles aside."""
    models = _models_before(spec)
    export = export_dir(spec)
    if "://" in export or os.path.exists(export):
        models[_trained_label(spec)] = Checkpoint(export)
    return models


def named(models: Mapping[str, Checkpoint], name: str) -> Checkpoint:
    """The model that a merge or an ensemble names: by its label, or else by its path."""
    return models.get(name, Checkpoint(name))


def comparison_faults(spec: FusionSpec, trains_first: bool) -> list[Fault]:
    """Everything about ``spec.evaluation`` that can be wrong and that its models and files show before any work.

    Args:
        trains_first: whether the run's own export, which a merge or an ensemble may name, is still to come.
    """
    faults: list[Fault] = []
    for domain, paths in spec.evaluation.corpora.items():
        files, missing = find_files(paths, f"evaluation.corpora.{domain}")
        faults += missing or unreadable_domain(spec.corpus, domain, (unit for path in files for unit in units_of(path)))
    models = compared_models(spec)
    if trains_first:  # what will be merged is of the target's shape and vocabulary
        models[_trained_label(spec)] = Checkpoint.of(spec.target_model)
    labels = {*models, *spec.evaluation.merges}
    for label, members in spec.evaluation.ensembles.items():
        for index, member in enumerate(members):
            faults += _unloadable(f"evaluation.ensembles.{label}.{index}", member, labels)
    for label in spec.evaluation.merges:
        faults += _unmergeable(spec, label, models)
    return faults + _task_faults(spec)


def _models_before(spec: FusionSpec) -> dict[str, Checkpoint]:
    models = {"target before": Checkpoint.of(spec.target_model)}
    models |= {f"source {source.name}": Checkpoint.of(source) for source in spec.source_models}
    return models | {label: Checkpoint(path) for label, path in spec.evaluation.models.items()}


def _trained_label(spec: FusionSpec) -> str:
    return "fused target" if spec.source_models else "continued target"


def _unloadable(where: str, member: str, labels: set[str]) -> list[Fault]:
    """A fault if a member is neither a label nor a checkpoint with a tokenizer."""
    if member in labels:
        return []
    try:
        PassageTokenizer.load(Checkpoint(member))
    except (OSError, ValueError, FusionError) as error:
        reason = f"{member!r} is neither a label nor a checkpoint: {str(error).strip().splitlines()[0]}"
        return [Fault(where, reason, f"labels: {', '.join(sorted(labels))}")]
    return []


def _unmergeable(spec: FusionSpec, label: str, models: Mapping[str, Checkpoint]) -> list[Fault]:
    """The faults of a merge."""
    where = f"evaluation.merges.{label}"
    parts = parts_of(spec.evaluation.merges[label])
    faults = [fault for part in parts for fault in _unloadable(where, part, set(models))]
    if faults:
        return faults
    reasons = unlike([named(models, part) for part in parts])
    return [Fault(where, reason, "merge models of one architecture, size and vocabulary") for reason in reasons]


def _task_faults(spec: FusionSpec) -> list[Fault]:
    settings = spec.evaluation
    faults = [
        Fault("evaluation.task_folders", f"there is no folder {folder}", "give a folder with task files")
        for folder in settings.task_folders
        if not os.path.isdir(folder)
    ]
    if not settings.tasks or faults:
        return faults
    if find_spec("lm_eval") is None:
        remedy = "install lm-eval[hf] (this project's extra `evaluation`), or leave evaluation.tasks empty"
        return [Fault("evaluation.tasks", "need lm-evaluation-harness, which is not installed", remedy)]
    return [
        Fault("evaluation.tasks", f"{task!r} is no task of the harness", f"near: {', '.join(near)}" if near else _LIST)
        for task, near in unknown_tasks(settings.tasks, settings.task_folders).items()
    ]
