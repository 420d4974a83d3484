"""Survey the sources on a small sample of the corpus: coverage, mapping, tokenizer and distributions of each.

Coverage is counted by byte offsets under every ``alignment.tokens``: it shows how well two tokenizers fit together.
Under ``bytes`` the rows inside source tokens count as well. The
distributions come from transformers on the CPU, so that a plan needs no GPU and no vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from math import nan

import numpy as np
import pyarrow as pa

from engine.corpus.cutting import ConversationCutter, DocumentCutter
from engine.corpus.documents import Conversation, Document, Unreadable, read
from engine.corpus.files import CorpusUnit
from engine.corpus.windows import SMALLEST_WINDOW
from engine.errors import RecordError, SourceModelError, TokenizerError, first_line
from engine.method.vocabulary import UNMAPPED, load_or_build
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration
from engine.records import PASSAGE, flat_values, rows_of, schema
from engine.spec import CorpusSpec, FusionSpec, SourceModelSpec
from engine.text.chat import content_of
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.survey_examples import MappingSurvey, survey_mapping
from pipelines.planning.survey_tokens import Coverage, SampledPassage, Tokenization, Traits, coverage, tokenize, traits
from pipelines.stream.sizes import FlowPlan, mapping_sample

#: Bytes of the sample, and the least that each of its corpus units contributes.
SAMPLE_BYTES = 65_536
SMALLEST_SHARE = 4096

#: Documents that are tried in a unit, readable or not.
MOST_DOCUMENTS = 2000

#: Scored passages and the text tokens of each; with BOS and EOS they have at most 4,096 tokens together.
SCORED_PASSAGES = 8
PASSAGE_TOKENS = 510


@dataclass(frozen=True)
class Scores:
    """The scores of a model on the scored passages.

    Attributes:
        rows: number of distributions. num_bytes: the bytes of their tokens, EOS excluded.
        nats_per_byte: over these bytes.
        lost_mass: mean mass of a row beyond the top K, in [0, 1].
        unmapped_mass: mean kept mass of a row that maps nowhere, in [0, 1].
        problem: the reason that the model could not be scored, in one line; the numbers are then NaN.
        is_refused: whether a run would refuse the model for it.
    """

    rows: int = 0
    num_bytes: int = 0
    nats_per_byte: float = nan
    lost_mass: float = nan
    unmapped_mass: float = nan
    problem: str = ""
    is_refused: bool = False


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


def survey(spec: FusionSpec, flow: FlowPlan, score: bool = True) -> tuple[SourceSurvey, ...]:
    """Survey all sources of a spec on one sample of the corpus.

    Unreadable rows are skipped: the run itself reports them. Weights that cannot be loaded are a ``Scores.problem``.

    Args:
        flow: of the same spec.
        score: whether to load weights and score; without scores there are no nats per byte and no masses.
    """
    if not spec.source_models:
        return ()
    passages = sample_passages(spec, flow)
    target = PassageTokenizer.load(flow.checkpoints[0])
    target_tokens = tokenize(target, passages)
    scored = _spread(passages, SCORED_PASSAGES)
    target_scores = _scores(_target_section(spec), 1, scored, None) if score else None
    mapping_text = mapping_sample(spec, flow)
    return tuple(
        _survey_source(spec, source, passages, mapping_text, target_tokens, scored, target_scores)
        for source in spec.source_models
    )


def _survey_source(
    spec: FusionSpec,
    section: SourceModelSpec,
    passages: Sequence[SampledPassage],
    mapping_text: Sequence[str],
    target_tokens: Tokenization,
    scored: Sequence[SampledPassage],
    target_scores: Scores | None,
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
        scores=None if target_scores is None else _scores(section, spec.fusion.top_k, scored, mapping),
        target_scores=target_scores,
    )


def sample_passages(spec: FusionSpec, flow: FlowPlan) -> list[SampledPassage]:
    """The first passages of units spread over the corpus, about ``SAMPLE_BYTES`` in all; equal for equal specs."""
    tokenizers = [PassageTokenizer.load(checkpoint) for checkpoint in flow.checkpoints]
    # One token less than the window: the target may fill its context, a source leaves a place free.
    windows = [max(SMALLEST_WINDOW, min(window - 1, PASSAGE_TOKENS)) for window in flow.windows]
    cutter = (ConversationCutter if spec.corpus.messages_column else DocumentCutter)(tokenizers, windows)
    units = [CorpusUnit(**unit) for unit in _spread(flow.corpus_units, SAMPLE_BYTES // SMALLEST_SHARE)]
    share = SAMPLE_BYTES // len(units) if units else 0
    return [passage for unit in units for passage in _first_passages(unit, spec.corpus, cutter, share)]


def _first_passages(
    unit: CorpusUnit, corpus: CorpusSpec, cutter: DocumentCutter | ConversationCutter, num_bytes: int
) -> list[SampledPassage]:
    """The first passages of one unit, ``num_bytes`` or a little more."""
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
        except (TokenizerError, RecordError):
            continue
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


def _scores(
    section: SourceModelSpec, top_k: int, passages: Sequence[SampledPassage], mapping: np.ndarray | None
) -> Scores:
    """Load one model on the CPU, probe it as a run would, and score passages; an error becomes ``problem``."""
    from actors.sources.source_model import SourceModel

    if not passages:
        return Scores(problem="it cannot be scored here: the corpus has no text that can be read")
    section = section.model_copy(update={"backend": "transformers", "num_gpus": 0.0})
    try:
        model = SourceModel(section, top_k)
        return scores_of(model(_table(passages)), section.name, top_k, mapping)
    except SourceModelError as error:
        return Scores(problem=f"a run would refuse it: {first_line(error)}", is_refused=True)
    except Exception as error:  # every library that reads weights has its own errors; the plan continues without them
        return Scores(problem=f"it cannot be scored here: {first_line(error)}")


def scores_of(batch: pa.Table, name: str, top_k: int, mapping: np.ndarray | None) -> Scores:
    """The scores in one source's columns; without ``mapping`` no mass is unmapped. An answer counts as a passage."""
    masses = np.exp(flat_values(batch[f"{name}/topk_logprobs"])[0].reshape(-1, top_k).astype(np.float64))
    nats, covered = 0.0, 0
    ends, logprobs = rows_of(batch[f"{name}/end_bytes"]), rows_of(batch[f"{name}/token_logprobs"])
    for consumed, following in zip(ends, logprobs, strict=True):
        starts = [0, *np.flatnonzero(np.diff(consumed) < 0) + 1, len(consumed)]  # offsets drop where an answer begins
        for start, end in pairwise(starts if len(consumed) else ()):
            num_bytes = consumed[end - 1]
            nats -= float(following[start:end][consumed[start:end] < num_bytes].sum(dtype=np.float64))
            covered += int(num_bytes - consumed[start])
    unmapped = np.zeros(len(masses))
    if mapping is not None:
        ids = flat_values(batch[f"{name}/topk_ids"])[0].reshape(-1, top_k)
        beyond = np.full(
            max(int(ids.max(initial=0)) + 1 - len(mapping), 0), UNMAPPED, np.int32
        )  # an embedding's padding
        unmapped = (masses * (np.concatenate([mapping, beyond])[ids] == UNMAPPED)).sum(axis=1)
    return Scores(
        rows=len(masses),
        num_bytes=covered,
        nats_per_byte=nats / covered if covered else nan,
        lost_mass=float(np.maximum(1.0 - masses.sum(axis=1), 0.0).mean()) if len(masses) else nan,
        unmapped_mass=float(unmapped.mean()) if len(masses) else nan,
    )


def _table(passages: Sequence[SampledPassage]) -> pa.Table:
    """A table of ``records.PASSAGE``, without context."""
    columns = {
        "passage_id": [f"sample:{index}" for index in range(len(passages))],
        "text": [passage.text for passage in passages],
        "num_bytes": [passage.num_bytes for passage in passages],
        "context_bytes": [0] * len(passages),
        "ends_document": [passage.ends_document for passage in passages],
        "messages": [list(passage.messages) for passage in passages],
    }
    fields = schema(PASSAGE)
    return pa.table([pa.array(columns[field.name], field.type) for field in fields], fields)


def _target_section(spec: FusionSpec) -> SourceModelSpec:
    """The target as if it were a source."""
    target = spec.target_model
    return SourceModelSpec(
        name="target",
        checkpoint=target.checkpoint,
        chat_template=target.chat_template,
        bos=target.bos,
        probe="off",
    )


def _embedding_rows(checkpoint: Checkpoint) -> int:
    return load_configuration(checkpoint).get_text_config().vocab_size
