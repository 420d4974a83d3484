"""The files of an evaluation in the output folder: ``evaluation.json`` with all numbers, and ``evaluation.png``."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields
from typing import Any

from engine import store
from engine.history.result import EvaluationResult
from engine.spec import FusionSpec

JSON_FILE, PLOT_FILE = "evaluation.json", "evaluation.png"


def write_evaluation(spec: FusionSpec, evaluation: EvaluationResult) -> list[str]:
    """Write both files over those of an earlier evaluation; the plot only if there are bits per byte.

    Returns:
        Paths or URLs of the written files.

    Raises:
        StoreError: a file cannot be written.
    """
    content: dict[str, bytes] = {JSON_FILE: evaluation_json(spec, evaluation).encode("utf8")}
    if evaluation.bits_per_byte:
        from engine.reporting.evaluation_plot import bits_per_byte_png  # matplotlib takes seconds to load

        content[PLOT_FILE] = bits_per_byte_png(evaluation.bits_per_byte)
    filesystem, folder = store.located(spec.run.output_dir)
    with store.writing(spec.run.output_dir, "the evaluation"):
        filesystem.makedirs(folder, exist_ok=True)
        for name, data in content.items():
            filesystem.pipe_file(os.path.join(folder, name), data)
    return [os.path.join(spec.run.output_dir, name) for name in content]


def read_evaluation(output_dir: str) -> EvaluationResult:
    """The evaluation in an output folder; an empty one if there is none."""
    data = store.content(os.path.join(output_dir, JSON_FILE))
    if data is None:
        return EvaluationResult()
    document = _with_nan(json.loads(data))
    return EvaluationResult(**{field.name: document[field.name] for field in fields(EvaluationResult)})


def evaluation_json(spec: FusionSpec, evaluation: EvaluationResult) -> str:
    """An evaluation as JSON: all numbers unrounded, NaN as null, and the settings of the evaluation."""
    document = {
        "run": spec.run.name,
        "checkpoints": evaluation.checkpoints,
        "bits_per_byte": evaluation.bits_per_byte,
        "tasks": evaluation.tasks,
        "higher_is_better": evaluation.higher_is_better,
        "subtasks": evaluation.subtasks,
        "failures": evaluation.failures,
        "window_tokens": spec.training.block_length,
        "evaluation": spec.evaluation.model_dump(mode="json"),
    }
    return json.dumps(_without_nan(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
