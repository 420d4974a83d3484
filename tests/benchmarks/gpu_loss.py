"""Memory and time of the training objective on a GPU, for the benchmark ``gpu``.

``gpu_loss_memory`` and ``gpu_loss_time``: LM loss and fusion loss together against transformers' causal LM loss alone,
and where Liger's package is installed against its fused linear cross-entropy (LM loss alone) and its fused linear
distillation (both losses, from a teacher's hidden states and lm_head); all from hidden states and an lm_head, forward
and backward. ``gpu_loss_kernels``: the kernels of ``engine.method.loss_kernels`` against the same by operations of
PyTorch, in chunks of the same size and of a CPU's size.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch

from engine.method import losses
from tests.benchmarks import loss
from tests.benchmarks.figures import say
from tests.benchmarks.gpu_shapes import card, seconds_in_turns

TOP_K, ROUNDS = (10, 64, 128), 7


def figures(device: str, tiny: bool) -> None:
    """The figures for a 1B model's hidden size and both sizes of vocabulary."""
    rows, hidden_size, vocabularies = (256, 64, (3_000,)) if tiny else (8192, 2048, (32_000, 128_000))
    for vocabulary in vocabularies:
        with patch.object(loss, "DEVICE", device):
            work = loss.Work(rows, vocabulary, torch.bfloat16, hidden_size)
        on = {"card": card(device), "rows": rows, "hidden_size": hidden_size, "vocabulary": vocabulary}
        on["dtype"] = "bfloat16"
        against_others(work, device, on)
        kernels(work, device, on)


def against_others(work: loss.Work, device: str, on: dict) -> None:
    """Ours for each K, against each of the others."""
    others: dict[str, Callable] = {"transformers' causal LM loss": loss.plain, **liger_losses(work, device)}
    ours = [partial(loss.ours, top_k=top_k) for top_k in TOP_K]
    ways = [partial(loss.forward_and_backward, way, work) for way in [*others.values(), *ours]]
    seconds = seconds_in_turns(ways, device, ROUNDS)
    # A CPU's memory is the figure of tests.benchmarks.loss, which has a process for each measurement.
    peaks = [peak_bytes(way) / 2**20 for way in ways] if device == "cuda" else []
    for place, top_k in enumerate(TOP_K, start=len(others)):
        for other, name in enumerate(others):
            if peaks:
                memory = (peaks[place], "MiB at most beyond the inputs")
                say("gpu_loss_memory", *memory, name, peaks[other] / peaks[place], **on, top_k=top_k)
            time = (1e3 * seconds[place], "ms, forward and backward")
            say("gpu_loss_time", *time, name, seconds[other] / seconds[place], **on, top_k=top_k)


def liger_losses(work: loss.Work, device: str) -> dict[str, Callable]:
    """Liger's losses; none where the package is missing, and on a CPU only the one that needs no kernel."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return {}
    forward_kl = 0.0
    both = LigerFusedLinearJSDLoss(
        loss.LM_LOSS_WEIGHT, 1.0 - loss.LM_LOSS_WEIGHT, forward_kl, compiled=device == "cuda"
    )
    teacher = work.hidden.detach().flip(0), work.lm_head.detach()
    liger = {
        "Liger's fused linear distillation, LM loss and KL from a dense teacher": lambda work: both(
            work.hidden, work.lm_head, *teacher, work.labels
        )
    }
    if device == "cuda":
        fused = LigerFusedLinearCrossEntropyLoss()
        liger["Liger's fused linear cross-entropy, LM loss alone"] = lambda work: fused(
            work.lm_head, work.hidden, work.labels
        )
    return liger


def kernels(work: loss.Work, device: str, on: dict) -> None:
    """The kernels against PyTorch's operations, by size of a chunk."""
    way = partial(loss.forward_and_backward, partial(loss.ours, top_k=64), work)
    sizes = [2**24, 2**26, 2**27, 2**28] if device == "cuda" else [2**20]
    ways = [chunks_of(way, device, size) for size in sizes]
    ways.append(chunks_of(way, device, sizes[-1], kernels=False))
    seconds = seconds_in_turns(ways, device, ROUNDS)
    for size, taken in zip(sizes, seconds, strict=False):
        say(
            "gpu_loss_kernels",
            1e3 * taken,
            "ms, forward and backward",
            "operations of PyTorch, in chunks of the largest size",
            seconds[-1] / taken,
            **on,
            chunk_logits=size,
        )


def chunks_of(way: Callable[[], None], device: str, size: int, kernels: bool = True) -> Callable[[], None]:
    """The same work with chunks of this size, by the kernels or by PyTorch's operations."""

    @contextmanager
    def changed():
        plain = patch.object(losses, "_GpuChunks", losses._GpuChunks if kernels else losses._Chunks)
        with patch.dict(losses.CHUNK_LOGITS, {device: size}), plain:
            yield

    def work():
        with changed():
            way()

    return work


def peak_bytes(way: Callable[[], None]) -> int:
    """Most bytes of the GPU at once beyond what is there before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before
