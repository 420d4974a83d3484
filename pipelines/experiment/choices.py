"""Choose each arm's learning rate and weight of the causal LM loss, on the validation text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from pipelines.experiment.arms import Arm, Run
from pipelines.experiment.results import Choice
from pipelines.experiment.runs import Laboratory
from pipelines.experiment.texts import VALIDATION

#: Rates that every arm tries.
FIRST = 3


def choose(laboratory: Laboratory, compared: Sequence[Arm], rates: Sequence[float]) -> list[Choice]:
    """Run seed 0 of each arm at places of a grid until the best lies inside those tried (``try_grid``).

    Each arm chooses in a thread of its own, so that none waits for the rates of another.

    Args:
        rates: of the grid, ascending; an arm has its own weights.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    threads = ThreadPoolExecutor(len(compared))
    choices = [threads.submit(_choice, laboratory, arm, rates) for arm in compared]
    try:
        for choice in as_completed(choices):
            choice.result()
    finally:
        threads.shutdown(wait=False)  # after an error the laboratory closes, and so the other arms end
    return [choice.result() for choice in choices]


def _choice(laboratory: Laboratory, arm: Arm, rates: Sequence[float]) -> Choice:
    def measured(places: Sequence[tuple[float, float]]) -> list[float]:
        runs = [Run(arm, rate, 0, weight) for rate, weight in places]
        laboratory.run(runs)
        return laboratory.means(arm.setting, VALIDATION, [laboratory.export(run) for run in runs])

    return Choice(arm.name, try_grid(rates, arm.weights, measured))


def try_grid(
    rates: Sequence[float],
    weights: Sequence[float],
    measured: Callable[[Sequence[tuple[float, float]]], Sequence[float]],
) -> dict[tuple[float, float], float]:
    """Some rates and weights, and their validation bits per byte.

    First the middle rates at the middle weight, then what lies beside the best place: rates, and when none of them is
    left, weights. So the best place lies between worse ones in both directions, or at an end of the grid.

    Args:
        rates: of the grid, ascending.
        weights: of the grid, ascending.
        measured: pairs of a rate and a weight to their validation bits per byte.
    """
    tried: dict[tuple[float, float], float] = {}
    [weight] = middle(weights, 1)
    wanted = [(rate, weight) for rate in middle(rates)]
    while wanted:
        tried |= zip(wanted, measured(wanted), strict=True)
        rate, weight = min(tried, key=tried.__getitem__)
        wanted = [place for other in _beside(rate, rates) if (place := (other, weight)) not in tried]
        wanted = wanted or [place for other in _beside(weight, weights) if (place := (rate, other)) not in tried]
    return tried


def middle(grid: Sequence[float], count: int = FIRST) -> Sequence[float]:
    """``count`` values in the middle of a grid, or all if it has fewer."""
    first = max(0, (len(grid) - count) // 2)
    return grid[first : first + count]


def _beside(value: float, grid: Sequence[float]) -> list[float]:
    """The next lower and the next higher value of a grid, where there are any."""
    place = grid.index(value)
    return [grid[other] for other in (place - 1, place + 1) if 0 <= other < len(grid)]
