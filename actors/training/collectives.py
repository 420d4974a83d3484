"""Numbers of a step that all training workers must know, few collectives for many: in each, everyone waits for all."""

from __future__ import annotations

import torch
import torch.distributed as dist


def of_all_workers(mine: torch.Tensor) -> torch.Tensor:
    """This worker's row [n] to the rows of all, [W,n], on each of them in the order of their ranks."""
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return torch.stack(every)


def longest(seconds: float, device: torch.device) -> float:
    """The longest of all workers' times, the same on all of them, who must agree when the time is up."""
    return float(of_all_workers(torch.tensor([seconds], dtype=torch.float64, device=device)).max())
