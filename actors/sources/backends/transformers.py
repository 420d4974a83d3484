"""Scoring with transformers: slow, plain, and right. The oracle for vLLM, and the way for models it does not know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.sources.backends import PromptRows, check_ids, device_of
from engine.errors import SourceModelError
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import local_checkpoint
from engine.spec import SourceModelSpec

#: Tokens in one forward pass, padding included, and logits (512 MiB in float32), the largest thing in memory. A longer
#: prompt has a pass of its own.
PASS_TOKENS, PASS_LOGITS = 2048, 2**27

#: Logits whose log-softmax is made at once: 16 MiB on a CPU, which the allocator keeps. For all of a pass at once it
#: would get memory from the system each time, at little more than half the speed (262,144 tokens, LOG.md).
SOFTMAX_LOGITS = {"cpu": 2**22, "cuda": 2**26}


def pass_tokens(vocab_size: int) -> int:
    """Tokens in one forward pass of a model with so many vocabulary rows, padding included."""
    return max(1, min(PASS_TOKENS, PASS_LOGITS // vocab_size))


class TransformersBackend:
    """A source model as transformers loads it; see ``backends.Backend``.

    Args:
        source: the spec's section; its log-softmax is always float32.
        top_k: K.

    Raises:
        SourceModelError: transformers cannot load the model.
    """

    def __init__(self, source: SourceModelSpec, top_k: int):
        checkpoint = Checkpoint.of(source)
        self._device = device_of(source)
        try:
            model = AutoModelForCausalLM.from_pretrained(local_checkpoint(checkpoint), dtype=source.dtype)
            self._model = model.to(self._device).eval()
        except (ValueError, RuntimeError, OSError) as error:
            raise SourceModelError(f"{checkpoint}: transformers cannot load it: {error}") from error
        self.vocab_size = self._model.get_output_embeddings().weight.shape[0]
        self._top_k = top_k
        self._pass_tokens = pass_tokens(self.vocab_size)

    def score(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        """Rows of each prompt; prompts that lie beside each other share a forward pass, padded to the longest.

        Raises:
            SourceModelError: an id is outside the vocabulary.
        """
        check_ids(prompts, self.vocab_size)
        rows: list[PromptRows] = []
        start = 0
        while start < len(prompts):
            end = self._end_of_pass(prompts, start)
            rows += self._forward(prompts[start:end])
            start = end
        return rows

    def _end_of_pass(self, prompts: Sequence[np.ndarray], start: int) -> int:
        longest = 0
        for end in range(start, len(prompts)):
            longest = max(longest, len(prompts[end]))
            if longest * (end - start + 1) > self._pass_tokens and end > start:
                return end
        return len(prompts)

    @torch.no_grad()
    def _forward(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, prompt in enumerate(prompts):
            ids[index, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
            mask[index, : len(prompt)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        # Row s describes token s+1: the last row of a prompt has no token.
        return [self._rows(logits[index, : len(p) - 1], ids[index, 1 : len(p)]) for index, p in enumerate(prompts)]

    def _rows(self, logits: torch.Tensor, token_ids: torch.Tensor) -> PromptRows:
        """The rows of logits [R,V] and of the tokens that follow, int64 [R]."""
        size = max(1, SOFTMAX_LOGITS[self._device] // self.vocab_size)
        kept = torch.empty(len(logits), self._top_k, dtype=torch.float32)
        kept_ids = torch.empty(len(logits), self._top_k, dtype=torch.int32)
        of_tokens = torch.empty(len(logits), dtype=torch.float32)
        for start in range(0, len(logits), size):
            part = slice(start, start + size)
            logprobs = logits[part].float().log_softmax(dim=-1)
            kept[part], kept_ids[part] = logprobs.topk(self._top_k, dim=-1)
            of_tokens[part] = logprobs.gather(-1, token_ids[part, None])[:, 0]
        return PromptRows(kept_ids.numpy(), kept.numpy(), of_tokens.numpy())
