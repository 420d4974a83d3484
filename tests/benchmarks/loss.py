"""Memory and time of the training objective, forward and backward, from hidden states and an lm_head.

    python -m tests.benchmarks.loss

Figures, for two sizes of vocabulary, two K and two types: ``loss_memory_vs_plain`` and ``loss_time_vs_plain``, the LM
loss and the fusion loss together against transformers' causal LM loss alone; ``loss_memory_vs_dense``, against the LM
loss and the fusion loss the authors' way. Memory is the peak beyond the inputs, the gradients included: of the whole
process, a new one for every measurement, or PyTorch's own count on a GPU. Time on the CPU is that of one core.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import cross_entropy, linear
from transformers.loss.loss_utils import ForCausalLMLoss

from engine.method.losses import Targets, objective
from tests.benchmarks.figures import say

ROWS, HIDDEN_SIZE, TOP_K, LM_LOSS_WEIGHT = 2048, 512, (10, 128), 0.9
SOURCES = 3
ROUNDS = 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """All figures."""
    for dtype in (torch.float32, torch.bfloat16):
        for vocabulary in (32_000, 128_000):
            figures(vocabulary, dtype)


def figures(vocabulary: int, dtype: torch.dtype) -> None:
    """The three figures for every K."""
    ways = [plain, *(partial(ours, top_k=top_k) for top_k in TOP_K)]
    seconds = in_new_process(seconds_of, ways, vocabulary, dtype)
    peaks = [in_new_process(peak_of, way, vocabulary, dtype) / 2**20 for way in [*ways, dense]]
    on = {"device": DEVICE, "rows": ROWS, "hidden_size": HIDDEN_SIZE, "vocabulary": vocabulary}
    on["dtype"] = str(dtype).removeprefix("torch.")
    plainly, densely = "transformers' causal LM loss", "dense targets of three models, as the authors' code"
    for place, top_k in enumerate(TOP_K, start=1):
        on["top_k"] = top_k
        memory = (peaks[place], "MiB at most beyond the inputs")
        say("loss_memory_vs_plain", *memory, plainly, peaks[0] / peaks[place], **on)
        say("loss_time_vs_plain", seconds[place], "s, forward and backward", plainly, seconds[0] / seconds[place], **on)
        say("loss_memory_vs_dense", *memory, densely, peaks[-1] / peaks[place], **on)


class Work:
    """Random inputs: every row has a label and the most of ``TOP_K`` entries of every source."""

    def __init__(self, rows: int, vocabulary: int, dtype: torch.dtype, hidden_size: int = HIDDEN_SIZE):
        torch.manual_seed(0)
        self.hidden = torch.randn(rows, hidden_size, device=DEVICE).to(dtype).requires_grad_()
        self.lm_head = torch.empty(vocabulary, hidden_size, dtype=dtype, device=DEVICE).normal_(0.0, 0.1)
        self.lm_head.requires_grad_()
        self.labels = torch.randint(vocabulary, (rows,), device=DEVICE)
        # Entries all over the vocabulary, no one twice in a row, and nothing larger than what they need.
        first = torch.randint(vocabulary, (SOURCES, rows, 1), device=DEVICE)
        self.ids = (first + torch.arange(max(TOP_K), device=DEVICE) * (vocabulary // max(TOP_K))) % vocabulary
        self.logits = torch.randn(SOURCES, rows, max(TOP_K), device=DEVICE)
        self.rewards = torch.rand(SOURCES, device=DEVICE)
        self.every_row = torch.ones(rows, dtype=torch.bool, device=DEVICE)


def ours(work: Work, top_k: int) -> torch.Tensor:
    """LM loss and fusion loss, chunked."""
    probs = work.logits[0, :, :top_k].softmax(-1) * 0.9
    every = work.every_row.float()
    targets = Targets(work.labels, work.ids[0, :, :top_k], probs, work.every_row, every, every)
    rows = len(work.labels)
    scales = (LM_LOSS_WEIGHT / rows, (1.0 - LM_LOSS_WEIGHT) / rows)
    return objective(work.hidden, work.lm_head, None, targets, *scales)[0]


def plain(work: Work) -> torch.Tensor:
    """LM loss alone, as transformers' models have it."""
    return lm_loss(linear(work.hidden, work.lm_head), work)


def lm_loss(logits: torch.Tensor, work: Work) -> torch.Tensor:
    return ForCausalLMLoss(logits, labels=None, vocab_size=len(work.lm_head), shift_labels=work.labels)


def dense(work: Work) -> torch.Tensor:
    """LM loss and fusion loss from dense bfloat16 targets: softmax over K, scattered over V, MinCE by ``gather``.

    With the fewest entries; where everything is as wide as V, that makes no difference.
    """
    logits = linear(work.hidden, work.lm_head)
    every = []
    for ids, kept in zip(work.ids, work.logits, strict=True):
        wide = torch.zeros(logits.shape, dtype=torch.bfloat16, device=DEVICE)
        every.append(wide.scatter_(-1, ids[:, : min(TOP_K)], kept[:, : min(TOP_K)].bfloat16().softmax(-1)))
    best = work.rewards.argmax().expand(*logits.shape, 1).contiguous()
    target = torch.stack(every, dim=-1).gather(-1, best).squeeze(-1)
    fusion = cross_entropy(logits.float(), target.float(), reduction="none").mean()
    return LM_LOSS_WEIGHT * lm_loss(logits, work) + (1.0 - LM_LOSS_WEIGHT) * fusion


def in_new_process(measure: Callable, *arguments):
    """What ``measure`` returns in a process that has done nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def forward_and_backward(way: Callable[..., torch.Tensor], work: Work) -> None:
    """One step; leaves no gradients."""
    way(work).backward()
    work.hidden.grad = work.lm_head.grad = None


def seconds_of(ways: list[Callable], vocabulary: int, dtype: torch.dtype) -> list[float]:
    """The best of some rounds for each way, in turns; CPU seconds on the CPU."""
    torch.set_num_threads(1)
    work, best = Work(ROWS, vocabulary, dtype), [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for place, way in enumerate(ways):
            started = now()
            forward_and_backward(way, work)
            best[place] = min(best[place], now() - started)
    return best


def now() -> float:
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_of(way: Callable, vocabulary: int, dtype: torch.dtype) -> int:
    """Most bytes at once beyond the inputs."""
    torch.set_num_threads(1)
    forward_and_backward(way, Work(16, 256, dtype))  # loads and allocates what a first call does
    work = Work(ROWS, vocabulary, dtype)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_and_backward(way, work)
        return torch.cuda.max_memory_allocated() - before
    before = peak_resident_bytes()
    forward_and_backward(way, work)
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """The most memory this process has had at once. Linux only."""
    with open("/proc/self/status", encoding="utf8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
