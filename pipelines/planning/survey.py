"""Survey the sources on a small sample of the corpus: coverage, mapping, tokenizer and distributions of each.

Coverage is counted by byte offsets under every ``alignment.tokens``: it shows how well two tokenizers fit together.
Under ``bytes`` the rows inside source tokens count as well. The distributions come from ``scored_sample``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from engine.corpus.cutting import ConversationCutter, DocumentCutter
from engine.corpus.documents import Conversation, Document, Unreadable, read
from engine.corpus.files import CorpusUnit
from engine.corpus.windows import SMALLEST_WINDOW
from engine.errors import Fault, PreflightError, RecordError, TokenizerError
from engine.method.vocabulary import load_or_build
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration
from engine.spec import CorpusSpec, FusionSpec, SourceModelSpec
from engine.text.chat import content_of
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.scored_sample import TARGET, ScoredSample, Scores, score_sample, scores_of
from pipelines.planning.survey_examples import MappingSurvey, survey_mapping
from pipelines.planning.survey_tokens import Coverage, SampledPassage, Tokenization, Traits, coverage, tokenize, traits
from pipelines.stream.sizes import FlowPlan, mapping_sample

#: Bytes of the sample, and the least that each of its corpus units contributes.
SAMPLE_BYTES = 65_536
SMALLEST_SHARE = 4096

#: Documents that are tried in a unit, readable or not.
MOST_DOCUMENTS = 2000

#: Scored passages and the text tokens of each; with BOS and EOS they have at most 4,096 tokens together. Of each domain
#: at least two are scored.
SCORED_PASSAGES, LEAST_OF_DOMAIN = 8, 2
PASSAGE_TOKENS = 510


@dataclass(frozen=True)
class SourceSurvey:
    """The survey of one source model on a sample.

    Attributes:
        name: of the source.
        passages, num_bytes: of the sample.
        coverage: of the target's rows by the source's.
        mapping: of the source's vocabulary to the target's.
        traits, target_traits: of the two tokenizers.
        vocab_size: ids of the source's tokenizer. padding_rows: rows of its embedding beyond them; negative if the
            embedding has too few.
        scores, target_scores: of the models; None without scoring.
    """

    name: str
    passages: int
    num_bytes: int
    coverage: Coverage
    mapping: MappingSurvey
    traits: Traits
    target_traits: Traits
    vocab_size: int
    padding_rows: int
    scores: Scores | None
    target_scores: Scores | None


def survey(spec: FusionSpec, flow: FlowPlan, scored: ScoredSample | None = None) -> tuple[SourceSurvey, ...]:
    """Survey all sources of a spec on one sample of the corpus.

    Unreadable rows are skipped: the run itself reports them. Weights that cannot be loaded are a ``Scores.problem``.

    Args:
        flow: of the same spec.
        scored: passages of the sample with all models' scores; without it there are no nats per byte and no masses.
    """
    if not spec.source_models:
        return ()
    passages = sample_passages(spec, flow)
    target = PassageTokenizer.load(flow.checkpoints[0])
    target_tokens = tokenize(target, passages)
    mapping_text = mapping_sample(spec, flow)
    return tuple(
        _survey_source(spec, source, passages, mapping_text, target_tokens, scored) for source in spec.source_models
    )


def scored_sample(spec: FusionSpec, flow: FlowPlan) -> ScoredSample:
    """Score a few passages of the sample, as many of each domain, by the target and by all sources."""
    passages, most = sample_passages(spec, flow), max(LEAST_OF_DOMAIN, SCORED_PASSAGES // len(flow.domains))
    of_domains = ([passage for passage in passages if passage.domain == domain.name] for domain in flow.domains)
    return score_sample(spec, [passage for own in of_domains for passage in _spread(own, most)])


def _survey_source(
    spec: FusionSpec,
    section: SourceModelSpec,
    passages: Sequence[SampledPassage],
    mapping_text: Sequence[str],
    target_tokens: Tokenization,
    scored: ScoredSample | None,
) -> SourceSurvey:
    target = target_tokens.tokenizer
    source = PassageTokenizer.load(Checkpoint.of(section))
    source_tokens = tokenize(source, [replace(passage, ends_document=True) for passage in passages])
    alignment = spec.alignment
    mapping = load_or_build(source, target, alignment.vocabulary, alignment.cache_dir, mapping_text)
    return SourceSurvey(
        name=section.name,
        passages=len(passages),
        num_bytes=sum(passage.num_bytes for passage in passages),
        coverage=coverage(target_tokens, source_tokens),
        mapping=survey_mapping(source, target, mapping, source_tokens.counts()),
        traits=traits(source),
        target_traits=traits(target),
        vocab_size=source.vocab_size,
        padding_rows=_embedding_rows(Checkpoint.of(section)) - source.vocab_size,
        scores=None if scored is None else scores_of(scored, section.name, mapping),
        target_scores=None if scored is None else scores_of(scored, TARGET, None),
    )


def sample_passages(spec: FusionSpec, flow: FlowPlan) -> list[SampledPassage]:
    """The first passages of units spread over the corpus, about ``SAMPLE_BYTES`` in all, as many bytes of each domain.

    Equal specs have equal samples.

    Raises:
        PreflightError: a tokenizer or a chat template refuses a document that the run needs, or all of them.
    """
    tokenizers = [PassageTokenizer.load(checkpoint) for checkpoint in flow.checkpoints]
    # One token less than the window: the target may fill its context, a source leaves a place free.
    windows = [max(SMALLEST_WINDOW, min(window - 1, PASSAGE_TOKENS)) for window in flow.windows]
    cutter = (ConversationCutter if spec.corpus.messages_column else DocumentCutter)(tokenizers, windows)
    num_bytes = SAMPLE_BYTES // len(flow.domains)
    found: list[SampledPassage] = []
    refused: list[Unreadable] = []
    for domain in flow.domains:
        units = _spread(domain.units, num_bytes // SMALLEST_SHARE)
        for unit in units:
            of_unit = _first_passages(unit, spec.corpus, cutter, num_bytes // len(units), refused)
            found += [replace(passage, domain=domain.name) for passage in of_unit]
    _check_refused(spec.corpus, refused, bool(found))
    return found


def _check_refused(corpus: CorpusSpec, refused: Sequence[Unreadable], finds_others: bool) -> None:
    if refused and corpus.on_error == "fail":
        remedy = "fix it, or set corpus.on_error: skip to leave it out"
        raise PreflightError([Fault("corpus", str(refused[0]), remedy)])
    if refused and not finds_others:
        reason = f"none of the first {len(refused)} documents can be read by all models; the first one is {refused[0]}"
        raise PreflightError([Fault("corpus", reason, "take models that can, or correct corpus.paths")])


def _first_passages(
    unit: CorpusUnit,
    corpus: CorpusSpec,
    cutter: DocumentCutter | ConversationCutter,
    num_bytes: int,
    refused: list[Unreadable],
) -> list[SampledPassage]:
    """The first passages of one unit, ``num_bytes`` or a little more; ``refused`` gets the documents of no use."""
    found: list[SampledPassage] = []
    left = num_bytes
    for document in islice(read(unit, corpus.text_column, corpus.messages_column), MOST_DOCUMENTS):
        if isinstance(document, Unreadable):
            continue
        try:
            for passage in _passages_of(document, cutter):
                left -= passage.num_bytes
                found.append(passage)
                if left <= 0:
                    return found
        except (TokenizerError, RecordError) as error:
            refused.append(Unreadable(document.path, document.row, str(error)))
    return found


def _passages_of(
    document: Document | Conversation, cutter: DocumentCutter | ConversationCutter
) -> Iterator[SampledPassage]:
    if isinstance(document, Conversation):
        messages = tuple(cutter.cut(document.messages))
        text = content_of(messages)
        yield SampledPassage(text, len(text.encode("utf8")), ends_document=True, messages=messages)
        return
    of_document = len(document.text.encode("utf8"))
    for text in cutter.cut(document.text):
        size = len(text.encode("utf8"))
        of_document -= size
        yield SampledPassage(text, size, ends_document=of_document == 0)


def _spread(items: Sequence, most: int) -> list:
    """At most ``most`` items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _embedding_rows(checkpoint: Checkpoint) -> int:
    return load_configuration(checkpoint).get_text_config().vocab_size
