"""Plot the differences of the arms with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.experiment.bootstrap import LEVEL, Interval

BETTER, UNSURE, WORSE = "#1b7837", "#888888", "#b2182b"


def plot_differences(path: Path, differences: Mapping[str, Interval]) -> None:
    """Draw a dot and an interval for each arm: green below zero, red above, grey if the interval contains zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.34 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for place, interval in enumerate(differences.values()):
        color = UNSURE if not interval.excludes_zero else BETTER if interval.high < 0 else WORSE
        axes.plot([interval.low, interval.high], [place, place], color=color, linewidth=2)
        axes.plot(interval.estimate, place, "o", color=color)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.invert_yaxis()
    axes.set_xlabel(f"held-out bits per byte less continued training, {LEVEL:.0%} interval (left is better)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
