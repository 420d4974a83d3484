"""The figures of a run as tables of text, shared by the terminal and the report."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from engine.history.result import (
    TRAIN,
    DomainTotals,
    RunResult,
    SourceTotals,
    StageTotals,
    StepRecord,
    StopReason,
)
from engine.history.totals import ratio
from engine.reporting.starvation import Load, starvation

#: Why a run ended, in words.
ENDED_BY: dict[StopReason, str] = {
    "corpus": "corpus: it was read to its end (corpus.passes, corpus.exhausted)",
    "steps": "steps: training.max_steps",
    "tokens": "tokens: training.max_tokens",
    "time": "time: training.max_hours",
    "no improvement": "no improvement: the held-out loss stopped falling (evaluation.patience)",
}

#: Shown in place of a missing number.
MISSING = "-"

#: Heading of what a source knows more than the target: the mean of the first and of the last tenth of the steps.
GAIN = "gain, nats per byte"


@dataclass(frozen=True)
class Rows:
    """A table of text: heading, column names and rows. The first cell of a row names it."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def run_figures(result: RunResult) -> Rows:
    """The run as a whole: size, time, speed, losses; what is not known is left out."""
    ended = {"ended by": ENDED_BY[result.stopped_by]} if result.stopped_by else {}
    figures = {
        "steps": f"{result.steps:,}",
        **ended,
        "learned": f"{result.tokens:,} tokens in {result.passages:,} passages, {result.bytes:,} bytes",
    }
    figures |= _time_figures(result)
    figures |= _training_figures(result.history)
    figures |= _held_out_figures(result)
    figures["slowest stage"] = slowest_stage(result)
    if advice := starvation(*_loads(result)):
        figures["to grow"] = advice
    if restarts := training_restarts(result.stages):
        figures["training restarts"] = f"{restarts}, each from the last checkpoint"
    if result.num_skipped is not None:
        figures["skipped rows"] = f"{result.num_skipped:,}"
    if retired := [
        f"{source.name} after step {source.retired_after:,}" for source in result.sources if source.retired_after
    ]:
        figures["retired"] = f"{', '.join(retired)}: the target predicted the text as well"
    if result.stopped_by and (caught_up := _caught_up(result)):
        figures["caught up"] = (
            f"at the end the target predicts the text as well as {', '.join(caught_up)}: no longer worth the work, "
            f"leave it out of a longer run, or set its retire"
        )
    if result.num_left_out and result.left_out:
        figures["without a source"] = f"{result.num_left_out:,} passages, one of them: {result.left_out[0].reason}"
    if result.spilled_bytes is not None:
        figures["spilled to disk"] = f"{result.spilled_bytes:,} bytes"
    return Rows("Run", ("", result.name), tuple(figures.items()))


def _time_figures(result: RunResult) -> dict[str, str]:
    """Wall time and speed of the whole run; where only the training loop's time is known, those of it."""
    if not math.isnan(result.wall_seconds):
        speed = number(ratio(result.tokens, result.wall_seconds), ",.0f")
        words = f"{speed} tokens/s, loading and evaluation included"
        return {"wall time": duration(result.wall_seconds), "speed": words}
    seconds = result.history[-1].elapsed_seconds if result.history else 0.0
    if not seconds:
        return {}
    speed = number(result.tokens / seconds, ",.0f")
    words = f"{speed} tokens/s, without loading before it and evaluation after it"
    return {"time in the training loop": duration(seconds), "speed in the training loop": words}


def _caught_up(result: RunResult) -> list[str]:
    """The source models that stayed and no longer pay: the target predicts the text of every domain as well."""
    gains = {source.name: [source.gains[1]] for source in result.sources if not source.retired_after}
    if result.domains:
        gains = {name: [_last_gain(domain, name) for domain in result.domains] for name in gains}
    finite = {name: [gain for gain in values if math.isfinite(gain)] for name, values in gains.items()}
    return [name for name, values in finite.items() if values and max(values) <= 0.0]


def _last_gain(domain: DomainTotals, name: str) -> float:
    return next(source.gains[1] for source in domain.sources if source.name == name)


