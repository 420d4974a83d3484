"""Charts of the report: small SVG elements in the page's own colours and font, written as text.

A page is written every half minute while a run works, so a chart has to cost milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

#: Legible on white and on near-black, and distinct for the colour-blind.
COLORS = ("#3b82d0", "#e07a2f", "#2f9e6e", "#b458a8", "#c79a1b", "#7a8794")
#: With more curves than colours, the strokes change.
DASHES = ("", "7 4", "2 3")

#: Units of a chart's own coordinates; a page scales them.
WIDTH, HEIGHT = 560, 290
LEFT, RIGHT, BOTTOM = 56, 8, 38
LEGEND_LINE, LETTER = 17, 6.1
GRID = 'stroke="var(--rule)" fill="none"'
BAR, BAR_GAP, LABEL_LETTERS = 13, 9, 26

#: A long curve is drawn by the lowest and the highest value in each of so many stretches of it. More curves than this
#: share the stretches of these, so that a chart of any number of curves has at most some hundred thousand bytes.
MOST_BUCKETS, CURVES_IN_FULL = 280, len(COLORS)
FEWEST_BUCKETS = 8
SMOOTHED_SHARE = 0.06


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


def thinned(values: np.ndarray, buckets: int = MOST_BUCKETS) -> np.ndarray:
    """The places of the values that a drawing needs, ascending.

    All of them if they are few. Else the lowest and the highest of each stretch, so that no spike is lost, and the
    first and the last value. Values that are not finite count only in a stretch that has no others.
    """
    if len(values) <= 2 * buckets:
        return np.arange(len(values))
    size = math.ceil(len(values) / buckets)
    filled = np.full((math.ceil(len(values) / size), size), np.nan)
    filled.ravel()[: len(values)] = values
    starts = np.arange(len(filled)) * size
    is_number = np.isfinite(filled)
    lowest = starts + np.where(is_number, filled, np.inf).argmin(axis=1)
    highest = starts + np.where(is_number, filled, -np.inf).argmax(axis=1)
    return np.unique(np.concatenate([[0], lowest, highest, [len(values) - 1]]))


def curve_chart(
    steps: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    unit: str,
    floor: float | None = None,
    buckets: int = MOST_BUCKETS,
) -> str:
    """Curves over the steps: each faint, its moving average strong.

    Args:
        curves: label to a value for each step; NaN where there is none.
        unit: of the values.
        floor: where the axis begins; by default a little below the lowest value.
        buckets: of ``thinned``, for each of a few curves.
    """
    return overlaid_chart({label: (steps, values) for label, values in curves.items()}, unit, floor, buckets)


def overlaid_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    unit: str,
    floor: float | None = None,
    buckets: int = MOST_BUCKETS,
) -> str:
    """``curve_chart`` of curves that have steps of their own: label to steps and values."""
    arrays = {
        label: (np.asarray(steps, np.float64), np.asarray(values, np.float64))
        for label, (steps, values) in curves.items()
        if np.isfinite(values).any()
    }
    top, legend = _legend(list(arrays))
    every_step = np.concatenate([steps for steps, _ in arrays.values()]) if arrays else np.array([1.0])
    values = np.concatenate([values for _, values in arrays.values()]) if arrays else np.array([0.0])
    across = _Scale.over(every_step, LEFT, WIDTH - RIGHT, margin=0.0)
    upward = _Scale.over(values[np.isfinite(values)], HEIGHT - BOTTOM, top, floor=floor)
    buckets = max(FEWEST_BUCKETS, min(buckets, buckets * CURVES_IN_FULL // max(1, len(arrays))))
    drawn = [
        _curve(across, upward, steps, array, index, buckets) for index, (steps, array) in enumerate(arrays.values())
    ]
    return _svg(HEIGHT, [*_axes(across, upward, top, unit), *drawn, legend])


def stacked_chart(steps: Sequence[float], parts: Mapping[str, Sequence[float]], unit: str) -> str:
    """Bars over the steps whose parts lie one on the other: label to the part of each step."""
    top, legend = _legend(list(parts))
    layers = np.array(list(parts.values()), np.float64)
    levels = np.vstack([np.zeros(len(steps)), np.cumsum(layers, axis=0)])
    edges = np.append(steps, 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1)
    across = _Scale.over(edges, LEFT, WIDTH - RIGHT, margin=0.0)
    upward = _Scale.over(levels[-1], HEIGHT - BOTTOM, top, floor=0.0)
    areas = []
    for index in range(len(layers)):
        x = across(np.repeat(edges, 2)[1:-1])
        upper, lower = (upward(np.repeat(level, 2)) for level in (levels[index + 1], levels[index]))
        outline = _path(np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]]))
        areas.append(f'<path d="{outline} Z" fill="{COLORS[2 - index]}"/>')
    return _svg(HEIGHT, [*_axes(across, upward, top, unit), *areas, legend])


def bar_chart(
    rows: Mapping[str, Mapping[str, float]],
    unit: str,
    notes: Mapping[str, str] | None = None,
    most: float | None = None,
) -> str:
    """Level bars: label of a row to name of a bar to its length, one bar below the other; NaN draws none.

    Args:
        notes: text at the end of a row.
        most: where the axis ends; by default a little above the longest bar.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    top, legend = _legend(names)
    group = BAR * len(names) + BAR_GAP
    left = min(LABEL_LETTERS, max(len(label) for label in rows)) * LETTER + 12
    height = top + group * len(rows) + BOTTOM
    lengths = np.array([value for row in rows.values() for value in row.values() if math.isfinite(value)] or [1.0])
    margin = 0.05 if most is None else 0.0
    longest = lengths if most is None else np.array([most])
    across = _Scale.over(longest, left, WIDTH - (90 if notes else 30), floor=0.0, margin=margin)
    parts = [*_upright_lines(across, top, height - BOTTOM), _text(left, height - 6, unit, "start")]
    for index, (label, row) in enumerate(rows.items()):
        y = top + group * index
        shown = label if len(label) <= LABEL_LETTERS else label[: LABEL_LETTERS - 1] + "…"
        parts.append(_text(left - 8, y + (group - BAR_GAP) / 2 + 4, shown, "end"))
        for place, name in enumerate(names):
            if math.isfinite(value := row.get(name, math.nan)):
                size = f'width="{across(value) - left:.1f}" height="{BAR - 2}"'
                color = COLORS[place % len(COLORS)]
                title = f"<title>{escape(label)}, {escape(name)}: {value:.4f}</title>"
                parts.append(f'<rect x="{left:.1f}" y="{y + BAR * place:.1f}" {size} fill="{color}">{title}</rect>')
        if notes and notes.get(label):
            parts.append(_text(WIDTH - 84, y + (group - BAR_GAP) / 2 + 4, notes[label], "start"))
    return _svg(height, [*parts, legend])


