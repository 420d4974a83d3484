"""Tasks of the Language Model Evaluation Harness (lm-eval), which is imported only when a spec asks for them.

The harness's own Hugging Face model runs the checkpoint, with the tokenizer of a run: the harness would load another
one where transformers changes a tokenizer.json. Elsewhere every number is the one that its command line gives::

    lm_eval --model hf --model_args pretrained=CHECKPOINT,dtype=float32 \\
        --tasks NAMES --include_path FOLDER --batch_size 8
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import load_tokenizer, local_checkpoint
from engine.spec import EvaluationSpec


class TaskScores(NamedTuple):
    """One model's tasks, as ``result.EvaluationResult`` describes them."""

    scores: dict[str, dict[str, float]]
    higher_is_better: dict[str, dict[str, bool]]
    subtasks: dict[str, list[str]]


def unknown_tasks(tasks: Sequence[str], folders: Sequence[str]) -> dict[str, list[str]]:
    """Those of some tasks that neither the folders nor the harness have, each with names near it."""
    known = _manager(tasks, folders).all_tasks
    return {task: difflib.get_close_matches(task, known) for task in tasks if task not in known}


def run_tasks(checkpoint: Checkpoint, settings: EvaluationSpec, device: str) -> TaskScores:
    """Run the tasks of ``settings`` on one model.

    Args:
        checkpoint: of a causal language model; on a CPU it runs in float32, else in its own type.
        settings: ``tasks``, ``task_folders``, ``num_fewshot``, ``task_limit`` and ``task_batch`` count here.
        device: where the model runs, as torch names it.
    """
    from lm_eval import simple_evaluate
    from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

    dtype = "float32" if device == "cpu" else "auto"  # most CPUs take several times as long for sixteen bits
    arguments: dict[str, Any] = {"pretrained": local_checkpoint(checkpoint), "dtype": dtype}
    tokenizer = load_tokenizer(checkpoint)
    if isinstance(tokenizer, (PreTrainedTokenizer, PreTrainedTokenizerFast)):  # the harness takes no other
        arguments["tokenizer"] = tokenizer
    found = simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        batch_size=settings.task_batch,
        device=device,
        limit=settings.task_limit or None,
        task_manager=_manager(settings.tasks, settings.task_folders),
        log_samples=False,
    )
    scores = {task: _metrics(row) for task, row in found["results"].items()}
    directions = {task: dict(metrics) for task, metrics in found.get("higher_is_better", {}).items()}
    groups = {group: parts for group, parts in found.get("group_subtasks", {}).items() if parts and scores.get(group)}
    return TaskScores(scores, directions, groups)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among what the harness says of a task: ``metric,filter``; beside them stand names and counts."""
    return {key: float(value) for key, value in row.items() if "," in key and isinstance(value, (int, float))}


def _manager(tasks: Sequence[str], folders: Sequence[str]) -> Any:
    """What finds task files by name; in the folders alone if all are there, for the harness's own take seconds."""
    from lm_eval.tasks import TaskManager

    if folders:
        own = TaskManager(include_path=list(folders), include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=list(folders) or None)