def source_rows(result: RunResult) -> Rows:
    """The source models, measured on all learned passages; the gain at the run's beginning and at its end."""
    columns = ("source model", "nats per byte", "bits per byte", "win rate", "coverage", GAIN, "left out")
    rows = tuple(
        (
            source.name,
            number(source.cross_entropy, ".4f"),
            number(source.cross_entropy / math.log(2), ".4f"),
            share(source.win_rate),
            share(source.coverage),
            _gains(source),
            f"{source.left_out:,}",
        )
        for source in result.sources
    )
    return Rows("Source models on the learned passages", columns, rows)


def domain_rows(result: RunResult) -> Rows:
    """The domains of the corpus: what was learned of each, and its share beside that of the spec."""
    held_out = any(not math.isnan(domain.held_out) for domain in result.domains)
    columns = ("domain", "bytes", "share", "by weight", "tokens", "passages", *["held-out bits per byte"] * held_out)
    rows = tuple(
        (
            domain.name,
            f"{domain.bytes:,}",
            share(domain.share),
            share(domain.weight),
            f"{domain.tokens:,}",
            f"{domain.passages:,}",
            *[number(domain.held_out, ".4f")] * held_out,
        )
        for domain in result.domains
    )
    return Rows("Domains, learned", columns, rows)


def domain_source_rows(result: RunResult) -> Rows:
    """Each source model in each domain, measured on the learned passages; the gain as in ``source_rows``."""
    columns = ("domain", "source model", "nats per byte", "win rate", "coverage", GAIN)
    rows = tuple(
        (
            domain.name,
            source.name,
            number(source.cross_entropy, ".4f"),
            share(source.win_rate),
            share(source.coverage),
            _gains(source),
        )
        for domain in result.domains
        for source in domain.sources
    )
    return Rows("Source models by domain", columns, rows)


def _gains(source: SourceTotals) -> str:
    return " -> ".join(number(gain, ".3f") for gain in source.gains)


def stage_rows(result: RunResult) -> Rows:
    """The stages of the stream: passages, tokens, speed, speed without waiting, busy share, replicas."""
    columns = ("stage", "passages", "tokens", "tokens/s", "unhindered", "busy", "replicas")
    return Rows("Stages of the stream", columns, tuple(_stage_row(stage) for stage in result.stages))


def stage_rows_with_times(result: RunResult) -> Rows:
    """``stage_rows`` with the time that a replica worked, and the time that it waited for input or for room ahead."""
    rows = stage_rows(result)
    times = [
        (duration(stage.busy_seconds / max(1, stage.replicas)), duration(stage.wait_seconds / max(1, stage.replicas)))
        for stage in result.stages
    ]
    with_times = tuple((*row, *pair) for row, pair in zip(rows.rows, times, strict=True))
    return Rows(rows.heading, (*rows.columns, "work of a replica", "waiting"), with_times)


def slowest_stage(result: RunResult) -> str:
    """Name the stage with the most work for one replica, and say what would speed it up.

    All stages see the same passages, so the others wait for the stage that needs the most seconds for them.
    """
    seconds = {stage.name: stage.busy_seconds / max(1, stage.replicas) for stage in result.stages}
    if not seconds:
        return MISSING
    name = max(seconds, key=lambda name: seconds[name])
    work = f"{name}, {duration(seconds[name])} of work for a replica"
    if name in {source.name for source in result.sources}:
        return f"{work}: more replicas of it would help most"
    return f"{work}: the others wait for it"


def _loads(result: RunResult) -> tuple[list[Load], float]:
    """The loads of all pools before training, and the busy share of training without its first step, which waits for
    all models to load."""
    later = result.history[1:]
    seconds = sum(record.seconds for record in later)
    loads = [Load(stage.name, stage.replicas, busy_share(stage)) for stage in result.stages if stage.name != TRAIN]
    return loads, 1.0 - ratio(sum(record.wait_seconds for record in later), seconds)


