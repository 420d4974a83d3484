"""The plots of a report, each one SVG in the colours of the page, and the plot of an evaluation as PNG.

Drawn with matplotlib's objects, not ``pyplot``: no state, no display, safe in any thread.
"""

from __future__ import annotations

import io
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.history.result import RunResult, StepRecord
from engine.history.totals import ratio, source_gain

# On import matplotlib writes a list of fonts into the user's home. A run must not, so it gets a scratch folder.
with tempfile.TemporaryDirectory() as scratch:
    os.environ.setdefault("MPLCONFIGDIR", scratch)
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if os.environ["MPLCONFIGDIR"] == scratch:
        del os.environ["MPLCONFIGDIR"]

#: Legible on white and on near-black.
COLORS = ("#3b82d0", "#e07a2f", "#2f9e6e", "#b458a8", "#c79a1b", "#7a8794")
#: With more curves than colours, the strokes change.
STROKES = ("-", "--", ":")

#: Placeholders for the page's own colours, so that a plot follows its light or dark mode.
INK, FAINT = "#010203", "#040506"
PAGE_COLORS = {INK: "currentColor", FAINT: "var(--rule)"}

#: Inches of a plot; of a group of bars, and of the frame around the bars.
WIDTH, HEIGHT = 5.4, 3.0
GROUP_HEIGHT, FRAME_HEIGHT = 0.32, 0.9
SMOOTHED_SHARE = 0.06
MOST_BARS = 160

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": FAINT,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
}

#: A PNG has no page to take colours from.
ON_WHITE = {**STYLE, "axes.edgecolor": "#dcdfe2", "grid.color": "#dcdfe2"}
DOTS_PER_INCH = 160


