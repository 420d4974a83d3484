"""What the page costs: CPU seconds and bytes of a writing by the number of steps, and what a look at tokens costs.

python -m tests.benchmarks.page [CORPUS_FILE ...]
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.history.result import Progress, StageTotals
from engine.history.sampling import is_sampled
from engine.method.inspection import MOST_ROWS, as_text, chosen_answers, inspect
from engine.reporting.page import Status, render_report
from engine.reporting.token_view import token_data
from engine.spec import FusionRuleSpec, FusionSpec
from engine.spec.loading import load_spec
from pipelines.run.live_page import SECONDS_BETWEEN
from pipelines.run.result import result_of
from tests.benchmarks.alignment import SOURCES, Work
from tests.benchmarks.figures import best_seconds
from tests.benchmarks.passages import QUICKSTART, documents
from tests.support.step_records import step_record

STEPS = (30, 1_000, 10_000, 100_000)

#: Tokens of the batches that are looked at: two of the quickstart's blocks, and a batch of a large run.
BATCHES = (512, 8_192)


def main(paths: list[Path]) -> None:
    """Print a line for each number of steps, and one for each size of a batch."""
    spec = load_spec("pipelines/specs/quickstart.yaml")
    print(f"{'steps':>8} {'CPU s':>8} {'% of a core':>12} {'kB':>8} {'of them tokens':>15}")
    for steps in STEPS:
        seconds, size, tokens = cost(spec, steps)
        share = 100 * seconds / SECONDS_BETWEEN
        print(f"{steps:>8,} {seconds:>8.3f} {share:>12.2f} {size / 1000:>8.0f} {tokens / 1000:>15.0f}")
    print(f"\n{'batch':>8} {'ms align, fuse':>15} {'ms a look':>10} {'bytes a look':>13}")
    for tokens in BATCHES:
        fusing, looking, size = cost_of_a_look(documents(paths), tokens)
        print(f"{tokens:>8,} {1000 * fusing:>15.2f} {1000 * looking:>10.2f} {size:>13,}")


def cost(spec: FusionSpec, steps: int) -> tuple[float, int, int]:
    """CPU seconds and bytes of one page of three sources with full looks at tokens; bytes of these."""
    three = dict.fromkeys(("source_nats", "source_wins"), (1000.0, 1100.0, 900.0))
    counts = dict.fromkeys(("source_bytes", "source_covered_rows", "source_left_out"), (2000, 2000, 2000))
    record = step_record(1, tokens=440, passages=40, bytes=2000, fused_rows=300, **three, **counts)
    history = [replace(record, step=step, loss=2.0 + math.sin(step)) for step in range(1, steps + 1)]
    picture = Progress(stages=(StageTotals("train", 480, 5280, 18.0, 6.0, 1, 1),))
    looks = [full_look(step) for step in range(1, steps + 1) if is_sampled(step, steps) for _ in range(2)]
    status = Status("running", 1.8e9, SECONDS_BETWEEN)
    started = time.process_time()
    result = result_of(spec, history, picture, 60.0, None)
    page = render_report(spec, result, status, token_data(spec, looks, [b" token"] * 2000))
    seconds = time.process_time() - started
    without = render_report(spec, result, status)
    return seconds, len(page.encode("utf8")), len(page.encode("utf8")) - len(without.encode("utf8"))


def full_look(step: int) -> dict[str, Any]:
    """A look of the most rows, with five entries of every model in each."""
    random = np.random.default_rng(step)

    def rows() -> list[list[Any]]:
        return [
            [random.integers(2000, size=5).tolist(), (random.random(5) / 5).round(4).tolist(), 0.1234]
            for _ in range(MOST_ROWS)
        ]

    numbers = random.random(MOST_ROWS).round(4).tolist()
    sources = [{"how": [1] * MOST_ROWS, "cost": numbers, "rows": rows()} for _ in range(3)]
    return {
        "step": step, "sample": step, "passage": f"{step}/a:{random.integers(10**6)}:1", "why": "at random", "first": 0,
        "before": [1] * 25, "tokens": random.integers(2000, size=MOST_ROWS).tolist(), "fused": rows(),
        "weights": [[0.3333] * 3] * MOST_ROWS, "cross_entropy": [1.234] * 3, "sources": sources, "own": rows(),
        "costs": numbers, "gains": numbers,
    }  # fmt: skip


def cost_of_a_look(texts: list[str], tokens: int) -> tuple[float, float, int]:
    """Seconds to align and fuse a batch of three sources, seconds and bytes of a look at one of its passages."""
    window = min(512, tokens // 4)
    work, fusion = Work(texts, window, 64, tokens // window), FusionRuleSpec(rule="min_ce", top_k=64)
    aligned = [source.aligned(work.texts, work.rows, "bytes") for source in work.sources]
    fused = work.run(fusion, "bytes")
    names = [f"passage {number}" for number in range(len(work.texts))]

    def looks() -> list[str]:
        method = (fusion, work.target.vocab_size, SOURCES, False, work.canonical)
        chosen = chosen_answers(names, work.rows, fused.cross_entropy)
        return [as_text(inspect(answer, work.rows, aligned, fused, *method)) for answer in chosen]

    found = looks()
    seconds = best_seconds(lambda: work.run(fusion, "bytes"))
    return seconds, best_seconds(looks) / len(found), sum(map(len, found)) // len(found)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or QUICKSTART)
