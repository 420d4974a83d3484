"""The plan as a page, from the parts of a run's page: sizes, costs, sources, ways to fuse, tokens, mapping examples."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from engine.reporting.figures import MISSING, Rows, number, share
from engine.reporting.page import Status, page_of, spec_element, status_element, table_element
from engine.reporting.token_view import token_data, token_view
from engine.spec import FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.comparison import Comparison
from pipelines.planning.domain_survey import domain_tables
from pipelines.planning.plan_looks import looks
from pipelines.planning.plan_text import comparison_notes, comparison_rows, cost_rows, fusion_line
from pipelines.planning.scored_sample import Scores
from pipelines.planning.survey import SourceSurvey

if TYPE_CHECKING:
    from pipelines.planning.plan import Plan


def render_plan(plan: Plan, written: float) -> str:
    """The page as text.

    Args:
        written: when, in seconds since 1970.
    """
    spec = plan.spec
    refusals = tuple((fault.where, fault.what, fault.remedy) for fault in plan.refusals)
    return page_of(
        kind="plan",
        title=escape(spec.run.name),
        lead=escape(f"Planned, not run. {fusion_line(spec)}."),
        status=status_element(Status("planned", written)),
        first=table_element(Rows("A run would refuse", ("where", "why", "what to do"), refusals)),
        summary=table_element(Rows("Run", ("", spec.run.name), tuple(plan.sizes.items()))),
        sources=table_element(cost_rows(plan.costs)),
        stages="".join(table_element(rows) for rows in domain_tables(plan.domains))
        + table_element(source_rows(plan.sources, spec))
        + (_comparison(plan.comparison, spec) if plan.comparison else ""),
        tokens=token_view(_tokens(plan)),
        rest=f'<div class="tables">{"".join(table_element(example_rows(source)) for source in plan.sources)}</div>',
        spec=spec_element(spec),
    )


def _comparison(found: Comparison, spec: FusionSpec) -> str:
    """The ways to fuse, and what the terminal says below them."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in comparison_notes(found, spec))
    return table_element(comparison_rows(found, spec)) + notes


def source_rows(sources: Sequence[SourceSurvey], spec: FusionSpec) -> Rows:
    """The sources on the sample: cost of the text, rows with a teacher, mass that is lost."""
    kinds = ("same token", "split", "end of a longer", "inside a longer", "none")
    masses = (f"beyond the top {spec.fusion.top_k}", "mapped nowhere")
    rows = [_source_row(source, spec.alignment.tokens == "bytes") for source in sources]
    if sources and sources[0].target_scores:
        cost = number(sources[0].target_scores.nats_per_byte, ".4f")
        rows.append(("the target", cost, *[MISSING] * (1 + len(kinds) + len(masses))))
    heading = f"Source models on {sources[0].passages} passages of the corpus" if sources else ""
    return Rows(heading, ("model", "nats per byte", "coverage", *kinds, *masses), tuple(rows))


def _source_row(source: SourceSurvey, by_bytes: bool) -> tuple[str, ...]:
    found, scores = source.coverage, source.scores or Scores()
    covered = found.given_bytes if by_bytes else found.used
    kinds = (found.exact, found.one_to_many, found.last_of_longer, found.interior, found.unaligned)
    shares = map(share, (covered, *kinds, scores.lost_mass, scores.unmapped_mass))
    return (source.name, number(scores.nats_per_byte, ".4f"), *shares)


def example_rows(source: SourceSurvey) -> Rows:
    """Examples of the vocabulary mapping of a source: nonsense first, then frequent tokens without an equal."""
    found = source.mapping
    rows = tuple(
        (example.source_text, example.target_text, f"{example.count:,}", "nonsense?" if example.is_nonsense else "")
        for example in found.examples
    )
    heading = f"Mapping of {source.name}: {share(found.same)} of {found.ids:,} tokens have the same bytes, "
    heading += f"{share(found.nowhere)} map nowhere"
    return Rows(heading, ("source token", "target token", "times in the sample", ""), rows)


def _tokens(plan: Plan) -> dict[str, Any]:
    """The data of the token view; empty without scores."""
    if plan.scored is None:
        return {}
    found = looks(plan.spec, plan.flow, plan.scored)
    return token_data(plan.spec, found, PassageTokenizer.load(plan.flow.checkpoints[0]).token_bytes)
