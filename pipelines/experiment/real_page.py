"""Write the results page's chapter on real models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.experiment.arms import REAL_SPEC, real_arms
from pipelines.experiment.bootstrap import LEVEL
from pipelines.experiment.page import chosen, commands, compared, shown, table, write_chapter
from pipelines.experiment.real_tasks import CHOICES, HEADINGS, MOST_GROUPS, MOST_WORDS
from pipelines.experiment.real_texts import QUOTAS, REAL_CORPORA
from pipelines.experiment.results import Findings
from pipelines.experiment.texts import HELD_OUT

INTRODUCTION = """\
# Real models

Written by `make experiment-real`; do not edit. The target is SmolLM2-135M, the sources are Gemma-3-270M and the target
itself, all from files of 4 bits; runs of `python -m engine run {spec}`.
Each corpus has {held_out:,} bytes to report on, from other chapters or articles. Every arm has chosen its learning rate
with seed 0 on validation text of its own, and fusion with Gemma its `lm_loss_weight` too, which fusion with the target
itself and with both takes. A seed changes the order of the corpus; there are two, so read the intervals as directions.
Brackets are {level:.0%} intervals of a bootstrap over seeds and documents, paired. A corpus has up to {choices}
questions about the right continuation and {words} about the next word; their figures have no intervals.

Each corpus may have had a machine and a start of its own; a start does not repeat finished work. The scores of all
documents are in `figures/`.
"""


def write_real_chapter(path: Path, findings: Sequence[Findings]) -> None:
    """Write the chapter, and leave the others of the page as they are."""
    introduction = INTRODUCTION.format(
        spec=REAL_SPEC, level=LEVEL, held_out=QUOTAS[HELD_OUT], choices=CHOICES * MOST_GROUPS, words=MOST_WORDS
    )
    lines = [introduction]
    for found in findings:
        lines += [f"## {found.setting.capitalize()}", "", _size(found.setting), "", *_verdict(found), ""]
        lines += [*table(found), "", *_by_domain(found), *_tasks(found), ""]
        lines += [*chosen(found), "", f"{found.machine}; {found.minutes:.0f} minutes.", ""]
    write_chapter(path, [*lines, *commands(findings)])


def _size(corpus: str) -> str:
    files, num_bytes, passes, steps = REAL_CORPORA[corpus]
    read = "once" if passes == 1 else f"{passes} times"
    return f"About {num_bytes:,} bytes of {', '.join(files)}, read {read}: {steps} steps of 512 tokens."


def _tasks(found: Findings) -> Iterator[str]:
    """The rows on the tasks, means over seeds."""
    yield "Tasks of the harness on the same held-out text:"
    yield ""
    yield f"| | {' | '.join(HEADINGS.values())} |"
    yield "|---" * (len(HEADINGS) + 1) + "|"
    for row in found.rows:
        cells = [f"{sum(seed[figure] for seed in row.tasks) / len(row.tasks):.4g}" for figure in HEADINGS]
        yield f"| {row.name} | {' | '.join(cells)} |"


def _by_domain(found: Findings) -> Iterator[str]:
    """What fusion gains or costs in each domain; nothing where there is one."""
    domains = list(found.rows[0].scores[0])
    if len(domains) == 1:
        return
    arms = real_arms(found.setting)
    continued = found.row(arms.continued.name)
    yield "Less continued training, domain by domain:"
    yield ""
    yield f"| | documents | {arms.gemma.name} | {arms.both.name} |"
    yield "|---|---|---|---|"
    for domain in domains:
        differences = [found.row(arm.name).less(continued, domain) for arm in (arms.gemma, arms.both)]
        documents = len(found.rows[0].scores[0][domain].bits)
        yield f"| {domain} | {documents} | {' | '.join(map(shown, differences))} |"
    yield ""


def _verdict(found: Findings) -> Iterator[str]:
    arms = real_arms(found.setting)
    continued, gemma, both = (found.row(arm.name) for arm in (arms.continued, arms.gemma, arms.both))
    yield compared("Fusion with Gemma", "continued training", gemma.less(continued))
    if arms.once is not None:
        yield compared("Fusion with Gemma", arms.once.name, gemma.less(found.row(arms.once.name)))
    yield compared("Fusion with both", "continued training", both.less(continued))
    yield compared("Fusion with both", "fusion with Gemma alone", both.less(gemma))
