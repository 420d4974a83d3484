"""An evaluation on the run's cluster: all models on the same held-out documents and tasks, each in a Ray task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from engine.corpus.documents import Conversation, Document, read
from engine.corpus.files import find_files, units_of
from engine.errors import RecordError, StoreError, causes, first_line
from engine.history.result import EvaluationResult
from engine.model_files.checkpoint import Checkpoint
from engine.spec import FusionSpec
from pipelines.cluster.needs import Need
from pipelines.cluster.waiting import warn
from pipelines.evaluation.answers import answers
from pipelines.evaluation.bits_per_byte import Scores, Text, bits_per_byte, over_common_bytes, score_texts
from pipelines.evaluation.ensemble import ensemble
from pipelines.evaluation.merges import parts_of, write_merge
from pipelines.evaluation.models import compared_models, named
from pipelines.evaluation.needs import merge_need, model_need
from pipelines.evaluation.tasks import TaskScores, run_tasks


def evaluate_models(spec: FusionSpec) -> EvaluationResult:
    """Everything that ``spec.evaluation`` asks for, on all models that it compares.

    Writes the merges to ``output_dir/merges``. What cannot be made is missing in the result, with the reason in its
    ``failures``: a run's model and report must not be lost to a row that cannot be read, or to a GPU without memory.
    """
    settings, failures = spec.evaluation, {}
    models = compared_models(spec)
    models |= _made("merges", failures, lambda: _merged(spec, models)) if settings.merges else {}
    bits = _made("bits per byte", failures, lambda: _bits_per_byte(spec, models)) if settings.corpora else {}
    tasks = _made("tasks", failures, lambda: _task_scores(spec, models)) if settings.tasks else {}
    return EvaluationResult(
        checkpoints={label: str(checkpoint) for label, checkpoint in models.items()}
        | {label: " + ".join(members) for label, members in settings.ensembles.items()},
        bits_per_byte=bits,
        tasks={label: found.scores for label, found in tasks.items()},
        higher_is_better={task: row for found in tasks.values() for task, row in found.higher_is_better.items()},
        subtasks={group: parts for found in tasks.values() for group, parts in found.subtasks.items()},
        failures=failures,
    )


def _made(part: str, failures: dict[str, str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` returns; after an error nothing, and its reason in ``failures``."""
    try:
        return make()
    except Exception as error:  # of a file, a model, a GPU, Ray: whatever it is, the other parts can still be made
        *_, root = causes(error)
        failures[part] = f"{type(root).__name__}: {first_line(root)}"
        return {}


def held_out_documents(spec: FusionSpec) -> dict[str, list[Text]]:
    """The documents, or conversations, of every held-out domain.

    Raises:
        RecordError: a file or row cannot be read and ``corpus.on_error`` is ``fail``.
        StoreError: a store does not give a file, or not the list of files.
    """
    return {domain: _documents(spec, domain, paths) for domain, paths in spec.evaluation.corpora.items()}


def _documents(spec: FusionSpec, domain: str, paths: Sequence[str]) -> list[Text]:
    files, faults = find_files(paths, f"evaluation.corpora.{domain}")
    if faults:  # there were none before the run started
        raise StoreError("; ".join(map(str, faults)))
    texts: list[Text] = []
    for path in files:
        for unit in units_of(path):
            for document in read(unit, spec.corpus.text_column, spec.corpus.messages_column):
                if isinstance(document, Conversation):
                    texts.append(document.messages)
                elif isinstance(document, Document):
                    texts.append(document.text)
                elif spec.corpus.on_error == "fail":
                    raise RecordError(f"{document}; correct it, or set corpus.on_error: skip to go on without it")
    return texts


def _merged(spec: FusionSpec, models: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Label to checkpoint of every merge, written."""
    folder = os.path.join(spec.run.output_dir, "merges")
    asked = {
        label: (recipe, [named(models, part) for part in parts_of(recipe)], os.path.join(folder, label))
        for label, recipe in spec.evaluation.merges.items()
    }
    written = _answers(spec, merge_need(spec), write_merge, asked)
    return {label: Checkpoint(place) for label, place in written.items()}


def _bits_per_byte(spec: FusionSpec, models: Mapping[str, Checkpoint]) -> dict[str, dict[str, float]]:
    """Label to domain to bits per byte, of models and ensembles, over the same bytes; every model is loaded once."""
    settings = spec.evaluation
    members = {label: [named(models, name) for name in names] for label, names in settings.ensembles.items()}
    texts = ray.put(held_out_documents(spec))
    window = (spec.training.block_length, settings.stride_tokens, settings.batch_tokens, _device(spec))
    checkpoints = dict.fromkeys([*models.values(), *(name for names in members.values() for name in names)])
    asked = {checkpoint: (checkpoint, texts, *window) for checkpoint in checkpoints}
    scored = _answers(spec, model_need(spec), score_texts, asked)
    found = {label: scored[checkpoint] for label, checkpoint in models.items()}
    found |= {label: _ensemble([scored[name] for name in names]) for label, names in members.items()}
    return {
        label: {domain: bits_per_byte(texts) for domain, texts in by_domain.items()}
        for label, by_domain in over_common_bytes(found).items()
    }


def _ensemble(members: Sequence[Scores]) -> Scores:
    """Domain to texts as the ensemble scores them."""
    return {
        domain: [ensemble(text) for text in zip(*(member[domain] for member in members), strict=True)]
        for domain in members[0]
    }


def _task_scores(spec: FusionSpec, models: Mapping[str, Checkpoint]) -> dict[str, TaskScores]:
    asked = {label: (checkpoint, spec.evaluation, _device(spec)) for label, checkpoint in models.items()}
    return _answers(spec, model_need(spec), run_tasks, asked)


def _answers(spec: FusionSpec, need: Need, work: Callable[..., Any], asked: Mapping[Any, Sequence[Any]]) -> dict:
    return answers(need, work, asked, spec.cluster.stall_minutes, warn)


def _device(spec: FusionSpec) -> str:
    return "cuda" if spec.training.num_gpus_per_worker else "cpu"
