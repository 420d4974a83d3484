"""Show a run on the console: its progress while it runs, a summary at the end.

A terminal gets one live panel; continuous integration and the log of a Ray job get plain lines, each with its time.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.history.result import DomainTotals, EvaluationResult, Progress, RunResult, StepRecord
from engine.reporting.evaluation_tables import ScoreTable, failure_lines, score_tables
from engine.reporting.figures import (
    Rows,
    domain_rows,
    domain_source_rows,
    duration,
    number,
    run_figures,
    share,
    source_rows,
    stage_rows,
    training_restarts,
)
from engine.reporting.rates import StageRate
from engine.reporting.run_state import RunState, whole_seconds
from engine.spec import FusionSpec

#: Between two lines of a log: short while a person checks that the run works, then long, to keep the log readable.
SECONDS_BETWEEN_FIRST_LINES, SECONDS_BETWEEN_LINES = 10.0, 60.0
FIRST_SECONDS = 600.0


def terminal() -> Console:
    """A console on the standard output; characters that its encoding lacks are shown as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console()


def show_phase(what: str, seconds: float, console: Console | None = None) -> None:
    """Print that a phase of a run's start is done, and the seconds since the run began."""
    words = f"{time.strftime('%Y-%m-%d %H:%M:%S')} | {what}, {whole_seconds(seconds)} after the run began"
    (console or terminal()).print(words, soft_wrap=True, markup=False, highlight=False)


class ProgressDisplay:
    """An observer that shows a run on the console: a panel that is redrawn on a terminal, lines elsewhere.

    Args:
        spec: of the run.
        earlier: steps of earlier starts of the run.
        console: where to write; the process's standard output by default.
    """

    product = "the progress display"

    def __init__(self, spec: FusionSpec, earlier: Sequence[StepRecord] = (), console: Console | None = None):
        self._console = console or terminal()
        self._state = RunState(spec, earlier)
        self._next_line = -math.inf
        can_redraw = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if can_redraw else None

    def see(self, picture: Progress, now: float) -> None:
        """Show a picture; in a log only when a line is due or the target was evaluated."""
        self._state.update(picture, now)
        if self._live is not None:
            # It hides the cursor. Not before there is something to show: where another observer cannot be made, none
            # is ever closed.
            self._live.start()
            self._live.update(panel(self._state), refresh=True)
        elif now >= self._next_line or any(record.held_out for record in picture.steps):
            is_early = self._state.elapsed_seconds < FIRST_SECONDS
            self._next_line = now + (SECONDS_BETWEEN_FIRST_LINES if is_early else SECONDS_BETWEEN_LINES)
            self._print_line()

    def close(self) -> None:
        """Leave the last state of the run on the console."""
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _print_line(self) -> None:
        self.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} | {line(self._state)}")


def line(state: RunState) -> str:
    """The state of a run in one line."""
    parts = [state.spec.run.name]
    if state.step is not None:
        parts += [
            f"step {state.last_step}/{state.spec.training.max_steps}",
            _pace(state),
            losses(state.step),
            *_held_out(state),
            *_shares(state.domains),
        ]
    return " | ".join([*parts, state.headline, *_remarks(state), *_last_event(state)])


def panel(state: RunState) -> RenderableType:
    """The state of a run as one block of the terminal."""
    parts: list[RenderableType] = []
    if state.step is not None:
        parts += [_bar(state), Text(_pace(state)), Text(losses(state.step)), *map(Text, _held_out(state))]
        parts += [_domain_table(state.domains)] if state.domains else []
    if state.picture.stages:
        parts += [_stage_table(state)]
    parts += [Text(state.headline, style="bold"), *(Text(text, style="yellow") for text in _remarks(state))]
    parts += [Text(text, style="dim") for text in _last_event(state)]
    return Panel(Group(*parts), title=Text(state.spec.run.name, style="bold"), title_align="left", padding=(0, 1))


def losses(record: StepRecord) -> str:
    """The parts of a step's loss, and the norm of its gradient."""
    lm, fusion = number(record.lm_loss, ".4f"), number(record.fusion_loss, ".4f")
    loss, norm = number(record.loss, ".4f"), number(record.grad_norm, ".3g")
    return f"loss {loss} (causal LM {lm}, fusion {fusion}) nats per row, gradient norm {norm}"


def _held_out(state: RunState) -> list[str]:
    """The latest evaluation during training."""
    if state.evaluated is None:
        return []
    parts = ", ".join(f"{domain} {number(bits, '.4f')}" for domain, bits in state.evaluated.held_out.items())
    return [f"held-out bits per byte after step {state.evaluated.step}: {parts}"]


def _shares(domains: Sequence[DomainTotals]) -> list[str]:
    """The domains' shares of the learned bytes."""
    return [f"learned bytes: {', '.join(f'{domain.name} {share(domain.share)}' for domain in domains)}"] * bool(domains)


