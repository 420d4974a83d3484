"""The picture of an evaluation: bars of held-out bits per byte, model by model and domain by domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Inches of a group of bars, and of what stands around them.
GROUP_HEIGHT, FRAME_HEIGHT = 0.32, 0.9


def bits_per_byte_bars(scores: Mapping[str, Mapping[str, float]], colors: Sequence[str]) -> Callable[[Figure], None]:
    """What draws the bars into a figure, which grows with the number of models.

    Args:
        scores: label to domain to bits per byte.
        colors: of the domains, one after the other.
    """
    domains = list(dict.fromkeys(domain for row in scores.values() for domain in row))
    places, thickness = np.arange(len(scores)), 0.8 / len(domains)

    def draw(figure: Figure) -> None:
        figure.set_figheight(FRAME_HEIGHT + GROUP_HEIGHT * len(scores))
        axes = figure.subplots()
        for index, domain in enumerate(domains):
            values = [row.get(domain, math.nan) for row in scores.values()]
            offset = (index - (len(domains) - 1) / 2) * thickness
            axes.barh(places + offset, values, 0.9 * thickness, color=colors[index % len(colors)], label=domain)
        axes.set_yticks(places, list(scores))
        axes.invert_yaxis()
        axes.set_xlabel("bits per byte")
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        figure.legend(loc="outside upper left", ncols=min(4, len(domains)))

    return draw
