"""The scored sample as the aligner of a run sees it: the target's rows, and each source's aligned with them."""

from __future__ import annotations

from collections.abc import Mapping

from engine.corpus.reading import Reading
from engine.method.alignment import SourceAlignment
from engine.method.answers import Answers, source_answers, target_answers
from engine.method.rows import SourceRows
from engine.spec import AlignmentSpec, FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.scored_sample import TARGET, ScoredSample
from pipelines.stream.sizes import FlowPlan, mapping_sample


def answers_of(scored: ScoredSample, target: PassageTokenizer) -> Answers:
    """The sample as the target reads it."""
    reading = Reading(target, target.adds_bos)
    ends = [passage.ends_document for passage in scored.passages]
    renderings = [reading.read(passage, end) for passage, end in zip(scored.passages, ends, strict=True)]
    return target_answers(renderings, [0] * len(renderings), ends)


def scored_tokenizers(spec: FusionSpec, flow: FlowPlan, scored: ScoredSample) -> dict[str, PassageTokenizer]:
    """The tokenizers of the sources that could be scored, by name."""
    names = [source.name for source in spec.source_models]
    return {
        name: PassageTokenizer.load(checkpoint)
        for name, checkpoint in zip(names, flow.checkpoints[1:], strict=True)
        if name not in scored.problems
    }


def aligned_rows(
    alignment: AlignmentSpec,
    spec: FusionSpec,
    flow: FlowPlan,
    scored: ScoredSample,
    answers: Answers,
    target: PassageTokenizer,
    tokenizers: Mapping[str, PassageTokenizer],
) -> list[SourceRows]:
    """The rows of each scored model, aligned with the target's.

    Args:
        alignment: the spec's section, or another one to compare.
        answers: of the sample (``answers_of``).
        tokenizers: of the models, by the name under which they were scored.
    """
    sample, texts = mapping_sample(spec, flow), [passage.text for passage in scored.passages]
    found = []
    for name, tokenizer in tokenizers.items():
        source = SourceAlignment(tokenizer, target, alignment, sample, bool(spec.corpus.messages_column))
        rows = source_answers(scored.table, name, scored.top_k, answers.counts)
        found.append(source.align(texts, answers.rows, rows))
    return found


def own_rows(
    spec: FusionSpec, flow: FlowPlan, scored: ScoredSample, answers: Answers, target: PassageTokenizer
) -> SourceRows:
    """The target's own rows, as if it were a source: every row ends where its token does."""
    alignment = spec.alignment.model_copy(update={"tokens": "byte_offset", "split_tokens": "first_piece"})
    (rows,) = aligned_rows(alignment, spec, flow, scored, answers, target, {TARGET: target})
    return rows
