"""What the live page costs: seconds and bytes of a writing, by the number of steps.

python -m tests.benchmarks.page
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from engine.history.result import Progress, StageTotals
from engine.reporting.page import Status, render_report
from engine.spec import FusionSpec
from engine.spec.loading import load_spec
from pipelines.run.live_page import SECONDS_BETWEEN
from pipelines.run.result import result_of
from tests.support.step_records import step_record

STEPS = (30, 1_000, 10_000, 100_000)


def main() -> None:
    """Print a line for each number of steps."""
    spec = load_spec("pipelines/specs/quickstart.yaml")
    print(f"{'steps':>8} {'CPU s':>8} {'% of a core':>12} {'kB':>8}")
    for steps in STEPS:
        seconds, size = cost(spec, steps)
        print(f"{steps:>8,} {seconds:>8.3f} {100 * seconds / SECONDS_BETWEEN:>12.2f} {size / 1000:>8.0f}")


def cost(spec: FusionSpec, steps: int) -> tuple[float, int]:
    """CPU seconds and bytes of one page of three sources."""
    three = dict.fromkeys(("source_nats", "source_wins"), (1000.0, 1100.0, 900.0))
    counts = dict.fromkeys(("source_bytes", "source_covered_rows", "source_left_out"), (2000, 2000, 2000))
    record = step_record(1, tokens=440, passages=40, bytes=2000, fused_rows=300, **three, **counts)
    history = [replace(record, step=step, loss=2.0 + math.sin(step)) for step in range(1, steps + 1)]
    picture = Progress(stages=(StageTotals("train", 480, 5280, 18.0, 6.0, 1, 1),))
    started = time.process_time()
    page = render_report(spec, result_of(spec, history, picture, 60.0, None), Status("running", 1.8e9, SECONDS_BETWEEN))
    return time.process_time() - started, len(page.encode("utf8"))


if __name__ == "__main__":
    main()
