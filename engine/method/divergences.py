"""How far the target model is from a fused distribution: three divergences and their gradients by hand.

Each is computed over K + 1 buckets b: the K kept ids, and one for all other ids together, the rest. q_b is the fused
distribution's mass in a bucket, p_b the target model's; p's rest is a sum of its own, never 1 - sum p.

    forward_kl      sum_b q_b log(q_b / p_b)                             asks for all that the sources find likely
    reverse_kl      sum_b p_b log(p_b / max(q_b, FLOOR))                 punishes tokens they find unlikely
    jensen_shannon  1/2 sum_b (q_b log(q_b / m_b) + p_b log(p_b / m_b))  between the two; at most log 2

with m_b = (p_b + q_b) / 2 and 0 log 0 = 0. Let s_b be the slope, the derivative by a number that is added to the logits
of all ids of the bucket, and Q = sum_b q_b, 1 but for rounding:

    forward_kl      s_b = Q p_b - q_b
    reverse_kl      s_b = p_b (log(p_b / max(q_b, FLOOR)) - sum_c p_c log(p_c / max(q_c, FLOOR)))
    jensen_shannon  s_b = 1/2 p_b (log(p_b / m_b) - sum_c p_c log(p_c / m_c))

All from s_b = p_b (g_b - sum_c p_c g_c), where g_b = d value / d p_b. An id in a bucket gets that share of the slope
which it has of the bucket's mass.

Reverse KL is infinite where q_b = 0 < p_b, and fused rows are full of zeros: entries that float16 could not hold, rows
without rest mass. FLOOR stands in for them, so that such a bucket costs at most log(1 / FLOOR), 16.6 nats. It is not
taken from the other buckets: the value may be below 0 by (K + 1) FLOOR.
"""

from __future__ import annotations

import torch

from engine.spec import Divergence

#: Least fused probability under reverse KL: the smallest that float16, the type of the stream, can hold, 6.0e-8.
FLOOR = 2.0**-24


def divergence(
    kind: Divergence, q: torch.Tensor, p: torch.Tensor, log_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence of every row and its slopes by the buckets.

    A bucket of which both q and p are 0 adds nothing, and a row of such buckets gives 0 and slopes of 0.

    Args:
        kind: which of the three.
        q: float64 [R,B], in [0, 1], the fused distribution.
        p: [R,B], in [0, 1], the target model's.
        log_p: [R,B], its logarithm, finite; of any finite value where p is 0.

    Returns:
        float64 [R] in nats, and float64 [R,B]: see the module's docstring.
    """
    if kind == "reverse_kl":
        return _reverse_kl(q, p, log_p)
    return _jensen_shannon(q, p, log_p) if kind == "jensen_shannon" else _forward_kl(q, p, log_p)


def _forward_kl(q: torch.Tensor, p: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.xlogy(q, q) - q * log_p).sum(-1), q.sum(-1, keepdim=True) * p - q


def _reverse_kl(q: torch.Tensor, p: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    surplus = log_p - q.clamp(min=FLOOR).log()
    value = (p * surplus).sum(-1, keepdim=True)
    return value.squeeze(-1), p * (surplus - value)


def _jensen_shannon(q: torch.Tensor, p: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Where neither has any mass, the logarithm only has to be finite.
    log_m = ((p + q) / 2).clamp(min=torch.finfo(p.dtype).tiny).log()
    surplus = log_p - log_m
    of_p = (p * surplus).sum(-1, keepdim=True)
    of_q = (torch.xlogy(q, q) - q * log_m).sum(-1)
    return 0.5 * (of_q + of_p.squeeze(-1)), 0.5 * p * (surplus - of_p)