class _Scale:
    """Maps values to places, and knows the round values that an axis names."""

    def __init__(self, low: float, high: float, start: float, stop: float):
        self.low, self.high, self._start, self._stop = low, high, start, stop

    @classmethod
    def over(
        cls, values: np.ndarray, start: float, stop: float, floor: float | None = None, margin: float = 0.05
    ) -> _Scale:
        """A scale on which all values lie."""
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        low = low if floor is None else floor
        spare = margin * (high - low) or (0.5 if high == low else 0.0)
        return cls(low - (spare if floor is None else 0.0), high + spare, start, stop)

    def __call__(self, values):
        return self._start + (values - self.low) / (self.high - self.low) * (self._stop - self._start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis, at most ``most`` or one more."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / distance - 1e-9)
        return [place * distance for place in range(first, math.floor(self.high / distance + 1e-9) + 1)]


def _axes(across: _Scale, upward: _Scale, top: float, unit: str) -> list[str]:
    """Level lines with their values, the steps below, and the unit above."""
    parts = []
    for value in upward.ticks():
        y = upward(value)
        parts.append(f'<path {GRID} d="M {LEFT} {y:.1f} L {WIDTH - RIGHT} {y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.6g}", "end"))
    for value in across.ticks():
        if value == int(value):
            parts.append(_text(across(value), HEIGHT - BOTTOM + 16, f"{int(value):,}", "middle"))
    return [*parts, _text(WIDTH - RIGHT, HEIGHT - 4, f"step · {unit}", "end")]


def _upright_lines(across: _Scale, top: float, bottom: float) -> list[str]:
    parts = []
    for value in across.ticks():
        parts.append(f'<path {GRID} d="M {across(value):.1f} {top} L {across(value):.1f} {bottom:.1f}"/>')
        parts.append(_text(across(value), bottom + 14, f"{value:g}", "middle"))
    return parts


def _legend(labels: Sequence[str]) -> tuple[float, str]:
    """The place below the legend, and the legend; it breaks into lines."""
    parts, x, y = [], float(LEFT), 12.0
    for index, label in enumerate(labels):
        width = 26 + LETTER * len(label) + 14
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + LEGEND_LINE
        parts.append(f'<path d="M {x:.0f} {y - 4:.0f} L {x + 18:.0f} {y - 4:.0f}" {_stroke(index)}/>')
        parts.append(_text(x + 24, y, label, "start"))
        x += width
    return y + 12, "".join(parts)


def _curve(across: _Scale, upward: _Scale, steps: np.ndarray, values: np.ndarray, index: int, buckets: int) -> str:
    """A curve faint and its moving average strong; one value alone is a dot."""
    if len(values) == 1:
        color = COLORS[index % len(COLORS)]
        return f'<circle cx="{across(steps[0]):.1f}" cy="{upward(values[0]):.1f}" r="3.5" fill="{color}"/>'
    parts = []
    for array, style in ((values, _stroke(index, faint=True)), (smoothed(values), _stroke(index))):
        places = thinned(array, buckets)
        parts.append(f'<path d="{_path(across(steps[places]), upward(array[places]))}" {style}/>')
    return "".join(parts)


def _stroke(index: int, faint: bool = False) -> str:
    color = f'fill="none" stroke="{COLORS[index % len(COLORS)]}"'
    if faint:
        return f'{color} stroke-width="0.8" stroke-opacity="0.35"'
    dashes = DASHES[index // len(COLORS) % len(DASHES)]
    return f'{color} stroke-width="1.9" stroke-linejoin="round"' + (f' stroke-dasharray="{dashes}"' if dashes else "")


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through the points; it is broken where a value is missing."""
    parts, pen = [], "M"
    for across, upward in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(upward):
            parts.append(f"{pen} {across:.1f} {upward:.1f}")
            pen = "L"
        else:
            pen = "M"
    return " ".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" fill="currentColor" role="img">'
        + "".join(parts)
        + "</svg>"
    )
