"""``python -m pipelines.experiment.real``: fusion of published models; writes its chapter of the results page.

Finished work stays in the folder and is not repeated, so a stopped experiment continues where it stopped. The findings
on each corpus stay beside the page, which shows all that are there: corpora can be done on days of their own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.experiment.__main__ import model_row, run_row, trained_runs
from pipelines.experiment.arms import REAL_RATES, real_arms
from pipelines.experiment.choices import choose
from pipelines.experiment.kept import keep, kept
from pipelines.experiment.page import machine
from pipelines.experiment.real_models import place_models, smollm2_file
from pipelines.experiment.real_page import write_real_chapter
from pipelines.experiment.real_texts import REAL_CORPORA, write_real_texts
from pipelines.experiment.results import Findings
from pipelines.experiment.runs import Laboratory

SEEDS = 2
LONGEST_RUN_SECONDS = 3600


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - started) / 60:6.1f} min  {line}", flush=True)

    place_models(options.folder)
    write_real_texts(options.folder / "texts", options.corpora)
    say("models and texts are in place")
    with Laboratory(options.folder, LONGEST_RUN_SECONDS, say) as laboratory:
        figures = options.page.parent / "figures"
        for corpus in options.only or REAL_CORPORA:
            began = time.monotonic()
            found = on_corpus(laboratory, corpus, sorted(options.rates), range(options.seeds))
            keep(figures, replace(found, machine=machine(), minutes=(time.monotonic() - began) / 60))
            write_real_chapter(options.page, [*filter(None, (kept(figures, name) for name in REAL_CORPORA))])
            say(f"{corpus} is on {options.page}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiment.real", description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, help="a folder with handbook_de.parquet and the others")
    parser.add_argument("--folder", type=Path, default=Path("outputs/experiment-real"), help="keeps texts and runs")
    parser.add_argument("--page", type=Path, default=Path("pipelines/experiment/RESULTS.md"))
    parser.add_argument("--only", nargs="+", choices=list(REAL_CORPORA), help="corpora; all if not given")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rates", type=float, nargs="+", default=REAL_RATES, help="peak learning rates to choose from")
    return parser


def on_corpus(laboratory: Laboratory, corpus: str, rates: Sequence[float], seeds: Sequence[int]) -> Findings:
    """Compare the arms on one corpus, each at a rate of its own; the last two take the weight that Gemma's chose."""
    arms = real_arms(corpus)
    choices = choose(laboratory, [*filter(None, (arms.continued, arms.once, arms.gemma))], rates)
    weights = (choices[-1].weight,)
    choices += choose(laboratory, [replace(arm, weights=weights) for arm in (arms.itself, arms.both)], rates)
    trained = trained_runs(arms.all, choices, seeds)
    laboratory.run([run for runs in trained.values() for run in runs])
    before = smollm2_file(laboratory.folder)
    rows = [model_row(laboratory, corpus, "target before", [before] * len(seeds))]
    rows[0] = replace(rows[0], tasks=laboratory.tasks(corpus, [before]))
    for arm, runs in trained.items():
        exports = [laboratory.export(run) for run in runs]
        rows.append(replace(run_row(laboratory, arm, runs), tasks=laboratory.tasks(corpus, exports)))
    return Findings(corpus, choices, rows)


if __name__ == "__main__":
    main()
