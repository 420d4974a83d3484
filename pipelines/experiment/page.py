"""Write the results page: tables, sentences and plots from the experiment's findings alone."""

from __future__ import annotations

import math
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pipelines.experiment.arms import CONTINUED, FUSED, PAPERS, RULE_ARMS, SETTINGS, SINGLE, SPEC
from pipelines.experiment.bootstrap import LEVEL, RESAMPLES, Interval, spread
from pipelines.experiment.kept import keep
from pipelines.experiment.plots import plot_differences
from pipelines.experiment.results import Findings, Row

#: The paper's Table 7, mean over its three domains, lowest first (arXiv 2401.10491).
PAPERS_ORDER = ("fusion", "weight merging", "the best expert", "ensemble", "base", "the worst expert")
KINDS = {"fusion": "fusion", "ensemble of the experts": "ensemble", "base": "base"}
TITLES = {
    "a": "A. Three sources of different architectures and tokenizers",
    "b": "B. Three experts of one base (the paper's Table 7)",
}

TITLE = "# Does fusion work?"

INTRODUCTION = """\
{title}

Written by `make experiment`; do not edit. All figures come from runs of `python -m engine run {spec}`
that differ only in the named settings. Models have about a million parameters, and sources run on transformers, which
starts sooner than vLLM. So the figures describe the method and the engine; they do not describe large models or speed.
Source models, bases and experts are made in plain torch, like the quickstart's.

The measure is held-out bits per byte, lower is better; means over domains, then over seeds. A seed changes the target's
initial weights, its earlier training text, the order of the corpus, and in setting B the experts. Differences are
paired by seed and by held-out document; brackets are {level:.0%} bootstrap intervals ({resamples:,} resamples):
seeds are drawn with replacement, and within each domain documents, the same ones for both arms and all seeds. Three
seeds are few: where they disagree, the true interval is wider. Every arm chose its peak learning rate and its
`lm_loss_weight` with seed 0 on validation text that serves no other purpose: beside what it chose, the next lower and
higher of both were worse, or there were none. Experts chose among three rates. The columns *rate* and *weight* show
what was chosen.

{machine}. {minutes:.0f} minutes for the last start of `make experiment`, which does not repeat finished work. The
scores of all documents are in `figures/`.
"""

CAVEATS = """\
## What this does not show

- Equal steps, not equal compute: the sources read every passage too, and they were trained on far more text than the
  target.
- The held-out text is small ({documents}), and the same for all seeds.
- The sources of setting A are one set; seeds do not change them. Ablations take fusion's learning rate and weight and,
  where the table says one seed, a single run: read them as directions.
- The larger and the equal source have the target's own tokenizer and prefer no domain. The equal one is meant to be as
  good as the best of the three sources in each domain, and is wider than they are; the larger one is trained for a
  quarter of its steps.
"""


def write_page(path: Path, findings: Sequence[Findings], minutes: float) -> None:
    """Write the page, and the plots and the scores of all documents into ``figures/`` beside it."""
    plots = path.parent / "figures"
    plots.mkdir(parents=True, exist_ok=True)
    head = INTRODUCTION.format(
        title=TITLE, spec=SPEC, level=LEVEL, resamples=RESAMPLES, machine=machine(), minutes=minutes
    )
    lines = [head]
    for found in findings:
        keep(plots, found)
        lines += [f"## {TITLES[found.setting]}", "", *_verdict(found), "", *table(found), ""]
        if found.ablations:
            lines += ["### What matters", "", *_ablations(found), ""]
            plot = f"ablations_{found.setting}.png"
            plot_differences(plots / plot, _differences(found.ablations, found.row(CONTINUED.name)))
            lines += [f"![ablations](figures/{plot})", ""]
        plot = f"setting_{found.setting}.png"
        plot_differences(plots / plot, _differences(found.rows, found.row(CONTINUED.name)))
        lines += [f"![less continued training](figures/{plot})", "", *chosen(found), ""]
    lines += [CAVEATS.format(documents=_documents(findings)), *commands(findings)]
    write_chapter(path, lines)


