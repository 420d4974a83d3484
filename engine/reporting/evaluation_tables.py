"""An evaluation as tables of text with the best scores marked, for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.history.result import EvaluationResult

#: Heading of the last column of held-out bits per byte, after the domains.
MEAN = "mean of domains"

_STANDARD_ERROR = "_stderr"


class Cell(NamedTuple):
    """A table cell: its text, and whether it is the best score of its kind."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores.

    Attributes:
        heading: above the table.
        columns: headings, those of labels first.
        rows: one cell for each column; a label that repeats the row above is empty.
        label_columns: how many columns from the left hold labels, not scores.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    label_columns: int = 1


def score_tables(evaluation: EvaluationResult) -> list[ScoreTable]:
    """The tables of an evaluation: bits per byte, one row for each model; tasks, one for each metric and model."""
    tables = []
    if evaluation.bits_per_byte:
        tables.append(_bits_table(evaluation.bits_per_byte))
    if evaluation.tasks:
        tables.append(_task_table(evaluation))
    return tables


def failure_lines(evaluation: EvaluationResult) -> list[str]:
    """A sentence for each part of an evaluation that could not be made."""
    return [f"The evaluation has no {part}: {reason}" for part, reason in evaluation.failures.items()]


def columns(bits_per_byte: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Held-out bits per byte by column: heading to label to number; the mean of the domains comes last."""
    domains = list(dict.fromkeys(domain for row in bits_per_byte.values() for domain in row))
    by_domain = {
        domain: {label: row.get(domain, math.nan) for label, row in bits_per_byte.items()} for domain in domains
    }
    means = {label: float(np.mean([column[label] for column in by_domain.values()])) for label in bits_per_byte}
    return by_domain | {MEAN: means}


def best(values: Mapping[str, float], higher_is_better: bool = False) -> float:
    """The best of some numbers, NaN if all are NaN."""
    choose = max if higher_is_better else min
    return choose((value for value in values.values() if not math.isnan(value)), default=math.nan)


def _bits_table(bits_per_byte: Mapping[str, Mapping[str, float]]) -> ScoreTable:
    by_heading = columns(bits_per_byte)
    lowest = {heading: best(column) for heading, column in by_heading.items()}
    rows = tuple(
        (Cell(label), *(_cell(column[label], lowest[heading]) for heading, column in by_heading.items()))
        for label in bits_per_byte
    )
    return ScoreTable("Held-out bits per byte (lower is better, * best)", ("model", *by_heading), rows)


def _task_table(evaluation: EvaluationResult) -> ScoreTable:
    """Task scores, one row for each metric and model; parts of a group with its own score are in the JSON file only."""
    parts = {part for group in evaluation.subtasks.values() for part in group}
    shown = {label: {task: row[task] for task in row if task not in parts} for label, row in evaluation.tasks.items()}
    metrics = dict.fromkeys((task, metric) for row in shown.values() for task in row for metric in row[task])
    rows: list[tuple[Cell, ...]] = []
    for task, metric in metrics:
        name, _, filtering = metric.partition(",")
        if name.endswith(_STANDARD_ERROR):
            continue
        is_higher_better = evaluation.higher_is_better.get(task, {}).get(name, True)
        values = {label: _number(row, task, metric) for label, row in shown.items()}
        top = best(values, is_higher_better)
        heading = " ".join([task, name, *([filtering] if filtering != "none" else [])])
        heading += "" if is_higher_better else " (lower is better)"
        for label, value in values.items():
            error = _number(shown[label], task, f"{name}{_STANDARD_ERROR},{filtering}")
            rows.append((Cell(heading), Cell(label), _cell(value, top, error)))
            heading = ""
    title = "Tasks of the evaluation harness (± standard error, * best)"
    return ScoreTable(title, ("task and metric", "model", "score"), tuple(rows), label_columns=2)


def _number(scores: Mapping[str, Mapping[str, float]], task: str, metric: str) -> float:
    return scores.get(task, {}).get(metric, math.nan)


def _cell(value: float, top: float, error: float = math.nan) -> Cell:
    """A score with four decimals. Every row has a place for the star, so that the decimal points line up."""
    if math.isnan(value):
        return Cell("- ", False)
    deviation = "" if math.isnan(error) else f" ± {error:.4f}"
    return Cell(f"{value:.4f}{'*' if value == top else ' '}{deviation}", value == top)
