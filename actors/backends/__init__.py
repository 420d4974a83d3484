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

from engine.errors import SourceModelError

#: What configurations call the number of places that the model takes: most of them, MPT, BLOOM.
_PLACES = ("max_position_embeddings", "max_seq_len", "seq_length")


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
        generated_tokens: places of the model's own that the backend needs behind the prompt: vLLM always
            generates one token, so that 512 places take prompts of 511.
    """
    text_config = config.get_text_config()
    places = [places for name in _PLACES if (places := getattr(text_config, name, None)) is not None]
    return min([max_tokens, *(count - generated_tokens for count in places)])


def insist_on_ids(prompts: Sequence[np.ndarray], vocab_size: int) -> None:
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
