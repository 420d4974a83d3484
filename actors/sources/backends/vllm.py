"""Scoring with vLLM: prompt log-probabilities taken out of the engine as dense tensors.

The engine core ships ids and log-probabilities as tensors; one method of vLLM's front end then turns every number into
Python objects, which costs more than the model. We replace that method by one that keeps the tensors. It is private, so
it is guarded: where its inside is not what we know, vLLM's public flat form serves, slower and with a warning.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import numpy as np

from actors.sources.backends import PromptRows, check_ids
from actors.sources.backends.vllm_patches import (
    CAPTURE,
    groups_of_one,
    hide_native_attributes,
    install_dense_capture,
    keep_freed_memory,
    scratch_folder,
    start_in_turn,
)
from engine.errors import SourceModelError
from engine.model_files.local import local_checkpoint

#: Set before vLLM is imported. The engine stays in this process: no orphans, and Ray sees its memory.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the default gives every engine of a node the same cores
    "VLLM_CPU_CI_ENV": "1",  # no warm-up by compiling
}

#: For vLLM's notes on architectures, which cost it a process of several seconds each.
_CACHE_DIR = "~/.cache/knowledge-fusion-engine/vllm"

#: Prompt tokens in one step of the engine; a vocabulary row of each is held in float32 on the CPU runner.
BATCHED_TOKENS = {"cpu": 2048, "cuda": 4096}


class VllmBackend:
    """A source model behind vLLM; see ``backends.Backend``.

    Args:
        checkpoint: as ``local.local_checkpoint`` takes it.
        top_k: K.
        dtype: of weights and activations; ``auto`` is the checkpoint's.
        context: tokens of the longest prompt.
        kv_cache_bytes: memory for keys and values; scoring needs about two steps' worth.
        device: ``cpu`` or ``cuda``.
        batched_tokens: prompt tokens in one step of the engine.
        tensor_parallel_size: GPUs that hold the model together.
        quantization: of the weights, as vLLM names it; empty for the checkpoint's own.

    Attributes:
        dense: whether scoring captures the tensors; vLLM's public flat form otherwise.

    Raises:
        SourceModelError: vLLM cannot load the model.
    """

    def __init__(
        self,
        checkpoint: str,
        top_k: int,
        dtype: str,
        context: int,
        kv_cache_bytes: int,
        device: str,
        batched_tokens: int | None = None,
        tensor_parallel_size: int = 1,
        quantization: str = "",
    ):
        os.environ.update(_ENVIRONMENT)
        os.environ.setdefault("VLLM_CACHE_ROOT", os.path.expanduser(_CACHE_DIR))
        if device == "cpu":
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its compiler wants g++, and scoring is exact without
            keep_freed_memory()
            hide_native_attributes()
        from vllm import LLM, SamplingParams

        try:
            folder = local_checkpoint(checkpoint)
            with scratch_folder(), start_in_turn(device), groups_of_one(device):
                self._engine = LLM(
                    model=folder,
                    dtype=dtype,
                    max_model_len=context + 1,  # one token is always generated
                    max_logprobs=top_k,
                    max_num_batched_tokens=batched_tokens or BATCHED_TOKENS[device],
                    kv_cache_memory_bytes=kv_cache_bytes,
                    gpu_memory_utilization=0.05,  # only a check that this much is free: kv_cache_bytes sets the size
                    enable_prefix_caching=False,
                    enforce_eager=True,  # graphs help decoding; scoring is prefill alone
                    skip_tokenizer_init=True,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    tensor_parallel_size=tensor_parallel_size,
                    quantization=quantization or None,
                    # Ray Data has reserved the GPUs; left to itself, vLLM would ask Ray for them again.
                    distributed_executor_backend="mp" if tensor_parallel_size > 1 else None,
                )
        except (ValueError, RuntimeError, OSError) as error:
            raise SourceModelError(f"{checkpoint}: vLLM cannot load it: {error}") from error
        self.vocab_size = self._engine.llm_engine.model_config.get_vocab_size()
        self._top_k = top_k
        self.dense = install_dense_capture()
        # All in the constructor: the flag that keeps cached prefixes out of the scores is set there and nowhere else.
        self._sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False, flat_logprobs=True
        )

    def score(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        """Rows of each prompt.

        Raises:
            SourceModelError: an id is outside the vocabulary (vLLM would read beyond its table).
        """
        check_ids(prompts, self.vocab_size)
        CAPTURE.active = self.dense
        try:
            outputs = self._engine.generate(
                [{"prompt_token_ids": prompt.tolist()} for prompt in prompts], self._sampling, use_tqdm=False
            )
        except Exception as error:
            _exit_if_fatal(error)
            raise
        finally:
            CAPTURE.active = False
        read = _dense_rows if self.dense else _flat_rows
        return [read(output.prompt_logprobs, self._top_k) for output in outputs]


def _exit_if_fatal(error: Exception) -> None:
    """End the process after an error that its engine cannot outlive: vLLM's core is dead, or the GPU's context is.

    Only a dead process makes Ray replace the actor and score its rows again.
    """
    import torch
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError | torch.AcceleratorError):
        traceback.print_exception(error)
        sys.stderr.flush()  # os._exit flushes nothing
        os._exit(1)


def _dense_rows(captured: tuple[np.ndarray, np.ndarray] | None, top_k: int) -> PromptRows:
    """Column 0 is the token that does follow, columns 1 to K are the likeliest, likeliest first; views, no copies.

    The first captured entry describes the prompt's second token given its first: it is row 0, the shift is done.
    """
    if not captured:  # a prompt of one token may have come without tensors
        return _no_rows(top_k)
    ids, logprobs = captured
    return PromptRows(ids[:, 1:].astype(np.int32, copy=False), logprobs[:, 1:], logprobs[:, 0])


def _flat_rows(flat, top_k: int) -> PromptRows:
    """The same from vLLM's public flat lists, whose first position (of the prompt's first token) is empty."""
    starts = [start for start, end in zip(flat.start_indices, flat.end_indices, strict=True) if end > start]
    if not starts:
        return _no_rows(top_k)
    ids = np.array(flat.token_ids, np.int32)
    logprobs = np.array(flat.logprobs, np.float32)
    places = np.array(starts)[:, None] + np.arange(1, top_k + 1)
    return PromptRows(topk_ids=ids[places], topk_logprobs=logprobs[places], token_logprobs=logprobs[starts])


def _no_rows(top_k: int) -> PromptRows:
    return PromptRows(np.zeros((0, top_k), np.int32), np.zeros((0, top_k), np.float32), np.zeros(0, np.float32))
