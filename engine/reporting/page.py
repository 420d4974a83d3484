"""The report of a run: one HTML page that contains everything and needs no network.

It is written while the run works, and reloads itself then. Without JavaScript it shows the same, as it was written.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template
from typing import Any

from fsspec.spec import AbstractFileSystem

from engine.history.result import RunResult
from engine.history.series import StepSeries
from engine.reporting.evaluation_tables import Cell, ScoreTable, failure_lines, score_tables
from engine.reporting.figures import (
    Rows,
    domain_rows,
    domain_source_rows,
    run_figures,
    short_place,
    source_rows,
    stage_rows_with_times,
)
from engine.reporting.plots import plots
from engine.reporting.token_view import data_in, token_view
from engine.spec import FusionSpec
from engine.spec.loading import dump_spec
from engine.store import content, located, writing

#: Parts of the page, in its order.
PARTS = (
    *("title", "lead", "status", "first", "summary", "evaluation", "sources"),
    *("stages", "plots", "tokens", "rest", "spec"),
)

#: The most bytes of a page: the tokens get what the rest leaves.
MOST_BYTES = 3_000_000

#: At most this many skipped rows are listed; all are counted.
MOST_SKIPPED_ROWS = 200


#: What the stores need to be told so that a browser shows the page instead of saving it, and asks for the newest.
STORE_OPTIONS: dict[str, dict[str, str]] = {
    "s3": {"ContentType": "text/html; charset=utf-8", "CacheControl": "no-cache"},
    "gs": {
        "content_type": "text/html; charset=utf-8",
        "fixed_key_metadata": {"cache_control": "no-cache"},  # Google's default for public objects is an hour
    },
}

#: The status in a page; its words are escaped, so that it ends where it seems to.
_STATUS = re.compile(r'<p class="status" id="status".*?</p>', re.DOTALL)


@dataclass(frozen=True)
class Status:
    """What a page says of the run when it is written.

    Attributes:
        words: "running, step 312 of 6,250, ...".
        written: when, in seconds since 1970.
        seconds_between: until the next writing; 0 if there is none, and the page does not reload itself.
    """

    words: str
    written: float
    seconds_between: float = 0.0


def write_page(text: str, url: str) -> None:
    """Write a page to a path or fsspec URL; missing folders are created, an earlier page is replaced at once.

    Raises:
        StoreError: the page cannot be written.
    """
    filesystem, path = located(url)
    protocol = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
    with writing(url, "the page"):
        filesystem.makedirs(os.path.dirname(path), exist_ok=True)
        if protocol == "file":
            _replace_file(filesystem, path, text)
        else:
            with filesystem.open(path, "wb", **STORE_OPTIONS.get(protocol, {})) as file:
                file.write(text.encode("utf8"))


def _replace_file(filesystem: AbstractFileSystem, path: str, text: str) -> None:
    """Write a file at once: a browser that reloads must not see half a page."""
    whole = f"{path}.{uuid.uuid4().hex}.new"  # of this writing alone: another process may write the page as well
    try:
        with filesystem.open(whole, "wb") as file:
            file.write(text.encode("utf8"))
        os.replace(whole, path)
    finally:
        with suppress(FileNotFoundError):  # it has become the page
            os.remove(whole)


def earlier_data(url: str) -> dict[str, Any]:
    """The data of the token view in the page that is there; empty if there is none."""
    page = content(url)
    return {} if page is None else data_in(page.decode("utf8"))


def render_report(
    spec: FusionSpec,
    result: RunResult,
    status: Status,
    tokens: Mapping[str, Any] | None = None,
    series: StepSeries | None = None,
) -> str:
    """The page of a run as text, of at most ``MOST_BYTES``.

    Args:
        spec: of the run, shown with all defaults.
        result: of the run so far; plots and tables without numbers are left out.
        status: of the run.
        tokens: data of the token view (``token_view.token_data``); None or empty leaves it out.
        series: of the result's history, where it is made already.
    """
    parts = _report_parts(spec, result, status, series or StepSeries(spec).add(result.history))
    rest = MOST_BYTES - len(page_of(**parts).encode("utf8"))
    return page_of(**parts, tokens=token_view(tokens or {}, rest))


def _report_parts(spec: FusionSpec, result: RunResult, status: Status, series: StepSeries) -> dict[str, str]:
    """All parts of a run's page but the tokens."""
    scores = [_scores(table) for table in score_tables(result.evaluation)]
    failures = [f"<p>{escape(line)}</p>" for line in failure_lines(result.evaluation)]
    tables = (source_rows(result), domain_rows(result), domain_source_rows(result))
    return {
        "title": escape(result.name),
        "lead": escape(_lead(spec)),
        "status": status_element(status),
        "summary": table_element(run_figures(result)),
        "evaluation": "".join(scores + failures),
        "sources": "".join(map(table_element, tables)),
        "plots": figure_elements(plots(result, series)),
        "stages": table_element(stage_rows_with_times(result)),
        "rest": _skipped(result) + _left_out(result) + table_element(_places(result)),
        "spec": spec_element(spec),
    }