def _training_figures(history: Sequence[StepRecord]) -> dict[str, str]:
    if not history:
        return {"losses": "no step was taken: the corpus has no text to learn"}
    first, last = history[0], history[-1]
    seconds, waited = sum(r.seconds for r in history), sum(r.wait_seconds for r in history)
    names = {"loss": "objective", "lm_loss": "causal LM loss", "fusion_loss": "fusion loss"}
    figures = {
        label: f"{number(getattr(first, name), '.4f')} -> {number(getattr(last, name), '.4f')} nats per row"
        for name, label in names.items()
    }
    speed = number(ratio(sum(r.tokens for r in history), seconds), ",.0f")
    figures["training"] = f"{duration(seconds)}, {speed} tokens/s, waiting for data {share(ratio(waited, seconds))}"
    if with_gain := [record for record in history if math.isfinite(record.fusion_gain)]:
        ends = (with_gain[0], with_gain[-1])  # further passes over the corpus have none
        gain = " -> ".join(number(record.fusion_gain, ".4f") for record in ends)
        weight = " -> ".join(number(record.fusion_weight, ".3f") for record in ends)
        figures["gain of fusion"] = f"{gain} nats per row over the target, weight {weight}"
    figures["packing"] = f"{share(packing_utilisation(history))} of the blocks' places hold a token to learn"
    return figures


def packing_utilisation(history: Sequence[StepRecord]) -> float:
    """Share of the training blocks' places that hold a token to learn, in [0, 1]; the rest is padding and context."""
    places = sum(record.tokens / (1.0 - record.padding) for record in history if record.tokens)
    return ratio(sum(record.tokens for record in history), places)


def _held_out_figures(result: RunResult) -> dict[str, str]:
    """The evaluations during training, and the exported step if it is not the last one."""
    found = [record for record in result.history if record.held_out]
    if not found:
        return {}
    first, last = found[0], found[-1]
    figures = {
        f"held-out {domain}": f"{number(first.held_out.get(domain, math.nan), '.4f')} after step {first.step} -> "
        f"{number(bits, '.4f')} bits per byte after step {last.step}"
        for domain, bits in last.held_out.items()
    }
    figures["evaluating"] = f"{duration(sum(record.held_out_seconds for record in found))} in {len(found)} evaluations"
    if result.stopped_by and result.exported_step != result.steps:
        figures["exported"] = f"the weights of step {result.exported_step:,}, the best on held-out text"
    return figures


def _stage_row(stage: StageTotals) -> tuple[str, ...]:
    seconds = (stage.busy_seconds + stage.wait_seconds) / max(1, stage.replicas)
    busy = stage.busy_seconds / max(1, stage.replicas)
    counts_tokens = stage.tokens > 0
    return (
        stage.name,
        f"{stage.passages:,}",
        f"{stage.tokens:,}" if counts_tokens else MISSING,
        number(ratio(stage.tokens, seconds), ",.0f") if counts_tokens else MISSING,
        number(ratio(stage.tokens, busy), ",.0f") if counts_tokens else MISSING,
        share(busy_share(stage)),
        replicas(stage),
    )


def busy_share(stage: StageTotals) -> float:
    """Share of a stage's time that it worked, in [0, 1]; NaN before its first report."""
    return ratio(stage.busy_seconds, stage.busy_seconds + stage.wait_seconds)


def replicas(stage: StageTotals) -> str:
    """The number of a stage's replicas, and of those that died and were replaced."""
    replaced = stage.starts - stage.replicas
    return f"{stage.replicas}" + (f" ({replaced} replaced)" if replaced > 0 else "")


def training_restarts(stages: Sequence[StageTotals]) -> int:
    """How often the training workers were restarted within the run."""
    return sum(stage.starts - stage.replicas for stage in stages if stage.name == TRAIN)


def number(value: float, layout: str) -> str:
    """A number in ``layout``, a dash for NaN."""
    return MISSING if math.isnan(value) else format(value, layout)


def share(value: float) -> str:
    """A share in [0, 1] as a percentage, a dash for NaN."""
    return MISSING if math.isnan(value) else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds in readable units: 8.4 s, 3 min 20 s, 2 h 05 min."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def short_place(place: str) -> str:
    """A checkpoint or file without the local folders of its path; hub names, URLs and relative paths as they are."""
    return os.path.basename(place.rstrip("/")) if os.path.isabs(place) else place