def _domain_table(domains: Sequence[DomainTotals]) -> Table:
    """What was learned of each domain, and how well each source predicts it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("domain")
    sources = [source.name for source in domains[0].sources]
    for heading in ("bytes", "share", *(f"{name}, nats per byte" for name in sources)):
        table.add_column(heading, justify="right")
    for domain in domains:
        nats = (number(source.cross_entropy, ".3f") for source in domain.sources)
        table.add_row(domain.name, f"{domain.bytes:,}", share(domain.share), *nats)
    return table


def _bar(state: RunState) -> RenderableType:
    most = state.spec.training.max_steps
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_row(f"step {state.last_step}/{most}", ProgressBar(total=most, completed=state.last_step))
    return row


def _pace(state: RunState) -> str:
    speed = _speed(state.rates.train_tokens_per_second)
    return f"{speed} tokens/s, {duration(state.run_seconds)}, at most {duration(state.seconds_left)} left"


def _speed(tokens_per_second: float) -> str:
    """A rate that is never rounded to 0."""
    return number(tokens_per_second, ",.0f" if tokens_per_second >= 9.5 else ".2g")


def _stage_table(state: RunState) -> Table:
    """The stages, each with a bar of the time that it works; the rest of the bar is waiting."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("stage")
    table.add_column("working, waiting", ratio=1, min_width=12)
    for heading in ("busy", "tokens/s", "passages", "replicas"):
        table.add_column(heading, justify="right")
    for rate in state.rates.stages():
        speed, passages = _speed(rate.tokens_per_second), f"{rate.passages:,}"
        table.add_row(rate.name, _busy_bar(state, rate), share(rate.busy_share), speed, passages, rate.replicas)
    return table


def _busy_bar(state: RunState, rate: StageRate) -> RenderableType:
    if state.is_loading(rate.name):
        return Text(f"loading {state.loading_time(rate.name)}", style="yellow")
    return "" if math.isnan(rate.busy_share) else ProgressBar(total=1.0, completed=rate.busy_share)


def _last_event(state: RunState) -> list[str]:
    return [f"last event: {state.last_event}"] if state.last_event else []


def _remarks(state: RunState) -> list[str]:
    picture = state.picture
    remarks = [text for text in (state.rates.starvation(),) if text]
    if picture.skipped:
        first, plural = picture.skipped[0], "s" * (picture.num_skipped > 1)
        remarks.append(
            f"{picture.num_skipped:,} row{plural} skipped, first {first.path}, row {first.row}: {first.reason}"
        )
    if picture.left_out:
        first = picture.left_out[0]
        remarks.append(
            f"{picture.num_left_out:,} passages fused without a source, first {first.source}: {first.reason}"
        )
    remarks += [f"{name} retired: the target predicts the text as well" for name in picture.retired]
    if restarts := training_restarts(state.picture.stages):
        remarks.append(f"training was restarted {restarts} time{'s' * (restarts > 1)}, from its last checkpoint")
    return remarks


def summary_table(result: RunResult) -> RenderableType:
    """The summary of a run for the terminal: totals, losses, source models, domains, stages, evaluation and paths.

    Paths are not in table cells, which would wrap them: they can be copied.
    """
    parts: list[RenderableType] = [_rich(run_figures(result))]
    tables = (source_rows(result), domain_rows(result), domain_source_rows(result), stage_rows(result))
    parts += [_rich(rows) for rows in tables if rows.rows]
    parts += [_rich_scores(table) for table in score_tables(result.evaluation)]
    parts += [Text(line) for line in failure_lines(result.evaluation)]
    paths = {"exported model": result.export_dir, "report": result.report_path, "spec": result.spec_path}
    parts += [Text(f"{label:<16}{path}", overflow="ignore", no_wrap=True) for label, path in paths.items()]
    return Group(*parts)


def show_summary(result: RunResult, console: Console | None = None) -> None:
    """Print ``summary_table``."""
    (console or terminal()).print(summary_table(result), soft_wrap=True)


def show_evaluation(evaluation: EvaluationResult, files: Sequence[str] = (), console: Console | None = None) -> None:
    """Print an evaluation's tables and the paths of its files."""
    console = console or terminal()
    for table in score_tables(evaluation):
        console.print(_rich_scores(table))
    for line in failure_lines(evaluation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not score_tables(evaluation) and not evaluation.failures:
        message = "nothing to evaluate: name held-out domains in evaluation.corpora, or tasks in evaluation.tasks"
        console.print(message, markup=False, soft_wrap=True)
    for file in files:
        console.print(file, markup=False, highlight=False, soft_wrap=True)


def _rich_scores(scores: ScoreTable) -> Table:
    """A table of scores, the best bold."""
    table = Table(title=scores.heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(scores.columns):
        is_score = index >= scores.label_columns
        table.add_column(Text(heading), justify="right" if is_score else "left", overflow="fold")
    for row in scores.rows:
        table.add_row(*(Text(cell.text, style="bold green" if cell.is_best else "") for cell in row))
    return table


def _rich(rows: Rows) -> Table:
    table = Table(
        title=rows.heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for index, heading in enumerate(rows.columns):
        is_number = index > 0 and len(rows.columns) > 2
        table.add_column(heading, justify="right" if is_number else "left")
    for row in rows.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
