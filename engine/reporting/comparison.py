"""A page that compares runs: how their specs differ, their figures side by side, their curves in one chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from engine.history.result import RunResult, StepRecord
from engine.reporting.charts import overlaid_chart
from engine.reporting.figures import MISSING, Rows, number, run_figures
from engine.reporting.page import Status, figure_elements, page_of, status_element, table_element
from engine.spec import FusionSpec

#: A run's spec and its result so far.
Run = tuple[FusionSpec, RunResult]

#: Names and places of a run, which always differ.
NO_DIFFERENCES = ("run.name", "run.output_dir")

#: Quantities of a step: caption, unit and the number of a record.
CURVES: tuple[tuple[str, str, Callable[[StepRecord], float]], ...] = (
    ("Objective, nats per row.", "nats per row", lambda record: record.loss),
    ("Causal LM loss, nats per row.", "nats per row", lambda record: record.lm_loss),
    ("Fusion loss, nats per row.", "nats per row", lambda record: record.fusion_loss),
    ("Gain of the fused rows over the target, nats per row.", "nats per row", lambda record: record.fusion_gain),
)


def render_comparison(runs: Sequence[Run], status: Status) -> str:
    """The page as text; runs of one name are shown by their output folders."""
    names = _names([result for _, result in runs])
    results = dict(zip(names, (result for _, result in runs), strict=True))
    return page_of(
        title=escape(" · ".join(names)),
        lead=f"{len(runs)} runs compared.",
        status=status_element(status),
        first=table_element(_differences(names, [spec for spec, _ in runs])),
        summary=table_element(_side_by_side(results)),
        evaluation=table_element(_evaluations(results)),
        plots=figure_elements(_charts(results)),
    )


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """A nested document as one level: ``section.field`` to value. Lists are numbered, empty ones stay."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found: dict[str, Any] = {}
    for name, part in items:
        found |= flattened(part, f"{path}.{name}" if path else str(name))
    return found or {path: value}


def _names(results: Sequence[RunResult]) -> list[str]:
    names = [result.name for result in results]
    return names if len(set(names)) == len(names) else [result.output_dir for result in results]


def _differences(names: Sequence[str], specs: Sequence[FusionSpec]) -> Rows:
    """The fields of the specs that are not the same in all runs."""
    flat = [flattened(spec.model_dump(mode="json")) for spec in specs]
    fields = [field for field in dict.fromkeys(field for spec in flat for field in spec) if field not in NO_DIFFERENCES]
    rows = [(field, *(str(spec.get(field, MISSING)) for spec in flat)) for field in fields]
    found = tuple(row for row in rows if len(set(row[1:])) > 1)
    return Rows("How the specs differ", ("field", *names), found or (("nothing but name and folder", *names),))


def _side_by_side(results: dict[str, RunResult]) -> Rows:
    """Every figure of the runs, a column for each run."""
    columns = [dict(run_figures(result).rows) for result in results.values()]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = tuple((label, *(column.get(label, MISSING) for column in columns)) for label in labels)
    return Rows("The runs", ("", *results), rows)


def _evaluations(results: dict[str, RunResult]) -> Rows:
    """Held-out bits per byte of all evaluated models, a column for each run."""
    labels = dict.fromkeys(
        (model, domain) for result in results.values() for model, row in result.bits_per_byte.items() for domain in row
    )
    rows = []
    for model, domain in labels:
        values = [result.bits_per_byte.get(model, {}).get(domain, math.nan) for result in results.values()]
        rows.append((f"{model}, {domain}", *(number(value, ".4f") for value in values)))
    return Rows("Held-out bits per byte (lower is better)", ("model, domain", *results), tuple(rows))


def _charts(results: dict[str, RunResult]) -> dict[str, str]:
    """Caption to chart; a run without such numbers is left out of a chart, and a chart without runs of the page."""
    found = {}
    for caption, unit, value in CURVES:
        found |= _chart(caption, unit, {name: _curve(result.history, value) for name, result in results.items()})
    for domain in dict.fromkeys(domain for result in results.values() for r in result.history for domain in r.held_out):
        curves = {name: _held_out(result.history, domain) for name, result in results.items()}
        found |= _chart(f"Held-out bits per byte of {domain}.", "bits per byte", curves)
    return found


def _chart(caption: str, unit: str, curves: dict[str, tuple[list[int], list[float]]]) -> dict[str, str]:
    shown = {name: curve for name, curve in curves.items() if any(map(math.isfinite, curve[1]))}
    return {caption: overlaid_chart(shown, unit)} if shown else {}


def _curve(history: Sequence[StepRecord], value: Callable[[StepRecord], float]) -> tuple[list[int], list[float]]:
    return [record.step for record in history], [value(record) for record in history]


def _held_out(history: Sequence[StepRecord], domain: str) -> tuple[list[int], list[float]]:
    evaluated = [record for record in history if domain in record.held_out]
    return _curve(evaluated, lambda record: record.held_out[domain])