def write_chapter(path: Path, lines: Sequence[str]) -> None:
    """Write one chapter of the page, which begins with its title; others that are there stay.

    The chapter on real models comes last.
    """
    chapters: dict[str, str] = {}
    for line in path.read_text(encoding="utf8").splitlines() if path.exists() else []:
        if line.startswith("# "):
            title = line
        chapters[title] = chapters.get(title, "") + line + "\n"
    text = "\n".join(lines) + "\n"
    chapters[text.partition("\n")[0]] = text
    ordered = sorted(chapters, key=lambda title: title != TITLE)
    path.write_text("\n".join(chapters[title].strip("\n") + "\n" for title in ordered), encoding="utf8")


def _verdict(found: Findings) -> Iterator[str]:
    """The outcome in sentences that follow from the figures alone."""
    fusion, continued = found.row(FUSED.name), found.row(CONTINUED.name)
    yield compared("Fusion", "continued training", fusion.less(continued))
    seeds = [our - their for our, their in zip(fusion.means, continued.means, strict=True)]
    yield f"By seed: {', '.join(f'{difference:+.4f}' for difference in seeds)}."
    if found.setting == "b":
        yield from _order(found)
    else:
        single = min((found.row(arm.name) for arm in SINGLE), key=lambda row: row.mean)
        yield compared("Fusion of three sources", f"the best single one, {single.name}", fusion.less(single))
        yield compared("Fusion", PAPERS.name, fusion.less(found.row(PAPERS.name)))
        for row in found.rows:
            if row.name.startswith("distillation"):
                yield compared("Fusion", row.name, fusion.less(row))
                share = (fusion.mean - continued.mean) / (row.mean - continued.mean)
                yield f"Fusion gains {share:.0%} of what {row.name} gains over continued training."


def compared(ours: str, theirs: str, difference: Interval) -> str:
    """Whether the first is better, in a sentence."""
    if not difference.excludes_zero:
        first = ours[0].lower() + ours[1:]
        return f"No difference is shown between {first} and {theirs}: {shown(difference)} bits per byte."
    word = "beats" if difference.high < 0 else "is worse than"
    return f"**{ours} {word} {theirs}** by {shown(difference)} bits per byte."


def _order(found: Findings) -> Iterator[str]:
    ordered = sorted((row for row in found.rows if row.name != CONTINUED.name), key=lambda row: row.mean)
    yield f"Order of the means: {' < '.join(f'{row.name} {row.mean:.3f}' for row in ordered)}."
    kinds = list(dict.fromkeys(_kinds(ordered)))
    same = tuple(kinds) == PAPERS_ORDER
    yield f"The paper's order: {' < '.join(PAPERS_ORDER)}. Ours is {'the same' if same else 'not the same'}."
    fusion = found.row(FUSED.name)
    for row in found.rows:
        if row.name.startswith(("ensemble", "experts merged")):
            yield compared("Fusion", row.name, fusion.less(row))


def _kinds(ordered: Sequence[Row]) -> Iterator[str]:
    """The rows in the paper's words: only the first and the last expert count, and the first merge."""
    experts = [row.name for row in ordered if row.name.startswith("expert ")]
    words = {**KINDS, experts[0]: "the best expert", experts[-1]: "the worst expert"}
    for row in ordered:
        kind = "weight merging" if row.name.startswith("experts merged") else words.get(row.name)
        if kind:
            yield kind


def table(found: Findings) -> Iterator[str]:
    """The compared rows, domain by domain."""
    domains = list(found.rows[0].scores[0])
    continued = found.row(CONTINUED.name)
    yield f"| | {' | '.join(domains)} | mean | sd of seeds | less continued training | rate | weight | s a run |"
    yield "|---" * (len(domains) + 7) + "|"
    for row in found.rows:
        cells = [*(f"{row.domain_mean(domain):.3f}" for domain in domains), f"**{row.mean:.4f}**"]
        cells += [_number(spread(row.means), ".4f"), "" if row is continued else shown(row.less(continued))]
        cells += [_number(row.rate, "g"), _number(row.weight, "g"), _number(row.seconds, ".0f")]
        yield f"| {row.name} | {' | '.join(cells)} |"


def _ablations(found: Findings) -> Iterator[str]:
    fusion, continued = found.row(FUSED.name), found.row(CONTINUED.name)
    if found.setting == "a":
        yield "Each but the last changes one setting of fusion (AvgCE at temperature 0.3, rows given the bytes so far,"
        yield "prefix mapping, K 128, `full_gain` 0.5, three sources). All take its learning rate and its"
        yield f"`lm_loss_weight`: {fusion.rate:g} and {fusion.weight:g}."
    else:
        yield f"Each changes the rule of fusion, at its rate and weight: {fusion.rate:g} and {fusion.weight:g}."
    yield ""
    yield "| | seeds | mean | less fusion | less continued training |"
    yield "|---|---|---|---|---|"
    for row in found.ablations:
        differences = f"{shown(row.less(fusion))} | {shown(row.less(continued))}"
        yield f"| {row.name} | {len(row.scores)} | {row.mean:.4f} | {differences} |"
    if found.planned:
        yield ""
        yield from _planned(found)


