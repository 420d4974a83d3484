"""The report of a run: one HTML page that contains everything and needs neither a network nor JavaScript."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

import fsspec

from engine.history.result import RunResult
from engine.reporting.evaluation_tables import Cell, ScoreTable, failure_lines, score_tables
from engine.reporting.figures import Rows, run_figures, short_place, source_rows, stage_rows_with_times
from engine.reporting.plots import plots
from engine.spec import FusionSpec
from engine.spec.loading import dump_spec

#: At most this many skipped rows are listed; all are counted.
MOST_SKIPPED_ROWS = 200


def write_report(spec: FusionSpec, result: RunResult, url: str) -> None:
    """Write the report of a run.

    Args:
        spec: of the run, shown with all defaults.
        result: of the run; plots and tables without numbers are left out.
        url: path or fsspec URL of the page; missing folders are created, an earlier page is replaced.

    Raises:
        OSError: the page cannot be written.
    """
    page = render_report(spec, result)
    with fsspec.open(url, "w", encoding="utf8", auto_mkdir=True) as file:
        file.write(page)


def render_report(spec: FusionSpec, result: RunResult) -> str:
    """The page of ``write_report`` as text."""
    template = Template(resources.files("engine.reporting").joinpath("page.html").read_text(encoding="utf8"))
    return template.substitute(
        title=escape(result.name),
        lead=escape(_lead(spec)),
        summary=_table(run_figures(result)),
        evaluation="".join(
            [
                *(_scores(table) for table in score_tables(result.evaluation)),
                *(f"<p>{escape(line)}</p>" for line in failure_lines(result.evaluation)),
            ]
        ),
        sources=_table(source_rows(result)),
        plots=_figures(plots(result)),
        stages=_table(stage_rows_with_times(result)),
        skipped=_skipped(result) + _left_out(result),
        places=_table(_places(result)),
        spec=escape(dump_spec(spec)),
    )


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
    return _html_table(table.heading.replace("* best", "the best in bold"), table.columns, rows)


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
    rest = len(result.skipped) - len(shown)
    heading = "Skipped rows" + (f" (the first {len(shown)} of {len(result.skipped):,})" if rest else "")
    rows = tuple((row.path, f"{row.row:,}", row.reason) for row in shown)
    return _table(Rows(heading, ("file", "row", "reason"), rows))


def _left_out(result: RunResult) -> str:
    shown = result.left_out[:MOST_SKIPPED_ROWS]
    more = f" (the first {len(shown)} of {len(result.left_out):,})" if len(shown) < len(result.left_out) else ""
    rows = tuple((passage.source, passage.passage_id, passage.reason) for passage in shown)
    return _table(Rows("Passages without a source" + more, ("source model", "passage", "reason"), rows))


def _figures(plots: Mapping[str, str]) -> str:
    """The plots (caption to SVG) under one heading; empty without plots."""
    if not plots:
        return ""
    figures = (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in plots.items())
    return '<section><h2>Over the run</h2>\n<div class="plots">\n' + "\n".join(figures) + "\n</div></section>"


def _table(rows: Rows) -> str:
    """A table of plain text; empty without rows."""
    return _html_table(rows.heading, rows.columns, [[escape(cell) for cell in row] for row in rows.rows])


def _html_table(heading: str, headings: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
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
