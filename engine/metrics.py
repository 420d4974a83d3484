"""The numbers of a run for those who record them: what they are called, what they mean, and their way to Prometheus.

Ray serves what is measured here at every node's metrics address, which its dashboard's Prometheus reads. Names begin
with ``ray_knowledge_fusion_`` there; labels are the run's name and at most one more: a part of the loss, a source
model, a held-out domain or a stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram

from engine.result import Progress, StageTotals, StepRecord
from engine.spec import FusionSpec
from engine.summary import ratio

PREFIX = "knowledge_fusion_"

#: Seconds, doubling from a hundredth to about an hour.
SECONDS = [0.01 * 2**power for power in range(19)]


@dataclass(frozen=True)
class Family:
    """Numbers of one kind: what they mean, with their unit, and what tells them apart, if there are several."""

    meaning: str
    label: str = ""


#: What is measured in every step.
STEP_FAMILIES = {
    "loss": Family("Loss of the last step: the objective and its unweighted parts, nats per row", "part"),
    "gradient_norm": Family("Global norm of the gradient before clipping"),
    "learning_rate": Family("Learning rate of the last step"),
    "tokens_per_second": Family("Target tokens learned per second in the last step, waiting included"),
    "step_seconds": Family("Wall time of a step, waiting included, seconds"),
    "exposed_wait_seconds": Family("Time of a step that training waited for data, seconds"),
    "packing_utilisation": Family("Share of the training blocks' places that hold a token to learn, 0 to 1"),
    "fused_share": Family("Share of the target rows with a fused distribution, 0 to 1"),
    "source_nats_per_byte": Family("Cross-entropy of a source model on the passages of the last step", "source"),
    "source_win_rate": Family("Share of the last step's passages that a source model won, 0 to 1", "source"),
    "source_coverage": Family("Share of target rows with a row of the source model, 0 to 1", "source"),
    "held_out_bits_per_byte": Family("Held-out bits per byte of the target model during training", "domain"),
}

#: What each stage of the stream counts: the field of ``StageTotals`` and its meaning.
STAGE_COUNTERS = {
    "passages": "Passages that a stage has done",
    "tokens": "Tokens that a stage has done, its own",
    "busy_seconds": "Time that a stage's replicas have worked, seconds",
    "wait_seconds": "Time that a stage's replicas have waited, seconds",
}


class Measurement(NamedTuple):
    """A number of a step: a key of ``STEP_FAMILIES``, the value of its label if it has one, and the number itself."""

    family: str
    label: str
    value: float


def measurements(spec: FusionSpec, record: StepRecord) -> Iterator[Measurement]:
    """All numbers of a step, without those that are not there."""
    return (found for found in _all_measurements(spec, record) if math.isfinite(found.value))


def _all_measurements(spec: FusionSpec, record: StepRecord) -> Iterator[Measurement]:
    rows = record.tokens - record.passages
    yield Measurement("loss", "objective", record.loss)
    yield Measurement("loss", "causal_lm", record.lm_loss)
    yield Measurement("loss", "fusion", record.fusion_loss)
    yield Measurement("gradient_norm", "", record.grad_norm)
    yield Measurement("learning_rate", "", record.learning_rate)
    yield Measurement("tokens_per_second", "", ratio(record.tokens, record.seconds))
    yield Measurement("step_seconds", "", record.seconds)
    yield Measurement("exposed_wait_seconds", "", record.wait_seconds)
    yield Measurement("packing_utilisation", "", 1.0 - record.padding)
    yield Measurement("fused_share", "", ratio(record.fused_rows, rows))
    for index, source in enumerate(spec.source_models):
        nats_per_byte = ratio(record.source_nats[index], record.source_bytes[index])
        yield Measurement("source_nats_per_byte", source.name, nats_per_byte)
        if spec.fusion.rule == "min_ce":
            yield Measurement("source_win_rate", source.name, ratio(record.source_wins[index], record.passages))
        yield Measurement("source_coverage", source.name, ratio(record.source_covered_rows[index], rows))
    for domain, bits_per_byte in record.held_out.items():
        yield Measurement("held_out_bits_per_byte", domain, bits_per_byte)


class RayMetrics:
    """An observer that hands the run's numbers to Ray: gauges of the last step, counters, histograms of its times.

    Counters begin at 0 in every start of a run, as Prometheus expects of them.
    """

    def __init__(self, spec: FusionSpec):
        self._spec = spec
        self._run = {"run": spec.run.name}
        self._gauges = {
            name: Gauge(PREFIX + name, family.meaning, tag_keys=_tag_keys(family.label))
            for name, family in STEP_FAMILIES.items()
            if name not in ("step_seconds", "exposed_wait_seconds")
        }
        self._times = {
            name: Histogram(PREFIX + name, STEP_FAMILIES[name].meaning, SECONDS, _tag_keys(""))
            for name in ("step_seconds", "exposed_wait_seconds")
        }
        self._steps = Counter(PREFIX + "steps", "Optimizer steps", _tag_keys(""))
        self._learned = {
            name: Counter(PREFIX + f"learned_{name}", f"Target {name} learned", _tag_keys(""))
            for name in ("tokens", "passages", "bytes")
        }
        self._stages = {
            name: Counter(PREFIX + f"stage_{name}", meaning, _tag_keys("stage"))
            for name, meaning in STAGE_COUNTERS.items()
        }
        self._replicas = Gauge(PREFIX + "stage_replicas", "Replicas of a stage", _tag_keys("stage"))
        self._seen: dict[str, StageTotals] = {}

    def see(self, picture: Progress, now: float) -> None:
        """Hand over what is new in the picture."""
        for record in picture.steps:
            self._add_step(record)
        for stage in picture.stages:
            self._add_stage(stage)

    def close(self) -> None:
        """Nothing is held back."""

    def _add_step(self, record: StepRecord) -> None:
        for family, label, value in measurements(self._spec, record):
            if family in self._times:
                self._times[family].observe(value, self._run)
            else:
                key = STEP_FAMILIES[family].label
                self._gauges[family].set(value, self._run | ({key: label} if key else {}))
        self._steps.inc(1, self._run)
        for name, counter in self._learned.items():
            _grow(counter, getattr(record, name), self._run)

    def _add_stage(self, stage: StageTotals) -> None:
        tags = self._run | {"stage": stage.name}
        before = self._seen.get(stage.name, StageTotals(stage.name))
        for name, counter in self._stages.items():
            _grow(counter, getattr(stage, name) - getattr(before, name), tags)
        self._replicas.set(stage.replicas, tags)
        self._seen[stage.name] = stage


def _tag_keys(label: str) -> tuple[str, ...]:
    return ("run", label) if label else ("run",)


def _grow(counter: Counter, value: float, tags: dict[str, str]) -> None:
    """Ray's counters refuse to grow by nothing."""
    if value > 0:
        counter.inc(value, tags)