def plots(result: RunResult) -> dict[str, str]:
    """All plots that the result has numbers for: caption to SVG element."""
    history, names = result.history, [source.name for source in result.sources]
    found: dict[str, str] = {}
    if history:
        found["Loss, nats per row. Faint: every step; strong: moving average."] = _losses(history)
        found |= _held_out_plot(history)
        found |= _source_plots(history, names)
        found["Learning rate (left) and norm of the gradient before clipping (right)."] = _optimizer(history)
        found["Where the time of a step goes: seconds of work, and exposed wait for data."] = _waits(history)
    if result.bits_per_byte:
        found["Held-out bits per byte; lower is better."] = _svg(_bits_per_byte_bars(result.bits_per_byte))
    if result.stages:
        found["Stages of the stream: share of the time at work, and tokens per second."] = _stages(result)
    return {caption: _with_own_ids(svg, f"plot{index}-") for index, (caption, svg) in enumerate(found.items())}


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Centred moving average over a sixteenth of the values; NaN values are left out.

    Towards the ends the window shrinks to a quarter, so that a steep start is not flattened.
    """
    array = np.asarray(values, np.float64)
    places, longest = np.arange(len(array)), int(len(array) * SMOOTHED_SHARE / 2)
    reach = np.clip(np.minimum(places, places[::-1]), longest // 4, longest)
    is_number = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_number, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_number)])
    start, stop = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(array))
    within = counts[stop] - counts[start]
    return np.divide(sums[stop] - sums[start], within, out=np.full(len(array), np.nan), where=within > 0)


def _losses(history: Sequence[StepRecord]) -> str:
    curves = {
        "objective": [record.loss for record in history],
        "causal LM": [record.lm_loss for record in history],
        "fusion": [record.fusion_loss for record in history],
    }
    return _curve_plot(history, curves, "nats per row")


def _held_out_plot(history: Sequence[StepRecord]) -> dict[str, str]:
    """Bits per byte of every domain over the evaluated steps; empty if no step was evaluated."""
    found = [record for record in history if record.held_out]
    if not found:
        return {}
    domains = dict.fromkeys(domain for record in found for domain in record.held_out)
    curves = {domain: [record.held_out.get(domain, math.nan) for record in found] for domain in domains}
    return {"Held-out bits per byte of the target during training.": _curve_plot(found, curves, "bits per byte")}


def _source_plots(history: Sequence[StepRecord], names: Sequence[str]) -> dict[str, str]:
    """Cross-entropy, wins and coverage of the source models over the steps; empty without source models."""
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
    return {caption: _curve_plot(history, *plot) for caption, plot in found.items()}


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


def _curve_plot(
    history: Sequence[StepRecord], curves: Mapping[str, Sequence[float]], unit: str, floor: float | None = None
) -> str:
    """One plot over the steps: every curve faint, its moving average strong."""
    steps = [record.step for record in history]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (label, values) in enumerate(curves.items()):
            _curve(axes, steps, values, index, label)
        _name_steps(axes)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=floor)
        figure.legend(loc="outside upper left", ncols=min(4, len(curves)))

    return _svg(draw)


def _curve(axes: Axes, steps: Sequence[int], values: Sequence[float], index: int, label: str) -> None:
    if not np.isfinite(values).any():
        return
    color, stroke = COLORS[index % len(COLORS)], STROKES[index // len(COLORS) % len(STROKES)]
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(values), stroke, color=color, linewidth=1.8, label=label, marker=_marker(steps))


def _marker(steps: Sequence[int]) -> str | None:
    """A dot for a single step, which would make no line."""
    return "o" if len(steps) == 1 else None


def _name_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def _optimizer(history: Sequence[StepRecord]) -> str:
    steps = [record.step for record in history]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        rates = [record.learning_rate for record in history]
        left.plot(steps, rates, color=COLORS[0], linewidth=1.8, marker=_marker(steps))
        left.set_title("learning rate", loc="left", fontsize=9)
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set_ylim(bottom=0)
        _curve(right, steps, [record.grad_norm for record in history], 1, "gradient norm")
        right.set_title("gradient norm", loc="left", fontsize=9)
        for axes in (left, right):
            _name_steps(axes)

    return _svg(draw)


def _waits(history: Sequence[StepRecord]) -> str:
    """Bars of mean seconds; with many steps a bar covers several of them."""
    steps_per_bar = math.ceil(len(history) / MOST_BARS)
    bars = [history[start : start + steps_per_bar] for start in range(0, len(history), steps_per_bar)]
    first = [bar[0].step for bar in bars]
    waited = np.array([np.mean([record.wait_seconds for record in bar]) for bar in bars])
    worked = np.array([np.mean([record.seconds for record in bar]) for bar in bars]) - waited

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(first, worked, steps_per_bar, color=COLORS[2], label="work", align="edge")
        axes.bar(first, waited, steps_per_bar, bottom=worked, color=COLORS[1], label="exposed wait", align="edge")
        _name_steps(axes)
        axes.set_ylabel("seconds per step")
        axes.grid(False, axis="x")
        figure.legend(loc="outside upper left", ncols=2)

    return _svg(draw)


def _stages(result: RunResult) -> str:
    stages = [stage for stage in result.stages if stage.busy_seconds + stage.wait_seconds > 0]
    names = [stage.name for stage in stages]
    seconds = [stage.busy_seconds + stage.wait_seconds for stage in stages]
    busy = [100 * stage.busy_seconds / total for stage, total in zip(stages, seconds, strict=True)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(names, busy, color=COLORS[2], label="busy")
        axes.barh(names, [100 - share for share in busy], left=busy, color=FAINT, label="waiting")
        for row, (stage, total) in enumerate(zip(stages, seconds, strict=True)):
            if stage.tokens:
                axes.text(102, row, f"{stage.tokens * max(1, stage.replicas) / total:,.0f} tok/s", va="center")
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the time")
        axes.tick_params(axis="y", length=0)
        axes.grid(False)
        figure.legend(loc="outside upper left", ncols=2)

    return _svg(draw)


def _svg(draw: Callable[[Figure], None]) -> str:
    """An SVG element in the page's colours and fonts, without references to other files."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for stand_in, color in PAGE_COLORS.items():
        text = text.replace(stand_in, color)
    return text


def _with_own_ids(svg: str, prefix: str) -> str:
    """Put a prefix before all ids: they must be unique in a page, and matplotlib uses the same in every figure."""
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)


def bits_per_byte_png(scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """Bars of held-out bits per byte as PNG on white.

    Args:
        scores: label to domain to bits per byte.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(ON_WHITE):
        figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
        _bits_per_byte_bars(scores)(figure)
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def _bits_per_byte_bars(scores: Mapping[str, Mapping[str, float]]) -> Callable[[Figure], None]:
    """A function that draws the bars; the figure grows with the number of models."""
    domains = list(dict.fromkeys(domain for row in scores.values() for domain in row))
    places, thickness = np.arange(len(scores)), 0.8 / len(domains)

    def draw(figure: Figure) -> None:
        figure.set_figheight(FRAME_HEIGHT + GROUP_HEIGHT * len(scores))
        axes = figure.subplots()
        for index, domain in enumerate(domains):
            values = [row.get(domain, math.nan) for row in scores.values()]
            offset = (index - (len(domains) - 1) / 2) * thickness
            axes.barh(places + offset, values, 0.9 * thickness, color=COLORS[index % len(COLORS)], label=domain)
        axes.set_yticks(places, list(scores))
        axes.invert_yaxis()
        axes.set_xlabel("bits per byte")
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        figure.legend(loc="outside upper left", ncols=min(4, len(domains)))

    return draw
