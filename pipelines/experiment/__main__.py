"""``python -m pipelines.experiment``: make texts and models, run every arm, score, write the results page.

Finished work stays in the folder and is not repeated, so a stopped experiment continues where it stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from engine.model_files.checkpoint import Checkpoint
from pipelines.evaluation.merges import write_merge
from pipelines.experiment import arms
from pipelines.experiment.arms import LM_LOSS_ALONE, Arm, Run
from pipelines.experiment.choices import choose, middle
from pipelines.experiment.models import (
    base_folder,
    base_jobs,
    equal_folder,
    expert_folder,
    expert_job,
    larger_folder,
    made_meanwhile,
    make,
    source_jobs,
    target_folder,
    target_jobs,
)
from pipelines.experiment.page import write_page
from pipelines.experiment.results import Choice, Findings, Row
from pipelines.experiment.runs import Laboratory
from pipelines.experiment.texts import (
    BASE,
    EXPERT,
    HELD_OUT,
    VALIDATION,
    domains_of,
    expert_parts,
    quickstart_parts,
    write_texts,
)
from pipelines.quickstart.build import FOLDER as QUICKSTART
from pipelines.quickstart.texts import Document

SEEDS = 3
LONGEST_RUN_SECONDS = 600
SOURCES = ("llama-docs", "gpt2-code", "neox-mixed")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - started) / 60:5.1f} min  {line}", flush=True)

    seeds = range(options.seeds)
    experts = expert_parts(options.corpora)
    write_texts(options.folder / "texts", experts)
    say("the texts are written")
    rates, ablation_seeds = sorted(options.rates), range(options.ablation_seeds)
    target_text, source_text = quickstart_parts()
    bases = base_jobs(options.folder, seeds, experts[BASE], domains_of(experts[BASE]))
    make([*target_jobs(options.folder, seeds, target_text), *bases])
    say("targets and bases are made")
    with Laboratory(options.folder, LONGEST_RUN_SECONDS, say) as laboratory:
        with made_meanwhile(source_jobs(options.folder, source_text)):  # setting A's, which take the longest
            experts_fused = setting_b(laboratory, rates, seeds, ablation_seeds, experts[EXPERT])
            without_them = choose(laboratory, (arms.CONTINUED, arms.FUSED), rates)
        say("setting B is done, and the sources of setting A are made")
        sources_fused = setting_a(laboratory, rates, seeds, ablation_seeds, without_them)
        write_page(options.page, [sources_fused, experts_fused], (time.monotonic() - started) / 60)
    say(f"{options.page} is written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiment", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/experiment"), help="keeps texts, models and runs")
    parser.add_argument(
        "--page", type=Path, default=Path("pipelines/experiment/RESULTS.md"), help="plots go to figures/ beside it"
    )
    parser.add_argument("--corpora", type=Path, help="a folder; its three largest files are the domains of setting B")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the compared arms")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="of the ablations; 0 leaves them out")
    parser.add_argument("--rates", type=float, nargs="+", default=arms.RATES, help="peak learning rates to choose from")
    return parser


def setting_a(
    laboratory: Laboratory,
    rates: Sequence[float],
    seeds: Sequence[int],
    ablation_seeds: Sequence[int],
    chosen: Sequence[Choice],
) -> Findings:
    """Compare continued training, distillation and fusion, each at its own rate and weight; ablations at fusion's.

    Args:
        chosen: the rates and weights of continued training and of fusion.
    """
    choices = [*chosen, *choose(laboratory, (arms.DISTILLED, arms.EQUAL, *arms.SINGLE, arms.PAPERS), rates)]
    compared = (arms.CONTINUED, arms.DISTILLED, arms.EQUAL, arms.FUSED, *arms.SINGLE, arms.PAPERS)
    trained = trained_runs(compared, choices, seeds)
    ablated = trained_runs((*arms.ABLATIONS, arms.PAIRWISE), choices, ablation_seeds)
    laboratory.run([run for runs in (*trained.values(), *ablated.values()) for run in runs])
    folder = laboratory.folder
    rows = [model_row(laboratory, "a", "target before", [target_folder(folder, seed) for seed in seeds])]
    sources = {name: QUICKSTART / "models" / name for name in SOURCES}
    sources |= {"larger source": larger_folder(folder), "equal source": equal_folder(folder)}
    rows += [model_row(laboratory, "a", name, [place] * len(seeds)) for name, place in sources.items()]
    rows += [run_row(laboratory, arm, runs) for arm, runs in trained.items()]
    ablations = [run_row(laboratory, arm, runs) for arm, runs in ablated.items() if runs]
    return Findings("a", choices, rows, ablations, laboratory.planned(trained[arms.FUSED][0]))


def setting_b(
    laboratory: Laboratory,
    rates: Sequence[float],
    seeds: Sequence[int],
    ablation_seeds: Sequence[int],
    documents: list[Document],
) -> Findings:
    """Compare experts, their ensemble, their merges, the base fused from them, and plain continued training."""
    domains = domains_of(documents)
    choices = choose_expert_rates(laboratory, middle(rates), documents)
    expert_rates = {domain: choice.rate for domain, choice in zip(domains, choices, strict=True)}
    folder = laboratory.folder
    make([expert_job(folder, domain, documents, rate, seed) for domain, rate in expert_rates.items() for seed in seeds])
    compared = (arms.MIXED, arms.fused_experts(expert_rates))
    choices += choose(laboratory, compared, rates)
    trained = trained_runs(compared, choices, seeds)
    ablated = trained_runs(arms.other_rules(compared[1]), choices, ablation_seeds)
    laboratory.run([run for runs in (*trained.values(), *ablated.values()) for run in runs])
    bases = [base_folder(folder, seed) for seed in seeds]
    by_seed = [[expert_folder(folder, domain, expert_rates[domain], seed) for domain in domains] for seed in seeds]
    rows = [model_row(laboratory, "b", "base", bases)]
    for domain, places in zip(domains, zip(*by_seed, strict=True), strict=True):
        rows.append(model_row(laboratory, "b", f"expert {domain}", places, expert_rates[domain]))
    rows.append(Row("ensemble of the experts", [laboratory.ensemble_scores("b", HELD_OUT, found) for found in by_seed]))
    for method in ("linear", "sce"):
        merged = [merged_experts(folder, method, base, found) for base, found in zip(bases, by_seed, strict=True)]
        rows.append(model_row(laboratory, "b", f"experts merged ({method})", merged))
    rows += [run_row(laboratory, arm, runs) for arm, runs in trained.items()]
    ablations = [run_row(laboratory, arm, runs) for arm, runs in ablated.items() if runs]
    return Findings("b", choices, rows, ablations, laboratory.planned(trained[compared[1]][0]))


def trained_runs(compared: Sequence[Arm], choices: Sequence[Choice], seeds: Sequence[int]) -> dict[Arm, list[Run]]:
    """The runs of each arm with the rate and the weight that it or another chose."""
    chosen = {choice.arm: choice for choice in choices}
    found = {}
    for arm in compared:
        choice = chosen[arm.rate_of or arm.name]
        found[arm] = [Run(arm, choice.rate, seed, choice.weight) for seed in seeds]
    return found


def choose_expert_rates(laboratory: Laboratory, rates: Sequence[float], documents: list[Document]) -> list[Choice]:
    """The rates of the experts, each on the validation text of its own domain."""
    folder, domains = laboratory.folder, domains_of(documents)
    make([expert_job(folder, domain, documents, rate, 0) for domain in domains for rate in rates])
    places = [(rate, LM_LOSS_ALONE) for rate in rates]
    return [
        Choice(
            f"expert {domain}",
            dict(zip(places, laboratory.means("b", VALIDATION, models, domain), strict=True)),
        )
        for domain in domains
        for models in [[expert_folder(folder, domain, rate, 0) for rate in rates]]
    ]


def run_row(laboratory: Laboratory, arm: Arm, runs: Sequence[Run]) -> Row:
    """An arm's held-out scores, with the command that repeats its first run."""
    scores = laboratory.scores(arm.setting, HELD_OUT, [laboratory.export(run) for run in runs])
    seconds = sum(map(laboratory.seconds, runs)) / len(runs)
    weight = runs[0].weight if arm.has_sources else math.nan
    return Row(arm.name, scores, runs[0].rate, weight, seconds, tuple(runs[0].overrides(laboratory.folder)))


def model_row(
    laboratory: Laboratory, setting: str, name: str, checkpoints: Sequence[Path], rate: float = math.nan
) -> Row:
    """Held-out scores of models that were not made by a run, one for each seed."""
    return Row(name, laboratory.scores(setting, HELD_OUT, checkpoints), rate)


def merged_experts(folder: Path, method: str, base: Path, experts: Sequence[Path]) -> Path:
    """Merge the experts of a seed, as ``evaluation.merges`` of a spec does; returns the folder."""
    from engine.spec import MergeSpec

    place = folder / "merges" / method / base.name
    recipe = {"method": method, "models": tuple(map(str, experts))} | ({"base": str(base)} if method == "sce" else {})
    parts = [base, *experts] if method == "sce" else experts
    write_merge(MergeSpec(**recipe), [Checkpoint(str(part)) for part in parts], str(place))
    return place


if __name__ == "__main__":
    main()
