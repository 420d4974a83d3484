"""The plot of an evaluation as PNG, for pages that show no SVG.

Drawn with matplotlib's objects, not ``pyplot``: no state, no display, safe in any thread.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping

import numpy as np

from engine.reporting.charts import COLORS

# On import matplotlib writes a list of fonts into the user's home. A run must not, so it gets a scratch folder.
with tempfile.TemporaryDirectory() as scratch:
    os.environ.setdefault("MPLCONFIGDIR", scratch)
    import matplotlib
    from matplotlib.figure import Figure

    if os.environ["MPLCONFIGDIR"] == scratch:
        del os.environ["MPLCONFIGDIR"]

#: Inches of the plot; of a group of bars, and of the frame around the bars.
WIDTH = 5.4
GROUP_HEIGHT, FRAME_HEIGHT = 0.32, 0.9
DOTS_PER_INCH = 160

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#dcdfe2",
    "grid.color": "#dcdfe2",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def bits_per_byte_png(scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """Bars of held-out bits per byte as PNG on white.

    Args:
        scores: label to domain to bits per byte.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
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
