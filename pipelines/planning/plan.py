"""``engine.plan``: sizes, costs and a survey of the sources, before a run starts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Fault
from engine.reporting.page import write_page
from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.models import comparison_faults
from pipelines.planning.comparison import Comparison, compare
from pipelines.planning.costs import ModelCost, model_costs
from pipelines.planning.domain_survey import DomainSurvey, domain_tables, survey_domains
from pipelines.planning.plan_page import render_plan
from pipelines.planning.plan_text import (
    attention_line,
    comparison_lines,
    corpus_line,
    cost_lines,
    fusion_line,
    length_line,
    pairs_line,
    survey_lines,
    table_lines,
)
from pipelines.planning.scored_sample import ScoredSample
from pipelines.planning.survey import SourceSurvey, sample_passages, scored_sample, survey
from pipelines.stream.output_folder import written_folder_faults
from pipelines.stream.sizes import BYTES_PER_ENTRY, FlowPlan, derive_flow


@dataclass(frozen=True)
class Plan:
    """A spec with its sizes, the survey of its sources and the costs of its models. ``print`` it.

    Attributes:
        sources: the survey of each source on a sample of the corpus, in the order of the spec.
        costs: memory and work of the target and of each source.
        comparison: of ways to fuse, where it was asked for.
        domains: the survey of each domain of the corpus; empty without domains.
        scored: the passages that the models have scored; None without scoring.
        pairs: a sentence where impossible pairs of the target's tokens are not known, else empty.
    """

    spec: FusionSpec
    flow: FlowPlan
    sources: tuple[SourceSurvey, ...]
    costs: tuple[ModelCost, ...]
    comparison: Comparison | None = None
    domains: tuple[DomainSurvey, ...] = ()
    scored: ScoredSample | None = None
    pairs: str = ""

    @property
    def refusals(self) -> tuple[Fault, ...]:
        """A fault for a target whose scores are unsound, and for each source that a run needs and would refuse."""
        pairs = enumerate(zip(self.spec.source_models, self.sources, strict=True))
        target = [found.target_scores for found in self.sources[:1] if found.target_scores is not None]
        of_target = [Fault("target_model", scores.problem) for scores in target if scores.is_refused]
        return tuple(of_target) + tuple(
            Fault(f"source_models.{index}", found.scores.problem)
            for index, (source, found) in pairs
            if source.required and found.scores is not None and found.scores.is_refused
        )

    @property
    def sizes(self) -> dict[str, str]:
        """The run in numbers: label to text."""
        spec, flow, training = self.spec, self.flow, self.spec.training
        step_tokens = training.global_batch_blocks * training.block_length
        windows = ", ".join(
            f"{name} {window}"
            for name, window in zip(["target", *(s.name for s in spec.source_models)], flow.windows, strict=True)
        )
        return {
            "run": f"{spec.run.name} -> {spec.run.output_dir}",
            "corpus": corpus_line(flow, spec.corpus.passes),
            "windows": f"{windows} text tokens a passage",
            "fusion": fusion_line(spec),
            **({"pairs": self.pairs} if self.pairs else {}),
            "batch": f"passages of {flow.batch_blocks} blocks in a call of a source model",
            "step": f"{training.global_batch_blocks} blocks of {training.block_length} = {step_tokens:,} tokens, "
            f"{training.global_batch_blocks // training.num_workers} blocks a worker on {training.num_workers} workers",
            "attention": attention_line(training),
            "length": length_line(spec, step_tokens),
            "traffic": f"{BYTES_PER_ENTRY * spec.fusion.top_k:,} bytes a token from each source",
            "Ray reserves": f"{flow.logical_cpus:g} logical CPUs, {flow.gpus:g} GPUs",
        }

    def __str__(self) -> str:
        return "\n\n".join(
            [
                "\n".join(f"{name:<14}{text}" for name, text in self.sizes.items()),
                *("\n".join(table_lines(rows)) for rows in domain_tables(self.domains)),
                "\n".join(cost_lines(self.costs)),
                *("\n".join(survey_lines(source, self.spec)) for source in self.sources),
                *(["\n".join(comparison_lines(self.comparison, self.spec))] if self.comparison else []),
            ]
        )

    def write_page(self, url: str) -> None:
        """Write the plan as one HTML page to a path or fsspec URL.

        Raises:
            StoreError: it cannot be written.
        """
        write_page(render_plan(self, time.time()), url)


def plan(
    spec: FusionSpec | Mapping[str, Any] | str | Path, score: bool = True, mappings: Sequence[str] | None = None
) -> Plan:
    """Plan a run from its models, their tokenizers and a sample of the corpus. Starts neither Ray nor vLLM.

    Args:
        score: whether to load the models, one after the other on this machine's CPU, and score a few passages. Without
            scores, the sources' nats per byte and the mass beyond the top K stay unknown.
        mappings: values of ``alignment.vocabulary`` under which the fusion rules are compared; an empty sequence takes
            the spec's own, None compares nothing. Needs scores.

    Raises:
        SpecError: the spec is wrong.
        PreflightError: lists every model that cannot be loaded and every path without files.
    """
    located = as_located_spec(spec)
    further = [*comparison_faults(located, trains_first=True), *written_folder_faults(located)]
    flow = derive_flow(located, further)
    passages = sample_passages(located, flow)
    scored = scored_sample(located, flow) if score and located.source_models else None
    comparison = None if scored is None or mappings is None else compare(located, flow, scored, mappings)
    costs = model_costs(located, [passage.text for passage in passages])
    domains = survey_domains(located, flow, passages, scored)
    pairs = pairs_line(located, PassageTokenizer.load(flow.checkpoints[0]))
    return Plan(located, flow, survey(located, flow, scored), costs, comparison, domains, scored, pairs)
