"""The charts of a report: which numbers of a run each of them shows, and its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.history.result import DomainTotals, RunResult, StepRecord
from engine.history.series import StepSeries
from engine.history.totals import quotients
from engine.reporting.charts import MOST_BUCKETS, bar_chart, curve_chart, stacked_chart

MOST_BARS = 160

#: Charts of single domains: those of the largest are drawn, at half the resolution of the others.
MOST_DOMAIN_CHARTS, DOMAIN_BUCKETS = 8, MOST_BUCKETS // 2


def plots(result: RunResult, series: StepSeries) -> dict[str, str]:
    """All plots that the result has numbers for: caption to SVG element.

    Args:
        series: of the result's history.
    """
    history, names = result.history, [source.name for source in result.sources]
    found: dict[str, str] = {}
    if history:
        found["Loss, nats per row. Faint: every step; strong: moving average."] = _losses(series)
        found |= _held_out_plot(history)
        found |= _source_plots(series, names)
        found |= _domain_gains(series, names, result.domains)
        found |= _optimizer(series)
        found["Where the time of a step goes: seconds of work, and exposed wait for data."] = _waits(series)
    if result.bits_per_byte:
        found["Held-out bits per byte; lower is better."] = bar_chart(result.bits_per_byte, "bits per byte")
    if any(stage.busy_seconds + stage.wait_seconds > 0 for stage in result.stages):
        found["Stages of the stream: share of the time at work, and tokens per second."] = _stages(result)
    return found


def _losses(series: StepSeries) -> str:
    curves = {"objective": series["loss"], "causal LM": series["lm_loss"], "fusion": series["fusion_loss"]}
    return curve_chart(series["step"], curves, "nats per row")


def _held_out_plot(history: Sequence[StepRecord]) -> dict[str, str]:
    """Bits per byte of every domain over the evaluated steps; empty if no step was evaluated."""
    found = [record for record in history if record.held_out]
    if not found:
        return {}
    domains = dict.fromkeys(domain for record in found for domain in record.held_out)
    curves = {domain: [record.held_out.get(domain, math.nan) for record in found] for domain in domains}
    chart = curve_chart([record.step for record in found], curves, "bits per byte")
    return {"Held-out bits per byte of the target during training.": chart}


def _source_plots(series: StepSeries, names: Sequence[str]) -> dict[str, str]:
    """Cross-entropy, gain, wins and coverage of the source models over the steps; empty without source models."""
    if not names:
        return {}
    rows, passages = series["tokens"] - series["passages"], series["passages"]
    nats = quotients(series["source_nats"], series["source_bytes"])
    wins = 100 * quotients(series["source_wins"], _for_each(passages, names))
    covered = 100 * quotients(series["source_covered_rows"], _for_each(rows, names))
    shares = _by_name(names, covered) | {"fused": 100 * quotients(series["fused_rows"], rows)}
    found = {
        "Cross-entropy of the source models, nats per byte of the same passages.": curve_chart(
            series["step"], _by_name(names, nats), "nats per byte"
        ),
        "Gain: nats per byte by which each source model predicts a step's text better than the target.": curve_chart(
            series["step"], _by_name(names, series.gains), "nats per byte"
        ),
    }
    if (wins > 0).any():
        chart = curve_chart(series["step"], _by_name(names, wins), "% of passages", 0)
        found["Win rate: share of the passages that each source model won."] = chart
    caption = "Coverage: share of target rows with a row of the source model, and share fused."
    return found | {caption: curve_chart(series["step"], shares, "% of target rows")}


def _domain_gains(series: StepSeries, names: Sequence[str], domains: Sequence[DomainTotals]) -> dict[str, str]:
    """The gain of every source model in the largest domains of the corpus; the last caption names the others."""
    by_size = sorted(range(len(domains)), key=lambda place: -domains[place].bytes)
    shown = sorted(by_size[:MOST_DOMAIN_CHARTS]) if names else []
    others = ", ".join(domains[place].name for place in sorted(by_size[MOST_DOMAIN_CHARTS:]))
    found = {}
    for place in shown:
        caption = f"Gain in the domain {domains[place].name}: nats per byte, as above."
        if others and place == shown[-1]:
            caption += f" The smaller domains are in the tables only: {others}."
        curves = _by_name(names, series.domain_gains[:, place])
        found[caption] = curve_chart(series["step"], curves, "nats per byte", buckets=DOMAIN_BUCKETS)
    return found


def _by_name(names: Sequence[str], columns: np.ndarray) -> dict[str, np.ndarray]:
    """A curve for each source model: [T,N] as name to [T]."""
    return {name: columns[:, index] for index, name in enumerate(names)}


def _for_each(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """One number of each step for every source model: [T] as [T,N]."""
    return np.repeat(values[:, None], len(names), axis=1)


def _optimizer(series: StepSeries) -> dict[str, str]:
    rates, norms = {"learning rate": series["learning_rate"]}, {"gradient norm": series["grad_norm"]}
    return {
        "Learning rate.": curve_chart(series["step"], rates, "learning rate", 0.0),
        "Norm of the gradient before clipping.": curve_chart(series["step"], norms, "gradient norm"),
    }


def _waits(series: StepSeries) -> str:
    """Mean seconds of a step; with many steps a bar covers several of them."""
    starts = np.arange(0, len(series), math.ceil(len(series) / MOST_BARS))
    counts = np.diff(np.append(starts, len(series)))
    waited, spent = (np.add.reduceat(series[name], starts) / counts for name in ("wait_seconds", "seconds"))
    parts = {"work": spent - waited, "exposed wait": waited}
    return stacked_chart(series["step"][starts].tolist(), parts, "seconds per step")


def _stages(result: RunResult) -> str:
    rows, notes = {}, {}
    for stage in result.stages:
        if (seconds := stage.busy_seconds + stage.wait_seconds) > 0:
            rows[stage.name] = {"% of the time at work": 100 * stage.busy_seconds / seconds}
            speed = stage.tokens * max(1, stage.replicas) / seconds
            notes[stage.name] = f"{speed:,.0f} tok/s" if stage.tokens else ""
    return bar_chart(rows, "% of the time", notes, most=100.0)
