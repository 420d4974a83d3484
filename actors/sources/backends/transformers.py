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

#: Tokens in one forward pass, padding included: bounds the logits, the largest thing in memory.
PASS_TOKENS = 2048


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
            if longest * (end - start + 1) > PASS_TOKENS and end > start:
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
        logprobs = logits[:, :-1].float().log_softmax(dim=-1)  # row s describes token s+1: the last row has no token
        topk = logprobs.topk(self._top_k, dim=-1)
        token_logprobs = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
        return [
            PromptRows(
                topk_ids=topk.indices[index, : len(prompt) - 1].to(torch.int32).cpu().numpy(),
                topk_logprobs=topk.values[index, : len(prompt) - 1].cpu().numpy(),
                token_logprobs=token_logprobs[index, : len(prompt) - 1].cpu().numpy(),
            )
            for index, prompt in enumerate(prompts)
        ]
