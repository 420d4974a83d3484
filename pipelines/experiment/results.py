"""The experiment's findings: plain data between the runs and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

from pipelines.experiment.bootstrap import Interval, Scores, mean_bits_per_byte, paired_difference


@dataclass(frozen=True)
class Choice:
    """The choice of an arm's learning rate and weight of the causal LM loss.

    Attributes:
        arm: its name.
        tried: learning rate and weight to mean validation bits per byte, of seed 0.
    """

    arm: str
    tried: Mapping[tuple[float, float], float]

    @property
    def rate(self) -> float:
        """The rate of the lowest bits per byte."""
        return self._best[0]

    @property
    def weight(self) -> float:
        """The weight of the lowest bits per byte."""
        return self._best[1]

    @property
    def by_rate(self) -> dict[float, float]:
        """Learning rate to bits per byte, at the chosen weight."""
        return {rate: bits for (rate, weight), bits in self.tried.items() if weight == self.weight}

    @property
    def by_weight(self) -> dict[float, float]:
        """Weight to bits per byte, at the chosen rate."""
        return {weight: bits for (rate, weight), bits in self.tried.items() if rate == self.rate}

    @property
    def _best(self) -> tuple[float, float]:
        return min(self.tried, key=self.tried.__getitem__)


@dataclass(frozen=True)
class Row:
    """One line of a table: a model or arm on the held-out text.

    Attributes:
        name: of the model or arm.
        scores: one item for each seed, in order.
        rate: peak learning rate; NaN for a model that was not trained here.
        weight: of the causal LM loss; NaN where there is no source.
        seconds: mean wall time of a run; NaN for a model that was not made by a run.
        overrides: of the first seed's run, as ``python -m engine run`` takes them.
        tasks: figures of tasks by name, one item for each seed; empty where there are no tasks.
    """

    name: str
    scores: Sequence[Scores]
    rate: float = nan
    weight: float = nan
    seconds: float = nan
    overrides: tuple[str, ...] = ()
    tasks: Sequence[Mapping[str, float]] = ()

    @property
    def means(self) -> list[float]:
        """Mean bits per byte over domains, one value for each seed."""
        return [mean_bits_per_byte(scores) for scores in self.scores]

    @property
    def mean(self) -> float:
        """Mean over seeds of ``means``."""
        return sum(self.means) / len(self.means)

    def domain_mean(self, domain: str) -> float:
        """Bits per byte of one domain, mean over seeds."""
        return sum(mean_bits_per_byte({domain: scores[domain]}) for scores in self.scores) / len(self.scores)

    def less(self, other: Row, domain: str = "") -> Interval:
        """This row's bits per byte minus another's, over their common seeds; below zero this row is better.

        Args:
            domain: compared alone; empty: the mean over domains.
        """
        seeds = min(len(self.scores), len(other.scores))
        ours, theirs = (
            [{domain: scores[domain]} if domain else scores for scores in row.scores[:seeds]] for row in (self, other)
        )
        return paired_difference(ours, theirs)


@dataclass(frozen=True)
class Findings:
    """The findings of one setting.

    Attributes:
        setting: one of ``arms.SETTINGS``.
        choices: of learning rates and weights.
        rows: compared.
        ablations: of fusion.
        planned: fusion rule to nats per byte before any training, by a plan; empty where rules are not compared.
        machine: what they were found on: versions and cores, in words.
        minutes: of the start that finished them; what earlier starts had finished was not repeated.
    """

    setting: str
    choices: Sequence[Choice]
    rows: Sequence[Row]
    ablations: Sequence[Row] = field(default_factory=tuple)
    planned: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    minutes: float = nan

    def row(self, name: str) -> Row:
        """The compared row of that name."""
        return next(row for row in self.rows if row.name == name)
