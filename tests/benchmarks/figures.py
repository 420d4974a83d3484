"""Time of a call, and the JSON line in which a benchmark reports a figure."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable


def best_seconds(work: Callable[[], object], at_least: float = 1.0, most_rounds: int = 50) -> float:
    """CPU seconds of one call, the best of as many as fit into ``at_least`` seconds; compiled by a first call."""
    work()
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds == 0 or (spent < at_least and rounds < most_rounds):
        started = time.process_time()
        work()
        seconds = time.process_time() - started
        best, spent, rounds = min(best, seconds), spent + seconds, rounds + 1
    return best


def say(figure: str, value: float, unit: str, against: str, ratio: float, **on: object) -> None:
    """Print one figure as a JSON line.

    Args:
        against: what it was measured against in the same run. ratio: how many times better (above 1) than that.
        on: what it was run on.
    """
    line = {
        "figure": figure,
        "value": _rounded(value),
        "unit": unit,
        "against": against,
        "ratio": _rounded(ratio),
        "on": {**on, "processor": _processor(), "cores": os.cpu_count()},
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
