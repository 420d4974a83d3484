"""Compare ways to fuse by what their teachers say of the text, before any training.

A way is a rule over a vocabulary mapping and a token alignment. Its teacher's cost of the labels is measured on the
rows that *every* way teaches, with q(label) the label's share of the fused distribution, or an equal part of the rest
mass where it is not kept, and V the size of the target's vocabulary:

    nats per byte = - sum log(0.99 q(label) + 0.01 / V) / bytes of the labels

The target itself stands beside them, by the same measure. A lower cost is a guide and no judge: what the rows say of
other tokens than the labels teaches too, and what the target never writes is left out of some ways (LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np

from engine.method.answers import Answers
from engine.method.canonical import CanonicalPairs
from engine.method.fusion import fuse
from engine.method.rows import FusedRows, SourceRows
from engine.records import NO_TOKEN
from engine.spec import FusionRuleSpec, FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.aligned_sample import aligned_rows, answers_of, own_rows, scored_tokenizers
from pipelines.planning.scored_sample import TARGET, ScoredSample
from pipelines.stream.sizes import FlowPlan

#: Alignments and rules that are compared; each source alone is a rule, too.
ALIGNMENTS = ("bytes", "byte_offset")
RULES = ("uniform", "avg_ce", "min_ce")

#: Share of an equal distribution in the mixture whose cost is taken: a label that a teacher rules out is not infinite.
UNIFORM_SHARE = 0.01


@dataclass(frozen=True)
class Teacher:
    """One way to fuse, or the target itself.

    Attributes:
        rule: ``uniform``, ``avg_ce``, ``min_ce``, the name of one source, or ``scored_sample.TARGET``.
        tokens, vocabulary: of the alignment; empty for the target.
        taught: share of the rows with a label that it teaches, in [0, 1].
        nats_per_byte: its cost of the labels of the rows that all ways teach; NaN if there are none.
    """

    rule: str
    tokens: str
    vocabulary: str
    taught: float
    nats_per_byte: float


@dataclass(frozen=True)
class Comparison:
    """Ways to fuse on one sample, the cheapest first.

    Attributes:
        rows: target rows with a label. common_rows: those that every way teaches. common_bytes: bytes of their labels.
        left_out: sources that could not be scored.
    """

    rows: int
    common_rows: int
    common_bytes: int
    teachers: tuple[Teacher, ...]
    left_out: tuple[str, ...]


def compare(spec: FusionSpec, flow: FlowPlan, scored: ScoredSample, mappings: Sequence[str] = ()) -> Comparison:
    """Compare all rules and each source alone, under every alignment and mapping.

    Args:
        flow: of the same spec.
        scored: passages with the scores of the target and the sources.
        mappings: values of ``alignment.vocabulary``; none takes the spec's own.

    Other alignments teach the label itself where they find no row, which costs nothing; they are not compared. The
    authors' arithmetic is for whole rows of the sources, so not for those given the bytes so far.
    """
    target = PassageTokenizer.load(flow.checkpoints[0])
    answers = answers_of(scored, target)
    ways = list(_ways(spec, flow, scored, answers, target, mappings or (spec.alignment.vocabulary,)))
    if not ways:
        return Comparison(int(answers.rows.is_learned.sum()), 0, 0, (), tuple(scored.problems))
    learned = answers.rows.is_learned
    taught = np.stack([way.is_fused for _, way in ways])
    common = taught.all(axis=0) & learned
    label_bytes = _label_bytes(answers)[common].sum()
    teachers = [
        replace(
            teacher,
            taught=float(way.is_fused[learned].mean()),
            nats_per_byte=float(_costs(way, answers.rows.labels, target.vocab_size)[common].sum() / label_bytes)
            if label_bytes
            else nan,
        )
        for teacher, way in ways
    ]
    teachers.sort(key=lambda teacher: teacher.nats_per_byte)
    return Comparison(int(learned.sum()), int(common.sum()), int(label_bytes), tuple(teachers), tuple(scored.problems))


def _ways(
    spec: FusionSpec,
    flow: FlowPlan,
    scored: ScoredSample,
    answers: Answers,
    target: PassageTokenizer,
    mappings: Sequence[str],
) -> Iterator[tuple[Teacher, FusedRows]]:
    """Each way with its fused rows; costs are still to be filled in."""
    tokenizers = scored_tokenizers(spec, flow, scored)
    if not tokenizers:
        return
    canonical = CanonicalPairs(target)
    exact = spec.fusion.model_copy(update={"arithmetic": "exact"})
    if TARGET not in scored.problems:
        rows = [own_rows(spec, flow, scored, answers, target)]
        yield Teacher(TARGET, "", "", nan, nan), _fuse(answers, rows, exact, target, None, "uniform")
    for vocabulary in mappings:
        for tokens in ALIGNMENTS:
            alignment = spec.alignment.model_copy(update={"tokens": tokens, "vocabulary": vocabulary})
            product = alignment.multiplies_pieces
            rows = aligned_rows(alignment, spec, flow, scored, answers, target, tokenizers)
            pairs, fusion = (canonical, exact) if tokens == "bytes" else (None, spec.fusion)
            for rule in RULES:
                fused = _fuse(answers, rows, fusion, target, pairs, rule, product)
                yield Teacher(rule, tokens, vocabulary, nan, nan), fused
            for name, row in zip(tokenizers, rows, strict=True):
                fused = _fuse(answers, [row], fusion, target, pairs, "uniform", product)
                yield Teacher(name, tokens, vocabulary, nan, nan), fused


def _fuse(
    answers: Answers,
    rows: Sequence[SourceRows],
    fusion: FusionRuleSpec,
    target: PassageTokenizer,
    canonical: CanonicalPairs | None,
    rule: str,
    product: bool = False,
) -> FusedRows:
    fusion = fusion.model_copy(update={"rule": rule, "single_source": ""})
    return fuse(answers.rows, rows, fusion, target.vocab_size, (), product, canonical)


def _costs(fused: FusedRows, labels: np.ndarray, vocabulary: int) -> np.ndarray:
    """The cost of each row's label in nats, float64 [R]; see the module's docstring."""
    probs = np.where(fused.ids != NO_TOKEN, fused.probs, 0.0).astype(np.float64)
    is_label = (fused.ids == labels[:, None]) & (labels[:, None] != NO_TOKEN)
    kept = (fused.ids != NO_TOKEN).sum(axis=1)
    rest = np.clip(1.0 - probs.sum(axis=1), 0.0, 1.0) / np.maximum(vocabulary - kept, 1)
    label_probs = np.where(is_label.any(axis=1), (probs * is_label).sum(axis=1), rest)
    return -np.log((1.0 - UNIFORM_SHARE) * label_probs + UNIFORM_SHARE / vocabulary)


def _label_bytes(answers: Answers) -> np.ndarray:
    """Bytes of each row's label, int64 [R]; 0 for EOS and where there is none."""
    ends = answers.rows.end_bytes.astype(np.int64)
    return np.where(answers.rows.labels != NO_TOKEN, np.append(ends[1:], 0)[: len(ends)] - ends, 0)
