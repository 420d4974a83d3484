"""Scoring with vLLM: prompt log-probabilities taken out of the engine as dense tensors.

The engine core ships ids and log-probabilities as tensors; one method of vLLM's front end then makes a Python object of
every number. ``vllm_patches.keep_tensors`` replaces it; where it cannot, vLLM's public flat form serves, and is slower.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.sources.backends import PromptRows, check_ids, device_of
from actors.sources.backends.key_value_cache import cache_bytes
from actors.sources.backends.step_size import step_tokens
from actors.sources.backends.vllm_patches import (
    captured_tensors,
    hide_private_names_of_llvmlite,
    keep_freed_memory,
    keep_tensors,
    one_start_at_a_time,
    temporary_files_removed,
)
from engine.errors import SourceModelError
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration
from engine.model_files.local import local_checkpoint
from engine.spec import SourceModelSpec

#: Set before vLLM is imported. The engine stays in this process: no orphans, and Ray sees its memory.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the default gives every engine of a node the same cores
    "VLLM_CPU_CI_ENV": "1",  # no warm-up by compiling
}

#: What vLLM reads of a model on the hub; one without safetensors it downloads by itself.
_MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]

#: For vLLM's notes on architectures, which cost it a process of several seconds each.
_CACHE_DIR = "~/.cache/knowledge-fusion-engine/vllm"


class VllmBackend:
    """A source model in a vLLM engine; see ``backends.Backend``.

    Args:
        source: the spec's section.
        top_k: K.
        context: tokens of the longest prompt.

    Attributes:
        dense: whether scoring captures the tensors; vLLM's public flat form otherwise.

    Raises:
        SourceModelError: vLLM cannot load the model.
    """

    def __init__(self, source: SourceModelSpec, top_k: int, context: int):
        device = device_of(source)
        _prepare_process(device)
        from vllm import LLM, SamplingParams

        checkpoint = Checkpoint.of(source)
        try:
            folder = local_checkpoint(checkpoint)
            _download(folder)
            with one_start_at_a_time(source.num_gpus), temporary_files_removed():
                self._engine = LLM(model=folder, **_engine_arguments(source, top_k, context, device))
        except (ValueError, RuntimeError, OSError) as error:
            raise SourceModelError(f"{checkpoint}: vLLM cannot load it: {error}") from error
        self.vocab_size = self._engine.llm_engine.model_config.get_vocab_size()
        self._top_k = top_k
        self.dense = keep_tensors()
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
        requests = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        with captured_tensors(self.dense):
            outputs = self._engine.generate(requests, self._sampling, use_tqdm=False)
        read = _dense_rows if self.dense else _flat_rows
        return [read(output.prompt_logprobs, self._top_k) for output in outputs]


def import_engine() -> None:
    """Import vLLM as an engine on a CPU does, for processes that will be forked from this one."""
    os.environ.update(ENVIRONMENT)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from vllm import LLM, SamplingParams  # noqa: F401


def _download(name: str) -> None:
    """Download a model that is on the hub, so that no other engine waits for that; vLLM then finds it in the cache."""
    if not os.path.isdir(name):
        from huggingface_hub import snapshot_download

        snapshot_download(name, allow_patterns=_MODEL_FILES, ignore_patterns=["original/*", "consolidated*"])


def _prepare_process(device: str) -> None:
    """Set what vLLM reads from the environment when it is imported, and alter what stands in its way."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_CACHE_ROOT", os.path.expanduser(_CACHE_DIR))
    if device == "cpu":
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its compiler wants g++, and scoring is exact without
        keep_freed_memory()
        hide_private_names_of_llvmlite()


def _engine_arguments(source: SourceModelSpec, top_k: int, context: int, device: str) -> dict[str, Any]:
    config = load_configuration(Checkpoint.of(source))
    tokens = step_tokens(source, config, context, _gpu_bytes(device))
    return {
        "dtype": source.dtype,
        "max_model_len": context + 1,  # one token is always generated
        "max_logprobs": top_k,
        "max_num_batched_tokens": tokens,
        "kv_cache_memory_bytes": cache_bytes(source, config, context, tokens),
        "gpu_memory_utilization": 0.05,  # only a check that this much is free: kv_cache_bytes sets the size
        "enable_prefix_caching": False,
        "enforce_eager": True,  # graphs help decoding; scoring is prefill alone
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "tensor_parallel_size": source.tensor_parallel_size,
        "quantization": source.quantization or None,
        # Ray Data has reserved the GPUs; left to itself, vLLM would ask Ray for them again.
        "distributed_executor_backend": "mp" if source.tensor_parallel_size > 1 else None,
    }


def _gpu_bytes(device: str) -> int:
    """Memory of this process's GPU, asked of the driver: CUDA is not started, as several ranks start it themselves."""
    if device == "cpu":
        return 0
    from vllm.platforms import current_platform

    return current_platform.get_device_total_memory()


def _dense_rows(captured: Any, top_k: int) -> PromptRows:
    """Column 0 is the token that does follow, columns 1 to K are the top tokens; views, no copies.

    The first captured entry describes the prompt's second token given its first: it is row 0, the shift is done.
    """
    if not isinstance(captured, tuple):  # a prompt of one token comes without tensors from the runner of GPUs
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
