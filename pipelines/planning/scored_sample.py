"""A few passages of the corpus with the scores of all models of a run, each loaded once.

The scores come from transformers on the CPU, so that a plan needs no GPU and no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import numpy as np
import psutil
import pyarrow as pa

from engine.errors import SourceModelError, UnsoundRowsError, first_line
from engine.method.vocabulary import UNMAPPED
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, flat_values, rows_of, schema
from engine.spec import FusionSpec, SourceModelSpec
from pipelines.planning.costs import weight_count
from pipelines.planning.survey_tokens import SampledPassage

#: The target's name among the scored models; no source can have it, since their names have no spaces.
TARGET = "the target"

#: Bytes of a weight in float32.
FLOAT32_BYTES = 4


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
class ScoredSample:
    """Passages, and what each model says about them.

    Attributes:
        passages: of the sample.
        table: ``records.PASSAGE``, and ``records.source_columns`` of each model that could be scored.
        top_k: K, entries kept of each row.
        problems: name of each other model to its scores, which give the reason.
    """

    passages: tuple[SampledPassage, ...]
    table: pa.Table
    top_k: int
    problems: dict[str, Scores]


def score_sample(spec: FusionSpec, passages: Sequence[SampledPassage]) -> ScoredSample:
    """Load the target and each source on the CPU, one after the other, probe the sources as a run would, and score."""
    table, problems = _table(passages), {}
    for section in [_target_section(spec), *spec.source_models]:
        scored = _scored(section, spec.fusion.top_k, table)
        if isinstance(scored, Scores):
            problems[section.name] = scored
        else:
            table = scored
    return ScoredSample(tuple(passages), table, spec.fusion.top_k, problems)


def _scored(section: SourceModelSpec, top_k: int, table: pa.Table) -> pa.Table | Scores:
    """The passages with one model's columns, or the reason why there are none."""
    from actors.sources.source_model import SourceModel

    if not len(table):
        return Scores(problem="it cannot be scored here: the corpus has no text that can be read")
    try:
        here = {"backend": "transformers", "num_gpus": 0.0, "dtype": _dtype_here(section)}
        section = section.model_copy(update=here)
        return SourceModel(section, top_k)(table)
    except SourceModelError as error:
        # A target may have random weights, whose top K hold next to nothing; a source may not.
        if section.name == TARGET and not isinstance(error, UnsoundRowsError):
            return Scores(problem=f"it cannot be scored here: {first_line(error)}")
        return Scores(problem=f"a run would refuse it: {first_line(error)}", is_refused=True)
    except Exception as error:  # every library that reads weights has its own errors; the plan continues without them
        return Scores(problem=f"it cannot be scored here: {first_line(error)}")


def _dtype_here(section: SourceModelSpec) -> str:
    """float32 if the weights take at most half of the free memory: most CPUs take several times as long for others."""
    needed_bytes = FLOAT32_BYTES * weight_count(Checkpoint.of(section))
    return "float32" if needed_bytes < psutil.virtual_memory().available / 2 else section.dtype


def scores_of(scored: ScoredSample, name: str, mapping: np.ndarray | None) -> Scores:
    """The scores of one model; without ``mapping`` no mass is unmapped. An answer counts as a passage."""
    if name in scored.problems:
        return scored.problems[name]
    batch, top_k = scored.table, scored.top_k
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
    section = SourceModelSpec(
        name="target",
        checkpoint=target.checkpoint,
        chat_template=target.chat_template,
        bos=target.bos,
        probe="off",
    )
    return section.model_copy(update={"name": TARGET})
