"""What runs a source model: one contract, ``score``, with two ways to keep it.

``vllm.py`` is the fast one and the only file that imports vLLM. ``transformers.py`` is the oracle, and serves where
vLLM does not know an architecture.

Row convention (the likeliest silent bug of this trade): row s is the distribution of the token *after* token s. A
prompt of n tokens therefore has n-1 rows, and nothing is shifted anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class PromptRows:
    """The rows of one prompt of n tokens, S = n-1.

    Attributes:
        topk_ids: int32 [S,K], the likeliest next tokens, likeliest first.
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


def context_limit(config: Any, max_tokens: int, generated_tokens: int) -> int:
    """Tokens of the longest prompt, BOS and EOS included.

    Args:
        config: a transformers configuration.
        max_tokens: a limit by decision.
        generated_tokens: places of the model's position table that the backend needs behind the prompt: vLLM always
            generates one token, so that a table of 512 places takes prompts of 511.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max_tokens if positions is None else min(max_tokens, positions - generated_tokens)
