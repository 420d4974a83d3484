"""``python -m pipelines.experiment``: make texts and models, run every arm, score, write the results page.

Everything that is finished stays in the folder and is not done again, so a stopped experiment goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.experiment import arms
from pipelines.experiment.arms import Arm, Run
from pipelines.experiment.models import LARGER_SOURCE, larger_source_folder, make_models, target_folder
from pipelines.experiment.page import write_page
from pipelines.experiment.results import Choice, Findings, Row
from pipelines.experiment.runs import Laboratory
from pipelines.experiment.texts import HELD_OUT, VALIDATION, experiment_parts, write_texts
from pipelines.merges import write_merge
from pipelines.quickstart.build import FOLDER as QUICKSTART

SEEDS = (0, 1, 2)
LARGER_STEPS = 900
SOURCES = ("llama-docs", "gpt2-code", "neox-mixed")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiment", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/experiment"), help="keeps every run")
    parser.add_argument(
        "--page", type=Path, default=Path("pipelines/RESULTS.md"), help="plots go to results/ beside it"
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of the arms that are compared")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="of the ablations")
    parser.add_argument("--rates", type=float, nargs="+", default=arms.RATES, help="peak learning rates to choose from")
    options = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - started) / 60:5.1f} min  {line}", flush=True)

    seeds = tuple(range(options.seeds))
    parts = experiment_parts()
    write_texts(options.folder / "texts", parts)
    make_models(options.folder, parts, seeds, LARGER_STEPS)
    say(f"{len(seeds)} targets and the larger source are made")
    laboratory = Laboratory(options.folder, say)
    try:
        findings = [
            setting_a(laboratory, options.rates, seeds, seeds[: options.ablation_seeds]),
            setting_b(laboratory, options.rates, seeds),
        ]
        write_page(options.page, findings, (time.monotonic() - started) / 60)
    finally:
        laboratory.close()
    say(f"{options.page} is written")


def setting_a(
    laboratory: Laboratory, rates: Sequence[float], seeds: Sequence[int], ablation_seeds: Sequence[int]
) -> Findings:
    """Continued training, distillation and fusion at their own learning rates; ablations at fusion's."""
    compared = (arms.CONTINUED, arms.DISTILLED, arms.FUSED)
    choices = choose_rates(laboratory, compared, rates)
    chosen = {choice.arm: choice.rate for choice in choices}
    trained = [(arm, [Run(arm, chosen[arm.name], seed) for seed in seeds]) for arm in compared]
    ablated = [(arm, [Run(arm, chosen[arm.rate_of], seed) for seed in ablation_seeds]) for arm in arms.ABLATIONS]
    laboratory.run([run for _, runs in (*trained, *ablated) for run in runs])
    folder = laboratory.folder
    rows = [model_row(laboratory, "a", "target before", [target_folder(folder, seed) for seed in seeds])]
    places = {name: QUICKSTART / "models" / name for name in SOURCES} | {LARGER_SOURCE: larger_source_folder(folder)}
    for name, place in places.items():
        rows.append(model_row(laboratory, "a", name, [place] * len(seeds)))
    rows += [run_row(laboratory, arm, runs) for arm, runs in trained]
    return Findings("a", choices, rows, [run_row(laboratory, arm, runs) for arm, runs in ablated])


def setting_b(laboratory: Laboratory, rates: Sequence[float], seeds: Sequence[int]) -> Findings:
    """Experts, their ensemble, their merges, and the base fused from them, beside plain continued training."""
    choices = choose_rates(laboratory, (arms.MIXED,), rates)
    for domain, arm in arms.EXPERTS.items():
        choices += choose_rates(laboratory, (arm,), rates, domain)
    chosen = {choice.arm: choice.rate for choice in choices}
    expert_rates = {domain: chosen[arm.name] for domain, arm in arms.EXPERTS.items()}
    experts = {domain: [Run(arm, expert_rates[domain], seed) for seed in seeds] for domain, arm in arms.EXPERTS.items()}
    mixed = [Run(arms.MIXED, chosen[arms.MIXED.name], seed) for seed in seeds]
    laboratory.run([run for runs in (*experts.values(), mixed) for run in runs])
    fusion = arms.fused_experts(expert_rates)
    choices += choose_rates(laboratory, (fusion,), rates)
    fused = [Run(fusion, choices[-1].rate, seed) for seed in seeds]
    laboratory.run(fused)
    bases = [target_folder(laboratory.folder, seed) for seed in seeds]
    rows = [model_row(laboratory, "b", "base", bases)]
    rows += [run_row(laboratory, arms.EXPERTS[domain], runs) for domain, runs in experts.items()]
    by_seed = [[laboratory.export(run) for run in runs] for runs in zip(*experts.values(), strict=True)]
    ensembles = [laboratory.ensemble_scores("b", HELD_OUT, places) for places in by_seed]
    rows.append(Row("ensemble of the experts", ensembles))
    for method in ("linear", "sce"):
        merged = [merged_experts(laboratory, method, base, places) for base, places in zip(bases, by_seed, strict=True)]
        rows.append(model_row(laboratory, "b", f"experts merged ({method})", merged))
    rows += [run_row(laboratory, arms.MIXED, mixed), run_row(laboratory, fusion, fused)]
    return Findings("b", choices, rows, [])


def choose_rates(
    laboratory: Laboratory, compared: Sequence[Arm], rates: Sequence[float], domain: str = ""
) -> list[Choice]:
    """Run seed 0 of each arm at each learning rate; the best one on the validation text is the arm's."""
    runs = {arm.name: [Run(arm, rate, 0) for rate in rates] for arm in compared}
    laboratory.run([run for found in runs.values() for run in found])
    return [
        Choice(name, dict(zip(rates, laboratory.means(found, VALIDATION, domain), strict=True)))
        for name, found in runs.items()
    ]


def run_row(laboratory: Laboratory, arm: Arm, runs: Sequence[Run]) -> Row:
    """An arm's held-out scores, with the command that repeats its first run."""
    scores = laboratory.scores(arm.setting, HELD_OUT, [laboratory.export(run) for run in runs])
    seconds = sum(map(laboratory.seconds, runs)) / len(runs)
    return Row(arm.name, scores, runs[0].rate, seconds, tuple(runs[0].overrides(laboratory.folder)))


def model_row(laboratory: Laboratory, setting: str, name: str, checkpoints: Sequence[Path]) -> Row:
    """Held-out scores of models that no arm has trained."""
    return Row(name, laboratory.scores(setting, HELD_OUT, checkpoints))


def merged_experts(laboratory: Laboratory, method: str, base: Path, experts: Sequence[Path]) -> Path:
    """Where the merge of a seed's experts is written; see ``evaluation.merges`` of the spec."""
    from engine.spec import Merge

    place = laboratory.folder / "merges" / method / base.name
    recipe = {"method": method, "models": tuple(map(str, experts))} | ({"base": str(base)} if method == "sce" else {})
    parts = [base, *experts] if method == "sce" else experts
    write_merge(Merge(**recipe), list(map(str, parts)), str(place))
    return place


if __name__ == "__main__":
    main()
