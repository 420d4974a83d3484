"""All that alters vLLM and the libraries under it, each change guarded and undone where it can be."""

from __future__ import annotations

import ctypes
import fcntl
import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Parameters of the C library's ``mallopt``: most blocks that are mapped by themselves; free memory to give back from.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1

#: What the engine's tensors were when this capture was written.
_KNOWN_FIELDS = ("logprob_token_ids", "logprobs", "selected_token_ranks")
_KNOWN_PARAMETERS = ["self", "prompt_logprobs_tensors"]


def keep_freed_memory() -> None:
    """Have the C library hold on to what one step of the engine has freed, for the next one.

    Logits and activations come and go many times in a step. By itself the library gives such memory back and takes it
    again, page by page, which costs small models up to a sixth of their time. It is the process' only model, so that
    it will need as much again.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # GNU's library has it
    if adjust is not None:
        adjust(_M_MMAP_MAX, 0)
        adjust(_M_TRIM_THRESHOLD, -1)


def hide_native_attributes() -> None:
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
def scratch_folder() -> Iterator[None]:
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
def groups_of_one(device: str) -> Iterator[None]:
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
def start_in_turn(device: str) -> Iterator[None]:
    """One engine of a node after the other: two that start on one GPU take each other's memory for their own."""
    if device == "cpu":
        yield
        return
    with open(os.path.join("/tmp", "knowledge-fusion-engine-start.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Capture:
    """Whether the replaced method keeps tensors now: two engines of one process may want different forms."""

    active = False


CAPTURE = _Capture()


def install_dense_capture() -> bool:
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
        if not CAPTURE.active:
            return original(self, prompt_logprobs_tensors)
        ids, logprobs, *_ = prompt_logprobs_tensors
        self.prompt_logprobs = (ids.numpy(), logprobs.numpy())
        return None

    keep_tensors.is_dense_capture = True
    LogprobsProcessor._update_prompt_logprobs = keep_tensors
    return True
