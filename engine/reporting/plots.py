"""The charts of a report: which numbers of a run each of them shows, and its caption."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.history.result import RunResult, StepRecord
from engine.history.totals import ratio, source_gain
from engine.reporting.charts import bar_chart, curve_chart, stacked_chart

MOST_BARS = 160


def plots(result: RunResult) -> dict[str, str]:
    """All plots that the result has numbers for: caption to SVG element."""
    history, names = result.history, [source.name for source in result.sources]
    found: dict[str, str] = {}
    if history:
        found["Loss, nats per row. Faint: every step; strong: moving average."] = _losses(history)
        found |= _held_out_plot(history)
        found |= _source_plots(history, names, [domain.name for domain in result.domains])
        found |= _optimizer(history)
        found["Where the time of a step goes: seconds of work, and exposed wait for data."] = _waits(history)
    if result.bits_per_byte:
        found["Held-out bits per byte; lower is better."] = bar_chart(result.bits_per_byte, "bits per byte")
    if any(stage.busy_seconds + stage.wait_seconds > 0 for stage in result.stages):
        found["Stages of the stream: share of the time at work, and tokens per second."] = _stages(result)
    return found


def _losses(history: Sequence[StepRecord]) -> str:
    curves = {
        "objective": [record.loss for record in history],
        "causal LM": [record.lm_loss for record in history],
        "fusion": [record.fusion_loss for record in history],
    }
    return _curves(history, curves, "nats per row")


def _held_out_plot(history: Sequence[StepRecord]) -> dict[str, str]:
    """Bits per byte of every domain over the evaluated steps; empty if no step was evaluated."""
    found = [record for record in history if record.held_out]
    if not found:
        return {}
    domains = dict.fromkeys(domain for record in found for domain in record.held_out)
    curves = {domain: [record.held_out.get(domain, math.nan) for record in found] for domain in domains}
    return {"Held-out bits per byte of the target during training.": _curves(found, curves, "bits per byte")}


def _source_plots(history: Sequence[StepRecord], names: Sequence[str], domains: Sequence[str]) -> dict[str, str]:
    """Cross-entropy, gain, wins and coverage of the source models over the steps; empty without source models."""
    if not names:
        return {}
    nats = _of_each(history, names, lambda r: r.source_nats, lambda r, index: r.source_bytes[index])
    wins = _of_each(history, names, lambda r: r.source_wins, lambda r, _: r.passages)
    rows = _of_each(history, names, lambda r: r.source_covered_rows, lambda r, _: r.tokens - r.passages)
    fused = {"fused": [100 * ratio(record.fused_rows, record.tokens - record.passages) for record in history]}
    found = {"Cross-entropy of the source models, nats per byte of the same passages.": (nats, "nats per byte", None)}
    gains = {name: [source_gain(record, index) for record in history] for index, name in enumerate(names)}
    found["Gain: nats per byte by which each source model predicts a step's text better than the target."] = (
        gains,
        "nats per byte",
        None,
    )
    if any(value > 0 for curve in wins.values() for value in curve):
        found["Win rate: share of the passages that each source model won."] = (_per_cent(wins), "% of passages", 0)
    found["Coverage: share of target rows with a row of the source model, and share fused."] = (
        _per_cent(rows) | fused,
        "% of target rows",
        None,
    )
    found |= _domain_gains(history, names, domains)
    return {caption: _curves(history, *plot) for caption, plot in found.items()}


def _domain_gains(
    history: Sequence[StepRecord], names: Sequence[str], domains: Sequence[str]
) -> dict[str, tuple[dict[str, list[float]], str, None]]:
    """The gain of every source model in each domain of the corpus."""
    return {
        f"Gain in the domain {domain}: nats per byte, as above.": (
            {name: [source_gain(record, index, place) for record in history] for index, name in enumerate(names)},
            "nats per byte",
            None,
        )
        for place, domain in enumerate(domains)
    }


def _of_each(
    history: Sequence[StepRecord],
    names: Sequence[str],
    numerators: Callable[[StepRecord], Sequence[float]],
    denominator: Callable[[StepRecord, int], float],
) -> dict[str, list[float]]:
    """For each source model the ratio of two numbers of every step."""
    return {
        name: [ratio(numerators(record)[index], denominator(record, index)) for record in history]
        for index, name in enumerate(names)
    }


def _per_cent(curves: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [100 * value for value in values] for name, values in curves.items()}


def _curves(
    history: Sequence[StepRecord], curves: Mapping[str, Sequence[float]], unit: str, floor: float | None = None
) -> str:
    return curve_chart([record.step for record in history], curves, unit, floor)


def _optimizer(history: Sequence[StepRecord]) -> dict[str, str]:
    rates = {"learning rate": [record.learning_rate for record in history]}
    norms = {"gradient norm": [record.grad_norm for record in history]}
    return {
        "Learning rate.": _curves(history, rates, "learning rate", 0.0),
        "Norm of the gradient before clipping.": _curves(history, norms, "gradient norm"),
    }


def _waits(history: Sequence[StepRecord]) -> str:
    """Mean seconds of a step; with many steps a bar covers several of them."""
    steps_per_bar = math.ceil(len(history) / MOST_BARS)
    bars = [history[start : start + steps_per_bar] for start in range(0, len(history), steps_per_bar)]
    waited = np.array([np.mean([record.wait_seconds for record in bar]) for bar in bars])
    worked = np.array([np.mean([record.seconds for record in bar]) for bar in bars]) - waited
    return stacked_chart([bar[0].step for bar in bars], {"work": worked, "exposed wait": waited}, "seconds per step")


def _stages(result: RunResult) -> str:
    rows, notes = {}, {}
    for stage in result.stages:
        if (seconds := stage.busy_seconds + stage.wait_seconds) > 0:
            rows[stage.name] = {"% of the time at work": 100 * stage.busy_seconds / seconds}
            speed = stage.tokens * max(1, stage.replicas) / seconds
            notes[stage.name] = f"{speed:,.0f} tok/s" if stage.tokens else ""
    return bar_chart(rows, "% of the time", notes, most=100.0)
