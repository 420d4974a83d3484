"""Choose each arm's learning rate and its weight of the causal LM loss, on the validation text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from pipelines.experiment.arms import WEIGHTS, Arm, Run
from pipelines.experiment.results import Choice
from pipelines.experiment.runs import Laboratory
from pipelines.experiment.texts import VALIDATION

#: Rates that every arm tries.
FIRST = 3


def choose(
    laboratory: Laboratory, compared: Sequence[Arm], rates: Sequence[float], weights: Sequence[float] = WEIGHTS
) -> list[Choice]:
    """Run seed 0 of each arm at the middle rates, at further ones while the best lies at the edge, then the weights.

    Each arm chooses in a thread of its own, so that none waits for the rates of another.

    Args:
        rates: the whole grid, ascending.
        weights: of the causal LM loss; rates are tried at the first.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    threads = ThreadPoolExecutor(len(compared))
    choices = [threads.submit(_choice, laboratory, arm, rates, weights) for arm in compared]
    try:
        for choice in as_completed(choices):
            choice.result()
    finally:
        threads.shutdown(wait=False)  # after an error the laboratory closes, and so the other arms end
    return [choice.result() for choice in choices]


def _choice(laboratory: Laboratory, arm: Arm, rates: Sequence[float], weights: Sequence[float]) -> Choice:
    def measured(runs: Sequence[Run]) -> list[float]:
        laboratory.run(runs)
        return laboratory.means(arm.setting, VALIDATION, [laboratory.export(run) for run in runs])

    by_rate = try_rates(rates, lambda some: measured([Run(arm, rate, 0, weights[0]) for rate in some]))
    best, by_weight = min(by_rate, key=by_rate.__getitem__), {}
    if arm.has_sources:
        others = measured([Run(arm, best, 0, weight) for weight in weights[1:]])
        by_weight = dict(zip(weights, [by_rate[best], *others], strict=True))
    return Choice(arm.name, dict(sorted(by_rate.items())), dict(sorted(by_weight.items())))


def try_rates(rates: Sequence[float], measured: Callable[[Sequence[float]], Sequence[float]]) -> dict[float, float]:
    """Rates of a grid and their validation bits per byte; the best is inside them, or at an end of the grid.

    Args:
        rates: the whole grid, ascending.
        measured: some rates to their validation bits per byte.
    """
    tried: dict[float, float] = {}
    wanted = middle(rates)
    while wanted:
        tried |= zip(wanted, measured(wanted), strict=True)
        wanted = _beyond(tried, rates)
    return tried


def middle(rates: Sequence[float]) -> list[float]:
    """The rates that every arm tries."""
    first = max(0, (len(rates) - FIRST) // 2)
    return list(rates[first : first + FIRST])


def _beyond(tried: Mapping[float, float], rates: Sequence[float]) -> list[float]:
    """The next rate where the best one lies at the edge of those tried; none where it lies inside."""
    best = rates.index(min(tried, key=tried.__getitem__))
    return [rates[place] for place in (best - 1, best + 1) if 0 <= place < len(rates) and rates[place] not in tried]
