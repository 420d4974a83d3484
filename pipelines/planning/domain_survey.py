"""Survey the domains of a mixture: how often each is read, and how well every model knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import pyarrow as pa

from engine.corpus.domains import Domain
from engine.model_files.checkpoint import Checkpoint
from engine.reporting.figures import Rows, number, share
from engine.spec import CorpusSpec, FusionSpec, SourceModelSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.scored_sample import TARGET, ScoredSample, scores_of
from pipelines.planning.survey_tokens import SampledPassage, Tokenization, coverage, tokenize
from pipelines.stream.sizes import FlowPlan


@dataclass(frozen=True)
class DomainSurvey:
    """The survey of one domain on its part of the sample.

    Attributes:
        name: of the domain.
        share: of the learned bytes, by its weight, in [0, 1].
        num_bytes: of its files, in one pass; 0 if it is not known.
        shards: in one pass.
        passes: how often it is read in a run that ends with the corpus, if every domain had as much text in a byte of
            its files; NaN if a size is not known.
        coverage: source model to the share of the target's rows that its rows can teach, in [0, 1].
        nats_per_byte: model to its cost of the scored text; the target is ``TARGET``. NaN without scores.
    """

    name: str
    share: float
    num_bytes: int
    shards: int
    passes: float
    coverage: Mapping[str, float]
    nats_per_byte: Mapping[str, float]


def survey_domains(
    spec: FusionSpec, flow: FlowPlan, passages: Sequence[SampledPassage], scored: ScoredSample | None
) -> tuple[DomainSurvey, ...]:
    """Survey each domain of the corpus; none where it has no domains.

    Args:
        flow: of the same spec.
        passages: of the sample, of all domains.
        scored: some of them with all models' scores; None without scoring.
    """
    if not spec.corpus.domains:
        return ()
    models = [TARGET, *(source.name for source in spec.source_models)]
    shares = [domain.weight / sum(other.weight for other in flow.domains) for domain in flow.domains]
    passes = passes_read(spec.corpus, flow.domains)
    found = []
    for domain, part, often in zip(flow.domains, shares, passes, strict=True):
        own = [passage for passage in passages if passage.domain == domain.name]
        target = tokenize(PassageTokenizer.load(flow.checkpoints[0]), own)
        found.append(
            DomainSurvey(
                name=domain.name,
                share=part,
                num_bytes=sum(unit.num_bytes for unit in domain.units),
                shards=len(domain.shards),
                passes=often,
                coverage={source.name: _coverage(spec, source, target, own) for source in spec.source_models},
                nats_per_byte={model: _nats_per_byte(scored, domain.name, model) for model in models},
            )
        )
    return tuple(found)


def passes_read(corpus: CorpusSpec, domains: Sequence[Domain]) -> list[float]:
    """How often a run that ends with the corpus reads each domain, by the sizes of its files; NaN if one is unknown."""
    sizes = [sum(unit.num_bytes for unit in domain.units) for domain in domains]
    if not all(sizes):
        return [nan] * len(domains)
    # A domain that is read once for each of these lasts so many bytes of the mixture.
    lasts = [size / domain.weight for size, domain in zip(sizes, domains, strict=True)]
    end = corpus.passes * (min(lasts) if corpus.exhausted == "stop" else max(lasts))
    return [end / own for own in lasts]


def domain_tables(found: Sequence[DomainSurvey]) -> list[Rows]:
    """The domains with their shares, sizes and passes, then every model in every domain; none without domains."""
    domains = tuple(
        (
            domain.name,
            share(domain.share),
            f"{domain.num_bytes / 1e6:,.1f} MB",
            f"{domain.shards:,}",
            number(domain.passes, ".2f"),
        )
        for domain in found
    )
    models = tuple(
        (domain.name, model, number(nats, ".4f"), share(domain.coverage.get(model, nan)))
        for domain in found
        for model, nats in domain.nats_per_byte.items()
    )
    tables = [
        Rows("domains, by the sizes of their files", ("domain", "by weight", "files", "shards", "passes"), domains),
        Rows("models by domain, on the sample", ("domain", "model", "nats per byte", "coverage"), models),
    ]
    return [table for table in tables if table.rows]


def _coverage(
    spec: FusionSpec, source: SourceModelSpec, target: Tokenization, passages: Sequence[SampledPassage]
) -> float:
    tokenizer = PassageTokenizer.load(Checkpoint.of(source))
    found = coverage(target, tokenize(tokenizer, [replace(passage, ends_document=True) for passage in passages]))
    return found.given_bytes if spec.alignment.tokens == "bytes" else found.used


def _nats_per_byte(scored: ScoredSample | None, domain: str, model: str) -> float:
    if scored is None:
        return nan
    is_own = pa.array([passage.domain == domain for passage in scored.passages])
    return scores_of(replace(scored, table=scored.table.filter(is_own)), model, None).nats_per_byte
