"""Numbers of a step that all training workers must know, few collectives for many: in each, everyone waits for all."""

from __future__ import annotations

import torch
import torch.distributed as dist


def of_all_workers(mine: torch.Tensor) -> torch.Tensor:
    """This worker's row [n] to the rows of all, [W,n], on each of them in the order of their ranks."""
    every = mine.new_empty(dist.get_world_size() * len(mine))  # flat: gloo takes no other shape
    dist.all_gather_into_tensor(every, mine)
    return every.reshape(-1, len(mine))


def longest(seconds: float, device: torch.device) -> float:
    """The longest of all workers' times, the same on all of them, who must agree when the time is up."""
    return float(of_all_workers(torch.tensor([seconds], dtype=torch.float64, device=device)).max())
