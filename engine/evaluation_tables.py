"""An evaluation as tables: the text of every cell, and which of them are the best; for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.result import EvaluationResult

#: Heading of the last column of held-out bits per byte, behind the domains.
MEAN = "mean of domains"

_STANDARD_ERROR = "_stderr"


class Cell(NamedTuple):
    """What stands in a place of a table, and whether no other of its kind is better."""

    text: str
    is_best: bool


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores.

    Attributes:
        heading: above the table.
        columns: headings, that of the rows' labels first.
        rows: label to one cell for each further column.
    """

    heading: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]


def score_tables(evaluation: EvaluationResult) -> list[ScoreTable]:
    """Bits per byte with a model a row, and tasks with a model a column; none of them without numbers."""
    tables = []
    if evaluation.bits_per_byte:
        tables.append(_bits_table(evaluation.bits_per_byte))
    if evaluation.tasks:
        tables.append(_task_table(evaluation))
    return tables


def columns(bits_per_byte: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Held-out bits per byte by columns: heading to label to number, the mean of the domains last."""
    domains = list(dict.fromkeys(domain for row in bits_per_byte.values() for domain in row))
    by_domain = {
        domain: {label: row.get(domain, math.nan) for label, row in bits_per_byte.items()} for domain in domains
    }
    means = {label: float(np.mean([column[label] for column in by_domain.values()])) for label in bits_per_byte}
    return by_domain | {MEAN: means}


def best(values: Mapping[str, float], higher_is_better: bool = False) -> float:
    """The best of some numbers, NaN if there is none."""
    choose = max if higher_is_better else min
    return choose((value for value in values.values() if not math.isnan(value)), default=math.nan)


def _bits_table(bits_per_byte: Mapping[str, Mapping[str, float]]) -> ScoreTable:
    by_heading = columns(bits_per_byte)
    lowest = {heading: best(column) for heading, column in by_heading.items()}
    rows = {
        label: tuple(_cell(column[label], lowest[heading]) for heading, column in by_heading.items())
        for label in bits_per_byte
    }
    return ScoreTable("Held-out bits per byte (lower is better, * best)", ("model", *by_heading), rows)


def _task_table(evaluation: EvaluationResult) -> ScoreTable:
    labels = list(evaluation.tasks)
    keys = dict.fromkeys((task, key) for row in evaluation.tasks.values() for task in row for key in row[task])
    rows = {}
    for task, key in keys:
        metric, _, filtering = key.partition(",")
        if metric.endswith(_STANDARD_ERROR):
            continue
        is_higher_better = evaluation.higher_is_better.get(task, {}).get(metric, True)
        values = {label: _number(evaluation, label, task, key) for label in labels}
        errors = [_number(evaluation, label, task, f"{metric}{_STANDARD_ERROR},{filtering}") for label in labels]
        top = best(values, is_higher_better)
        name = " ".join([task, metric, *([filtering] if filtering != "none" else [])])
        cells = (_cell(value, top, error) for value, error in zip(values.values(), errors, strict=True))
        rows[name if is_higher_better else f"{name} (lower is better)"] = tuple(cells)
    heading = "Tasks of the evaluation harness (± standard error, * best)"
    return ScoreTable(heading, ("task and metric", *labels), rows)


def _number(evaluation: EvaluationResult, label: str, task: str, key: str) -> float:
    return evaluation.tasks[label].get(task, {}).get(key, math.nan)


def _cell(value: float, top: float, error: float = math.nan) -> Cell:
    """Four digits behind the point; a place for the star in every row keeps the points one below the other."""
    if math.isnan(value):
        return Cell("- ", False)
    deviation = "" if math.isnan(error) else f" ± {error:.4f}"
    return Cell(f"{value:.4f}{'*' if value == top else ' '}{deviation}", value == top)
