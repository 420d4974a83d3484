"""Checks of a source model before it may score, and of every row that it returns.

A model that is fed or read wrongly does not fail: it gives plausible numbers. So a short known text is scored when a
replica starts, and every batch has to agree with itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.sources.backends import Backend, PromptRows
from engine.errors import SourceModelError, UnsoundRowsError
from engine.text.tokenization import NO_ROLE, PassageTokenizer

#: Plain prose, code and numbers, of which every language model has seen the like.
PROBE_TEXT = (
    "The function returns the number of items in the list. If the list is empty, it returns zero.\n\n"
    "def count(items):\n    return len(items)\n\nFor example, there are 7 days in a week and 12 months in a year."
)

#: Nats per token by which the other way of beginning a passage must be better to be a mistake and no matter of taste.
#: Models that were trained with BOS and do not get it lose several nats.
BOS_MARGIN = 1.0

#: Rows from which the mean of a batch says something about the model, and not about a passage.
FEWEST_ROWS = 256

#: Nats per token by which two probes of one model may differ; the order of sums on a device changes far less.
SAME_MODEL = 0.2

#: Least mean probability of the kept entries. Below it there is no distribution worth fusing.
LEAST_KEPT_MASS = 1e-3

#: Largest difference between two figures of one log-probability, in nats; the backends agree far better.
AGREEMENT = 0.05


@dataclass(frozen=True)
class Probe:
    """How well a model predicts ``PROBE_TEXT``, in nats per token over the same tokens.

    Attributes:
        as_configured: beginning as the spec has it. otherwise: with BOS instead of without, or the other way round;
            NaN for a model without BOS.
        chance: of a guess among all tokens alike, ln V.
    """

    as_configured: float
    otherwise: float
    chance: float

    @property
    def best(self) -> float:
        """The lower cost of the two ways to begin a passage."""
        return min(value for value in (self.as_configured, self.otherwise, math.inf) if not math.isnan(value))


def probe(backend: Backend, tokenizer: PassageTokenizer, adds_bos: bool, context: int) -> Probe:
    """Score ``PROBE_TEXT`` with BOS and without; its first token, which has no row without BOS, is left out.

    Args:
        context: tokens of the longest prompt; what does not fit is cut off.
    """
    ids = tokenizer.encode(PROBE_TEXT)[0][: context - 1]
    with_bos = np.concatenate([[tokenizer.bos_id], ids]).astype(np.int32)
    ways = {False: ids, True: with_bos} if tokenizer.bos_id != NO_ROLE else {False: ids}
    prompts = sorted(ways, key=lambda way: way != adds_bos)  # as configured first
    rows = backend.score([ways[way] for way in prompts])
    nats = [float(-row.token_logprobs[int(way) :].mean()) for way, row in zip(prompts, rows, strict=True)]
    return Probe(nats[0], nats[1] if len(nats) > 1 else math.nan, math.log(backend.vocab_size))


def settled_bos(found: Probe, name: str, adds_bos: bool, correct: bool) -> bool:
    """Whether BOS precedes every passage, by the probe's result.

    Args:
        correct: whether a mistake about BOS is corrected; otherwise it is refused.

    Raises:
        SourceModelError: the other way is better by ``BOS_MARGIN``, or the model predicts no better than chance, or
            nothing.
    """
    if not math.isfinite(found.as_configured):
        raise SourceModelError(
            f"{name}: it predicts a plain text at {found.as_configured} nats per token; look at the weights and at "
            f"source_models dtype, whose range may be too small for this model"
        )
    if not found.best < found.chance:
        raise SourceModelError(
            f"{name}: it predicts a plain text at {found.best:.2f} nats per token, no better than chance "
            f"({found.chance:.2f}); the weights or the tokenizer are another model's. If it is meant to be so, set "
            f"source_models probe: off"
        )
    if not found.otherwise < found.as_configured - BOS_MARGIN:
        return adds_bos
    if correct:
        return not adds_bos
    way = "with BOS" if adds_bos else "without BOS"
    raise SourceModelError(
        f"{name}: {way} it predicts a plain text at {found.as_configured:.2f} nats per token, the other way at "
        f"{found.otherwise:.2f}; set source_models bos: {'never' if adds_bos else 'always'}, or probe: correct"
    )


def is_no_better_than_chance(found: Probe, rows: Sequence[PromptRows]) -> bool:
    """Whether a batch of ``FEWEST_ROWS`` rows or more costs what a guess would: reason enough to probe again.

    It is no fault in itself. A model of English may find Chinese less likely than a guess would.
    """
    nats = [-row.token_logprobs.sum(dtype=np.float64) for row in rows]
    tokens = sum(len(row.token_logprobs) for row in rows)
    return tokens >= FEWEST_ROWS and not sum(nats) / tokens < found.chance


def check_same_model(name: str, before: Probe, now: Probe) -> None:
    """Refuse a model that no longer predicts ``PROBE_TEXT`` as it did.

    Weights that go wrong later (a broken device, a file that was written over while it was mapped) stop no run by
    themselves; the source would only lose every comparison.

    Raises:
        SourceModelError: the best of both ways to begin differs by more than ``SAME_MODEL``.
    """
    if not abs(now.best - before.best) <= SAME_MODEL:
        raise SourceModelError(
            f"{name}: it predicts a plain text at {now.best:.2f} nats per token, and did at {before.best:.2f} when the "
            f"replica started; its weights have changed. Look at the node's memory and GPU, and start again"
        )


def check_distributions(
    name: str,
    passage_ids: Sequence[object],
    prompts: Sequence[np.ndarray],
    rows: Sequence[PromptRows],
    vocab_size: int,
    dtype: str,
) -> None:
    """Refuse rows that are no log-probabilities of the model's tokens, or of other places of the prompt.

    A kept entry may be -inf, a token that the model rules out; the token that did follow may not.

    Raises:
        SourceModelError: names the passage and what was seen.
    """
    for passage_id, prompt, row in zip(passage_ids, prompts, rows, strict=True):
        fault = _fault(prompt, row, vocab_size, dtype)
        if fault:
            raise UnsoundRowsError(f"{name}: passage {passage_id} got {fault}")
    kept = [np.exp(row.topk_logprobs).sum(axis=1, dtype=np.float64) for row in rows]
    masses = np.concatenate(kept) if kept else np.empty(0)
    if len(masses) and masses.mean() < LEAST_KEPT_MASS:
        raise SourceModelError(
            f"{name}: the kept entries hold {masses.mean():.1e} of the mass, nearly all of it is rest; "
            f"raise fusion.top_k, or look at the weights"
        )


def _fault(prompt: np.ndarray, row: PromptRows, vocab_size: int, dtype: str) -> str:
    """The fault of one prompt's rows; empty if all is well."""
    finite = np.isfinite(row.token_logprobs).all() and not np.isnan(row.topk_logprobs).any()
    if not finite or (row.topk_logprobs > 1e-3).any():
        return f"log-probabilities that are not finite or above 0; look at the weights and at dtype {dtype!r}"
    ids = row.topk_ids
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        return (
            f"tokens from {ids.min()} to {ids.max()}, the model has 0 to {vocab_size - 1}; report this, the backend "
            f"has mixed up its columns"
        )
    followed = ids == prompt[1 : 1 + len(ids), None]
    apart = np.abs(row.topk_logprobs - row.token_logprobs[:, None])[followed]
    beyond = row.token_logprobs[~followed.any(axis=1)] - row.topk_logprobs[~followed.any(axis=1), -1]
    if (apart > AGREEMENT).any() or (beyond > AGREEMENT).any():
        return (
            "rows that do not belong to the tokens that follow them; report this, the backend has shifted its rows "
            "against the prompt"
        )
    return ""
