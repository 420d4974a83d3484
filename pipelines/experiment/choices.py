"""Choose each arm's learning rate and its weight of the causal LM loss, on the validation text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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

    Args:
        rates: the whole grid, ascending.
        weights: of the causal LM loss; rates are tried at the first.
    """

    def measured(runs: Sequence[Run]) -> dict[Run, float]:
        laboratory.run(runs)
        found: dict[Run, float] = {}
        for setting in dict.fromkeys(run.arm.setting for run in runs):
            own = [run for run in runs if run.arm.setting == setting]
            means = laboratory.means(setting, VALIDATION, [laboratory.export(run) for run in own])
            found |= zip(own, means, strict=True)
        return found

    tried = choose_rates(compared, rates, measured, weights[0])
    chosen = {arm: min(found, key=found.__getitem__) for arm, found in tried.items()}
    runs = [Run(arm, chosen[arm], 0, weight) for arm in compared if arm.has_sources for weight in weights[1:]]
    weighed = measured(runs)
    choices = []
    for arm in compared:
        by_weight = {run.weight: bits for run, bits in weighed.items() if run.arm is arm}
        if arm.has_sources:
            by_weight[weights[0]] = tried[arm][chosen[arm]]
        choices.append(Choice(arm.name, dict(sorted(tried[arm].items())), dict(sorted(by_weight.items()))))
    return choices


def choose_rates(
    compared: Sequence[Arm],
    rates: Sequence[float],
    measured: Callable[[Sequence[Run]], Mapping[Run, float]],
    weight: float = WEIGHTS[0],
) -> dict[Arm, dict[float, float]]:
    """Each arm's rates and their validation bits per byte; the best is inside them, or at an end of ``rates``.

    Args:
        measured: runs to their validation bits per byte.
    """
    tried: dict[Arm, dict[float, float]] = {arm: {} for arm in compared}
    wanted = {arm: middle(rates) for arm in compared}
    while any(wanted.values()):
        found = measured([Run(arm, rate, 0, weight) for arm, further in wanted.items() for rate in further])
        for run, bits in found.items():
            tried[run.arm][run.rate] = bits
        wanted = {arm: _beyond(tried[arm], rates) for arm in compared}
    return tried


def middle(rates: Sequence[float]) -> list[float]:
    """The rates that every arm tries."""
    first = max(0, (len(rates) - FIRST) // 2)
    return list(rates[first : first + FIRST])


def _beyond(tried: Mapping[float, float], rates: Sequence[float]) -> list[float]:
    """The next rate where the best one lies at the edge of those tried; none where it lies inside."""
    best = rates.index(min(tried, key=tried.__getitem__))
    return [rates[place] for place in (best - 1, best + 1) if 0 <= place < len(rates) and rates[place] not in tried]
