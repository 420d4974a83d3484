"""All that alters vLLM and the libraries under it, one function each: what it changes, why, and its guard."""

from __future__ import annotations

import ctypes
import fcntl
import inspect
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Numbers of the C library's ``mallopt``: most blocks that are mapped by themselves; free memory to give back from.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1

#: The engine's tensors and the method's parameters for which ``keep_tensors`` was written.
_KNOWN_FIELDS = ("logprob_token_ids", "logprobs", "selected_token_ranks")
_KNOWN_PARAMETERS = ["self", "prompt_logprobs_tensors"]


def keep_freed_memory() -> None:
    """Make the C library keep the memory that a step of the engine frees, for the next step.

    Why: logits and activations come and go many times in a step, and each time the library returns the pages to the
    kernel and takes them again. The process holds one model alone, so the next step needs the memory again.
    Guard: only GNU's library has ``mallopt``; elsewhere nothing changes.
    """
    # Measured: 15 to 17 % less CPU time for two of the quickstart's sources, 1 % for the third.
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(_M_MMAP_MAX, 0)
        adjust(_M_TRIM_THRESHOLD, -1)


def hide_private_names_of_llvmlite() -> None:
    """Make llvmlite's library handle refuse private names, so that vLLM can start after numba has been imported.

    Why: on a CPU vLLM searches every object of every module that has a ``__dict__`` for kernels. The handle claims to
    have every name, ``__dict__`` among them, and what it returns is no dictionary: vLLM fails. Ray reuses processes, so
    an actor's process may have imported numba before.
    Guard: only a handle that is there and not yet altered; without llvmlite nothing changes.
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
def temporary_files_removed() -> Iterator[None]:
    """Point Python's temporary folder to one that goes when the engine is built.

    Why: vLLM leaves the meeting point of its process group in the temporary folder, and an actor is killed, so nothing
    can remove it later. The group has one member, which needs the file no longer.
    Guard: the folder is set back in any case.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextmanager
def one_start_at_a_time(gpu_share: float) -> Iterator[None]:
    """Let the engines that share a GPU start one after the other.

    Why: an engine measures the free memory before and after it loads its weights. Two that start together on one GPU
    count each other's memory as their own.
    Guard: the kernel frees the lock when its holder dies; with a whole GPU, or none, nothing is locked.
    """
    if not 0.0 < gpu_share < 1.0:
        yield
        return
    gpu = re.sub(r"\W", "-", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    place = os.path.join(tempfile.gettempdir(), f"knowledge-fusion-engine-{os.getuid()}-gpu-{gpu}.lock")
    with open(place, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Capture:
    """Whether ``keep_tensors`` keeps tensors at present; vLLM makes its own objects otherwise."""

    active = False


@contextmanager
def captured_tensors(wanted: bool) -> Iterator[None]:
    """Make the engine return tensors as long as this lasts, if they are wanted and ``keep_tensors`` is in place."""
    _Capture.active = wanted
    try:
        yield
    finally:
        _Capture.active = False


def keep_tensors() -> bool:
    """Replace vLLM's method that makes a Python object of each log-probability by one that keeps the tensors.

    Why: the objects cost more than the model. Against vLLM's public form this measured 1.3 times as fast with a
    vocabulary of 32k and K=10, 12.7 times as fast with one of 2k and K=128.
    Guard: the method is private, so its parameters and the engine's tensors must be those that are known here.

    Returns:
        Whether it is replaced. If not, there is a warning, and the slower public form has to do.
    """
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsTensors

    original = getattr(LogprobsProcessor, "_update_prompt_logprobs", None)
    if getattr(original, "keeps_tensors", False):
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

    def update_with_tensors(self, prompt_logprobs_tensors):
        """Called once a request, after its last chunk of prefill, with [n-1, K+1] tensors."""
        if not _Capture.active:
            return original(self, prompt_logprobs_tensors)
        ids, logprobs, *_ = prompt_logprobs_tensors
        self.prompt_logprobs = (ids.numpy(), logprobs.numpy())
        return None

    update_with_tensors.keeps_tensors = True
    LogprobsProcessor._update_prompt_logprobs = update_with_tensors
    return True
