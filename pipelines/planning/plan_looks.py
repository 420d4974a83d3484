"""The scored sample token by token, as the token view of a page shows it: before any training."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.method.answers import Answers
from engine.method.canonical import CanonicalPairs
from engine.method.fusion import fuse, label_nats
from engine.method.inspection import inspect, rounded, top_entries
from engine.method.rows import SourceRows
from engine.spec import FusionRuleSpec, FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.aligned_sample import aligned_rows, answers_of, own_rows, scored_tokenizers
from pipelines.planning.scored_sample import TARGET, ScoredSample
from pipelines.stream.sizes import FlowPlan


def looks(spec: FusionSpec, flow: FlowPlan, scored: ScoredSample) -> list[dict[str, Any]]:
    """A stretch of each passage of the sample (``engine.method.inspection``), with the rows of the untrained target.

    A plan keeps the top entries of the target's rows alone, so the teacher's gain over it is not known.

    Returns:
        Empty where the spec's rule lacks a source, since it could not be scored.
    """
    target = PassageTokenizer.load(flow.checkpoints[0])
    tokenizers = scored_tokenizers(spec, flow, scored)
    if len(tokenizers) < len(spec.source_models) or not tokenizers:
        return []
    answers = answers_of(scored, target)
    sources = aligned_rows(spec.alignment, spec, flow, scored, answers, target, tokenizers)
    canonical = CanonicalPairs(target) if spec.alignment.tokens == "bytes" else None
    names, product = list(tokenizers), spec.alignment.multiplies_pieces
    method = (spec.fusion, target.vocab_size, names, product, canonical)
    fused = fuse(answers.rows, sources, *method)
    own = None if TARGET in scored.problems else own_rows(spec, flow, scored, answers, target)
    passages = np.repeat(np.arange(len(answers.counts)), answers.counts)
    found = []
    for answer in np.flatnonzero(_learned_rows(answers)):
        look = inspect(answer, answers.rows, sources, fused, *method)
        first = int(answers.rows.offsets[answer]) + look["first"]
        of_target = _own(answers, own, spec.fusion, target.vocab_size, first, first + len(look["tokens"]))
        found.append(look | {"passage": f"passage {passages[answer] + 1} of the sample", **of_target})
    return found


def _learned_rows(answers: Answers) -> np.ndarray:
    """The number of learned rows of each answer, int [answers]."""
    sums = np.concatenate([[0], np.cumsum(answers.rows.is_learned)])
    return np.diff(sums[answers.rows.offsets])


def _own(
    answers: Answers, own: SourceRows | None, fusion: FusionRuleSpec, vocabulary: int, first: int, last: int
) -> dict[str, list[Any]]:
    """The target's rows and costs of labels; None where it could not be scored."""
    none = [None] * (last - first)
    if own is None:
        return {"own": none, "costs": none, "gains": none}
    alone = FusionRuleSpec(rule="uniform", top_k=fusion.top_k)
    rows = top_entries(fuse(answers.rows, [own], alone, vocabulary), first, last)
    return {"own": rows, "costs": rounded(label_nats(answers.rows, own)[first:last]), "gains": none}