def page_of(**parts: str) -> str:
    """The template of the report with its ``PARTS``; those that are not given stay empty. ``kind``: report or plan."""
    folder = resources.files("engine.reporting")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf8"))
    script = "\n".join(folder.joinpath(name).read_text(encoding="utf8") for name in ("page.js", "tokens.js"))
    return template.substitute(dict.fromkeys(PARTS, "") | {"kind": "report", "script": script} | parts)


def status_element(status: Status) -> str:
    """What the page says of the run, and when it was written."""
    written = time.strftime("%d %B %Y, %H:%M:%S UTC", time.gmtime(status.written)).lstrip("0")
    times = f'data-written="{status.written:.0f}" data-next="{status.seconds_between:.0f}"'
    return (
        f'<p class="status" id="status" {times}><span class="words">{escape(status.words)}</span> '
        f'<span id="written">last written {written}</span></p>'
    )


def with_status(page: str, status: Status) -> str:
    """A page with another status than that with which it was rendered, which costs next to nothing."""
    return _STATUS.sub(lambda _: status_element(status), page, count=1)


def _lead(spec: FusionSpec) -> str:
    """One sentence: the target, the sources and the fusion rule."""
    target = short_place(spec.target_model.checkpoint)
    if not spec.source_models:
        return f"{target}, trained further on the causal LM loss alone."
    names = ", ".join(source.name for source in spec.source_models)
    return f"{target}, fused from {names} by {spec.fusion.rule}, {spec.fusion.top_k} entries a row."


def _scores(table: ScoreTable) -> str:
    """A table of scores, the best of each kind marked."""
    rows = [[_marked(cell) for cell in row] for row in table.rows]
    return cells_element(table.heading.replace("* best", "the best in bold"), table.columns, rows)


def _marked(cell: Cell) -> str:
    text = escape(cell.text.replace("*", " ").strip())
    return f'<strong class="best">{text}</strong>' if cell.is_best else text


def _places(result: RunResult) -> Rows:
    paths = (
        ("exported model", result.export_dir),
        ("spec", result.spec_path),
        ("report", result.report_path),
        ("output folder", result.output_dir),
    )
    return Rows("Paths", ("", "path"), paths)


def _skipped(result: RunResult) -> str:
    shown = result.skipped[:MOST_SKIPPED_ROWS]
    rows = tuple((row.path, f"{row.row:,}", row.reason) for row in shown)
    return table_element(Rows("Skipped rows" + _part(shown, result.num_skipped), ("file", "row", "reason"), rows))


def _left_out(result: RunResult) -> str:
    shown = result.left_out[:MOST_SKIPPED_ROWS]
    rows = tuple((passage.source, passage.passage_id, passage.reason) for passage in shown)
    heading = "Passages without a source" + _part(shown, result.num_left_out)
    return table_element(Rows(heading, ("source model", "passage", "reason"), rows))


def _part(shown: Sequence[Any], count: int | None) -> str:
    """How many of all are shown, for a heading; empty if these are all."""
    return f" (the first {len(shown):,} of {count:,})" if count and len(shown) < count else ""


def spec_element(spec: FusionSpec) -> str:
    """The spec with all defaults, to fold away."""
    heading = '<summary id="spec-summary">Resolved spec</summary>'
    return f'<details open id="spec">\n{heading}\n<pre>{escape(dump_spec(spec))}</pre>\n</details>'


def figure_elements(plots: Mapping[str, str]) -> str:
    """The plots (caption to SVG) under one heading; empty without plots."""
    if not plots:
        return ""
    figures = (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in plots.items())
    return '<section><h2>Over the run</h2>\n<div class="plots">\n' + "\n".join(figures) + "\n</div></section>"


def table_element(rows: Rows) -> str:
    """A table of plain text; empty without rows."""
    return cells_element(rows.heading, rows.columns, [[escape(cell) for cell in row] for row in rows.rows])


def cells_element(heading: str, headings: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML and whose headings are text. It scrolls on a narrow page."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headings)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    kind = "numbers" if len(rows[0]) > 3 else "words"
    return (
        f'<section><h2>{escape(heading)}</h2>\n<div class="scroll"><table class="{kind}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></section>"
    )
