"""Backends that run a source model: one contract, ``score``, and two ways to keep it.

``vllm.py`` is the fast one; it and ``vllm_patches.py``, which alters other libraries for it, are the only files that
import vLLM. ``transformers.py`` is the oracle, and serves where vLLM does not know an architecture.

Row convention (the most probable silent bug here): row s is the distribution of the token *after* token s. A
prompt of n tokens therefore has n-1 rows, and no other place shifts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.errors import SourceModelError
from engine.spec import SourceModelSpec


@dataclass(frozen=True)
class PromptRows:
    """The rows of one prompt of n tokens, S = n-1.

    Attributes:
        topk_ids: int32 [S,K], the top next tokens, the most probable first.
        topk_logprobs: float32 [S,K], in nats, of a softmax over the whole vocabulary.
        token_logprobs: float32 [S], of the token that does follow.
    """

    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    token_logprobs: np.ndarray


class Backend(Protocol):
    """One source model, loaded."""

    vocab_size: int

    def score(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        """Rows of each prompt (int32 ids, at least one), in the order of the prompts."""


def device_of(source: SourceModelSpec) -> str:
    """Where a source's replicas run, as torch names it: ``cuda`` or ``cpu``."""
    return "cuda" if source.num_gpus else "cpu"


def check_ids(prompts: Sequence[np.ndarray], vocab_size: int) -> None:
    """Refuse ids that the model has no row for: looking one up kills a GPU's context, and with it the process.

    Raises:
        SourceModelError: names the ids seen and the ids allowed.
    """
    for prompt in prompts:
        if prompt.size and not 0 <= prompt.min() <= prompt.max() < vocab_size:
            raise SourceModelError(
                f"a prompt has ids from {prompt.min()} to {prompt.max()}, the model takes 0 to {vocab_size - 1}; "
                f"the tokenizer does not belong to this checkpoint"
            )
