"""Scoring with vLLM: prompt log-probabilities taken out of the engine as dense tensors.

The engine core ships ids and log-probabilities as tensors; one method of vLLM's front end then turns every number into
Python objects, which costs more than the model. We replace that method by one that keeps the tensors. It is private, so
it is guarded: where its inside is not what we know, vLLM's public flat form serves, slower and with a warning.
"""

from __future__ import annotations

import ctypes
import fcntl
import inspect
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from actors.backends import PromptRows, insist_on_ids
from engine.checkpoint_files import local_checkpoint
from engine.errors import SourceModelError

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

#: Parameters of the C library's ``mallopt``: most blocks that are mapped by themselves; free memory to give back from.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1

#: What the engine's tensors were when this capture was written.
_KNOWN_FIELDS = ("logprob_token_ids", "logprobs", "selected_token_ranks")
_KNOWN_PARAMETERS = ["self", "prompt_logprobs_tensors"]


class VllmBackend:
    """A source model behind vLLM; see ``backends.Backend``.

    Args:
        checkpoint: as ``checkpoint_files.local_checkpoint`` takes it.
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
            _keep_freed_memory()
            _hide_native_attributes()
        from vllm import LLM, SamplingParams

        try:
            folder = local_checkpoint(checkpoint)
            with _scratch_folder(), _start_in_turn(device), _groups_of_one(device):
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
        self.dense = _install_dense_capture()
        # All in the constructor: the flag that keeps cached prefixes out of the scores is set there and nowhere else.
        self._sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False, flat_logprobs=True
        )

    def score(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        """Rows of each prompt.

        Raises:
            SourceModelError: an id is outside the vocabulary (vLLM would read beyond its table).
        """
        insist_on_ids(prompts, self.vocab_size)
        _CAPTURE.active = self.dense
        try:
            outputs = self._engine.generate(
                [{"prompt_token_ids": prompt.tolist()} for prompt in prompts], self._sampling, use_tqdm=False
            )
        except Exception as error:
            _exit_if_fatal(error)
            raise
        finally:
            _CAPTURE.active = False
        read = _dense_rows if self.dense else _flat_rows
        return [read(output.prompt_logprobs, self._top_k) for output in outputs]


def _keep_freed_memory() -> None:
    """Have the C library hold on to what one step of the engine has freed, for the next one.

    Logits and activations come and go many times in a step. By itself the library gives such memory back and takes it
    again, page by page, which costs small models up to a sixth of their time. It is the process' only model, so that
    it will need as much again.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # GNU's library has it
    if adjust is not None:
        adjust(_M_MMAP_MAX, 0)
        adjust(_M_TRIM_THRESHOLD, -1)


def _hide_native_attributes() -> None:
    """Let vLLM's search for kernels pass by numba's compiler, where the process has loaded it before.

    On the CPU vLLM looks into every object of every module that has a ``__dict__``. The handle of llvmlite's library
    claims to have every name, this one too, and what it returns is no dictionary. Ray gives actors processes that have
    run other tasks, so that it is chance whether numba is there.
    """
    handles = getattr(sys.modules.get("llvmlite.binding.ffi"), "_lib_wrapper", None)
    if handles is None or getattr(handles.__getattr__, "hides_private_names", False):
        return
    native = handles.__getattr__

    def public_names_alone(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return native(self, name)

    public_names_alone.hides_private_names = True
    handles.__getattr__ = public_names_alone


@contextmanager
def _scratch_folder() -> Iterator[None]:
    """A folder, for as long as an engine is built, for the meeting point of its process group, which has one member.

    vLLM would leave it in the temporary folder: an actor is killed, not ended, so that nothing can be cleaned up later.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextmanager
def _groups_of_one(device: str) -> Iterator[None]:
    """Make the dozen groups of an engine on the CPU, each of its one process, without gloo's ever-waking threads."""
    if device != "cpu":
        yield
        return
    import torch.distributed
    import torch.testing._internal.distributed.fake_pg  # registers what copies input to output

    make = torch.distributed.new_group
    torch.distributed.new_group = lambda ranks, **options: make(ranks, **{**options, "backend": "fake"})
    try:
        yield
    finally:
        torch.distributed.new_group = make


@contextmanager
def _start_in_turn(device: str) -> Iterator[None]:
    """One engine of a node after the other: two that start on one GPU take each other's memory for their own."""
    if device == "cpu":
        yield
        return
    with open(os.path.join("/tmp", "knowledge-fusion-engine-start.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


class _Capture:
    """Whether the replaced method keeps tensors now: two engines of one process may want different forms."""

    active = False


_CAPTURE = _Capture()


def _install_dense_capture() -> bool:
    """Replace the method that makes Python objects; False, with a warning, where vLLM's inside is another."""
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsTensors

    original = getattr(LogprobsProcessor, "_update_prompt_logprobs", None)
    if getattr(original, "is_dense_capture", False):
        return True
    known = (
        original is not None
        and list(inspect.signature(original).parameters) == _KNOWN_PARAMETERS
        and LogprobsTensors._fields[:3] == _KNOWN_FIELDS
    )
    if not known:
        warnings.warn(
            "this vLLM keeps its prompt log-probabilities elsewhere; scoring takes the slower public form",
            stacklevel=2,
        )
        return False

    def keep_tensors(self, prompt_logprobs_tensors):
        """Called once a request, after its last chunk of prefill, with [n-1, K+1] tensors."""
        if not _CAPTURE.active:
            return original(self, prompt_logprobs_tensors)
        ids, logprobs, *_ = prompt_logprobs_tensors
        self.prompt_logprobs = (ids.numpy(), logprobs.numpy())
        return None

    keep_tensors.is_dense_capture = True
    LogprobsProcessor._update_prompt_logprobs = keep_tensors
    return True


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