def _planned(found: Findings) -> Iterator[str]:
    """The order of the rules by a plan and by the targets that they have trained."""
    trained = {row.name: row.means[0] for row in (found.row(FUSED.name), *found.ablations)}
    planned = {RULE_ARMS[rule]: nats for rule, nats in found.planned.items()}
    orders = [sorted(planned, key=values.__getitem__) for values in (planned, trained)]
    yield f"`plan --compare` before any training, nats per byte: {_in_order(orders[0], planned)}."
    yield f"Bits per byte of the trained targets, seed 0: {_in_order(orders[1], trained)}."
    yield "The order is the same." if orders[0] == orders[1] else "**The order is not the same**: a plan is no judge."


def _in_order(names: Sequence[str], values: Mapping[str, float]) -> str:
    return " < ".join(f"{name} {values[name]:.4f}" for name in names)


def chosen(found: Findings) -> Iterator[str]:
    """What each arm tried and chose."""
    yield "Validation bits per byte of seed 0, the chosen in bold. By peak learning rate, at the chosen weight:"
    yield ""
    yield from _grid({choice.arm: choice.by_rate for choice in found.choices})
    yield ""
    yield "By `lm_loss_weight`, at the chosen rate:"
    yield ""
    weighed = [choice for choice in found.choices if len(choice.by_weight) > 1]
    yield from _grid({choice.arm: choice.by_weight for choice in weighed})
    yield from _at_the_edge("rates", {choice.arm: (choice.rate, choice.by_rate) for choice in found.choices})
    yield from _at_the_edge("weights", {choice.arm: (choice.weight, choice.by_weight) for choice in weighed})


def _at_the_edge(what: str, chosen: Mapping[str, tuple[float, Mapping[float, float]]]) -> Iterator[str]:
    """The arms whose chosen value is the lowest or highest of those tried."""
    names = [arm for arm, (value, tried) in chosen.items() if value in (min(tried), max(tried))]
    if names:
        yield ""
        yield f"Chosen at the edge of the {what} that were tried: {', '.join(names)}."


def _grid(measured: Mapping[str, Mapping[float, float]]) -> Iterator[str]:
    """A line for each arm, a column for each value that any of them tried, the best in bold."""
    columns = sorted({value for found in measured.values() for value in found})
    yield f"| | {' | '.join(f'{value:g}' for value in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for arm, found in measured.items():
        best = min(found.values())
        shown = {value: f"**{bits:.4f}**" if bits == best else f"{bits:.4f}" for value, bits in found.items()}
        yield f"| {arm} | {' | '.join(shown.get(value, '') for value in columns)} |"


def commands(findings: Sequence[Findings]) -> Iterator[str]:
    """The command of each arm's first run."""
    spec = SETTINGS[findings[0].setting].spec
    yield "## Commands"
    yield ""
    yield f"The overrides of `{spec}` in the first run of each arm. Any of them runs by itself after the"
    yield "experiment has made its texts and models."
    for found in findings:
        for row in (*found.rows, *found.ablations):
            if row.overrides:
                yield f"\n**{found.setting.upper()}, {row.name}**\n"
                yield f"```sh\npython -m engine run {spec} {shlex.join(row.overrides)}\n```"


def _differences(rows: Sequence[Row], continued: Row) -> dict[str, Interval]:
    return {row.name: row.less(continued) for row in rows if row is not continued}


def shown(interval: Interval) -> str:
    """An estimate and its interval."""
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _documents(findings: Sequence[Findings]) -> str:
    said = []
    for found in findings:
        sizes = {name: len(scored.bits) for name, scored in found.rows[0].scores[0].items()}
        said.append(
            f"{found.setting.upper()}: " + ", ".join(f"{count} documents of {name}" for name, count in sizes.items())
        )
    return "; ".join(said)


def machine() -> str:
    """Versions and cores, in words."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers"))
    return f"Python {platform.python_version()}, {packages}, {os.cpu_count()} CPU cores"
