"""Exchange of numbers between the training workers: in each collective, every worker waits for all others."""

from __future__ import annotations

import torch
import torch.distributed as dist


def of_all_workers(mine: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all workers: this worker's [n] becomes [W,n], in the order of ranks, on every worker."""
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return torch.stack(every)


def longest(seconds: float, device: torch.device) -> float:
    """The longest of all workers' times: the same on every worker, so that all stop at the same step."""
    return float(of_all_workers(torch.tensor([seconds], dtype=torch.float64, device=device)).max())
