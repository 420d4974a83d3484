"""What the page costs: CPU seconds and bytes of a writing by the number of steps, and what a look at tokens costs.

    python -m tests.benchmarks.page [--steps 30 1000 10000 100000] [CORPUS_FILE ...]

A JSON line a figure. ``page_while_it_runs``: one more writing after one more step of a run of so many steps, against
the 0.3 s that are 1 % of a core every 30 s. ``page_at_once``: the page of all steps from their records, as at the end
of a run and in ``report``. ``page_bytes``: against the most that a page may have. ``look``: of a passage, against
aligning and fusing its batch. Looks are the largest, of 64 rows.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.history.result import Progress, StageTotals, StepRecord
from engine.history.sampling import is_sampled
from engine.method.inspection import MOST_ROWS, as_text, chosen_answers, inspect
from engine.reporting.page import Status, render_report
from engine.reporting.token_view import token_data
from engine.spec import CorpusSpec, FusionRuleSpec, FusionSpec
from engine.spec.loading import load_spec
from pipelines.run.live_page import MOST_CPU_SHARE, SECONDS_BETWEEN, LivePage
from pipelines.run.result import result_of
from tests.benchmarks.alignment import SOURCES, Work
from tests.benchmarks.figures import best_seconds, say
from tests.benchmarks.passages import QUICKSTART, documents
from tests.support.step_records import step_record

#: Domains of the corpus, and source models.
SHAPES = ((0, 3), (16, 4), (16, 8))

#: The bytes that a page may have.
MOST_BYTES = 3_000_000

#: Tokens of the batches that are looked at: two of the quickstart's blocks, and a batch of a large run.
BATCHES = (512, 8_192)

TOKEN_BYTES = [b" token"] * 2000
PICTURE = Progress(stages=(StageTotals("train", 480, 5280, 18.0, 6.0, 1, 1),))


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 1_000, 10_000, 100_000])
    parser.add_argument("files", type=Path, nargs="*", metavar="CORPUS_FILE")
    chosen = parser.parse_args()
    for domains, sources in SHAPES:
        for steps in chosen.steps:
            cost(domains, sources, steps)
    for tokens in BATCHES:
        fusing, looking, size = cost_of_a_look(documents(chosen.files or QUICKSTART), tokens)
        say("look", 1000 * looking, "CPU ms", "aligning and fusing its batch", fusing / looking, tokens=tokens)
        say("look_bytes", size, "bytes", "the largest page", MOST_BYTES / size, tokens=tokens)


def cost(domains: int, sources: int, steps: int) -> None:
    """Print what the pages of a run of so many steps cost."""
    with tempfile.TemporaryDirectory() as folder:
        spec, history = spec_of(folder, domains, sources), records(domains, sources, steps)
        sampled = [step for step in range(1, steps + 1) if is_sampled(step, steps)]
        looks = [full_look(step, sources) for step in sampled for _ in range(2)]
        on = {"steps": steps, "domains": domains, "sources": sources}
        most = MOST_CPU_SHARE * SECONDS_BETWEEN
        running = cost_while_it_runs(spec, history, looks)
        say("page_while_it_runs", running, "CPU s", "1 % of a core", most / running, **on)
        started = time.process_time()
        result = result_of(spec, history, PICTURE, 60.0, None)
        data = token_data(spec, looks, TOKEN_BYTES)
        page = render_report(spec, result, Status("done", 1.8e9), data)
        seconds = time.process_time() - started
        say("page_at_once", seconds, "CPU s", "1 % of a core", most / seconds, **on)
        size = len(page.encode("utf8"))
        rest = len(render_report(spec, result, Status("done", 1.8e9)).encode("utf8"))
        say("page_bytes", size, "bytes", "the largest page", MOST_BYTES / size, of_them_tokens=size - rest, **on)


def cost_while_it_runs(spec: FusionSpec, history: Sequence[StepRecord], looks: Sequence[dict[str, Any]]) -> float:
    """CPU seconds of a writing after the last step, where one was made before it."""
    page = LivePage(spec)
    page._token_bytes = TOKEN_BYTES  # read once in a run
    page.see(replace(PICTURE, steps=tuple(history[:-1]), looks=tuple(looks)), now=0.0)
    started = time.process_time()
    page.see(replace(PICTURE, steps=tuple(history[-1:])), now=1e9)
    return time.process_time() - started


def spec_of(folder: str, domains: int, sources: int) -> FusionSpec:
    """The quickstart's spec with so many domains and source models."""
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"run.output_dir={folder}"])
    models = [spec.source_models[0].model_copy(update={"name": f"source-{index}"}) for index in range(sources)]
    update: dict[str, Any] = {"source_models": tuple(models)}
    if domains:
        named = {f"domain-{index:02d}": {"paths": [f"{index}.jsonl"], "weight": 1.0} for index in range(domains)}
        update["corpus"] = CorpusSpec(domains=named)
    return spec.model_copy(update=update)


def records(domains: int, sources: int, steps: int) -> list[StepRecord]:
    """The records of a run whose numbers change from step to step; every tuple is an object of its own, as in a run."""
    random = np.random.default_rng(0)
    counts = dict.fromkeys(("source_bytes", "source_covered_rows", "source_left_out"), (2000,) * sources)
    counts |= dict.fromkeys(("domain_tokens", "domain_passages"), (27,) * domains)
    counts |= dict.fromkeys(("domain_source_bytes", "domain_source_covered_rows"), (125,) * domains * sources)
    first = step_record(1, tokens=440, passages=40, bytes=2000, fused_rows=300, **counts)

    def numbers(width: int) -> tuple[float, ...]:
        return tuple((1000 + random.random(width)).tolist())

    return [
        replace(
            first,
            step=step,
            loss=2.0 + math.sin(step),
            source_nats=numbers(sources),
            source_wins=numbers(sources),
            domain_bytes=(125 + step % 7,) * domains,
            domain_lm_nats=numbers(domains),
            domain_source_nats=numbers(domains * sources),
            domain_source_wins=numbers(domains * sources),
            held_out={f"domain-{index:02d}": 2.0 + math.cos(step) for index in range(domains)}
            if step % 50 == 0
            else {},
        )
        for step in range(1, steps + 1)
    ]


def full_look(step: int, sources: int) -> dict[str, Any]:
    """A look of the most rows, with five entries of every model in each."""
    random = np.random.default_rng(step)

    def rows() -> list[list[Any]]:
        return [
            [random.integers(2000, size=5).tolist(), (random.random(5) / 5).round(4).tolist(), 0.1234]
            for _ in range(MOST_ROWS)
        ]

    numbers = random.random(MOST_ROWS).round(4).tolist()
    models = [{"how": [1] * MOST_ROWS, "cost": numbers, "rows": rows()} for _ in range(sources)]
    return {
        "step": step, "sample": step, "passage": f"{step}/a:{random.integers(10**6)}:1", "why": "at random", "first": 0,
        "before": [1] * 25, "tokens": random.integers(2000, size=MOST_ROWS).tolist(), "fused": rows(),
        "weights": [[0.3333] * sources] * MOST_ROWS, "cross_entropy": [1.234] * sources, "sources": models,
        "own": rows(), "costs": numbers, "gains": numbers,
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
    main()
