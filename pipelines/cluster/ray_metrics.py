"""A run's figures as Ray metrics, for Prometheus and the dashboard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from engine.history.result import Progress, StageTotals, StepRecord
from engine.reporting.measurements import STEP_FAMILIES, measurements
from engine.reporting.rates import FlowRates
from engine.reporting.starvation import replicas_needed
from engine.spec import FusionSpec

PREFIX = "knowledge_fusion_"

#: Seconds, doubling from a hundredth to about an hour.
SECONDS = [0.01 * 2**power for power in range(19)]

#: How long the end of a run waits where its last figure is an alert: Ray exports every 10 seconds, and Prometheus asks
#: every 15 or 30 mostly.
SECONDS_TO_BE_READ = 45.0

#: Counters of each stage of the stream: the field of ``StageTotals`` and its meaning.
STAGE_COUNTERS = {
    "passages": "Passages that a stage has done",
    "tokens": "Tokens that a stage has done, in its own tokenizer",
    "busy_seconds": "Time that a stage's replicas have worked, seconds",
    "wait_seconds": "Time that a stage's replicas have waited, seconds",
}

#: Gauges of the run as a whole.
RUN_GAUGES = {
    "training": "1 while the stream works, 0 when it has ended",
    "last_checkpoint_timestamp_seconds": "When the last checkpoint was complete, before it when the run started; "
    "seconds since 1970",
    "not_finite_steps": "Steps that were not taken, since their loss or gradient was not finite",
    "skipped_rows": "Files and rows of the corpus that were left out",
    "left_out_passages": "Passages that were fused without one of the sources",
}


class RayMetrics:
    """An observer that exports the run's numbers through Ray: gauges of the last step, counters, histograms of times.

    Counters begin at 0 in every start of a run, as Prometheus expects. They only grow: steps that are taken again after
    a restart of the training workers count again. A loss that is not finite ends a run, so the end waits until
    Prometheus can have read of it: on a cluster, and where the local Ray has its dashboard.

    Args:
        spec: of the run.
        say: prints a line.
    """

    product = "the metrics of Ray"

    def __init__(self, spec: FusionSpec, say: Callable[[str], None] = print):
        self._spec = spec
        self._say = say
        self._num_not_finite = 0
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
        meaning = "Target bytes learned of a domain of the corpus"
        self._domain_bytes = Counter(PREFIX + "learned_domain_bytes", meaning, _tag_keys("domain"))
        self._stages = {
            name: Counter(PREFIX + f"stage_{name}", meaning, _tag_keys("stage"))
            for name, meaning in STAGE_COUNTERS.items()
        }
        self._replicas = Gauge(PREFIX + "stage_replicas", "Replicas of a stage", _tag_keys("stage"))
        meaning = "Replicas of a stage that would keep training busy, at the rates of the last half minute"
        self._needed = Gauge(PREFIX + "stage_replicas_needed", meaning, tag_keys=_tag_keys("stage"))
        meaning = "How often a process of a stage was replaced since the run started"
        self._restarts = Gauge(PREFIX + "stage_restarts", meaning, tag_keys=_tag_keys("stage"))
        self._totals = {name: Gauge(PREFIX + name, meaning, tag_keys=("run",)) for name, meaning in RUN_GAUGES.items()}
        self._began = time.time()
        self._rates = FlowRates(spec)
        self._last_step = 0
        self._seen: dict[str, StageTotals] = {}

    def see(self, picture: Progress, now: float) -> None:
        """Export the new numbers of a snapshot."""
        if picture.void_after is not None:
            self._last_step = picture.void_after
        for record in picture.steps:
            self._add_step(record)
            self._last_step = record.step
        for stage in picture.stages:
            self._add_stage(stage)
        committed = picture.checkpoints[-1].time if picture.checkpoints else self._began
        self._totals["training"].set(1, self._run)
        self._totals["last_checkpoint_timestamp_seconds"].set(committed, self._run)
        self._num_not_finite = picture.num_not_finite
        self._totals["not_finite_steps"].set(picture.num_not_finite, self._run)
        self._totals["skipped_rows"].set(picture.num_skipped, self._run)
        self._totals["left_out_passages"].set(picture.num_left_out, self._run)
        self._rates.update(picture, self._last_step, now)
        loads, training = self._rates.loads()
        if training > 0.0:
            for load in loads:
                self._needed.set(replicas_needed(load, training), self._run | {"stage": load.name})

    def close(self) -> None:
        """Export that training has ended: from here on no alert waits for steps or checkpoints."""
        self._totals["training"].set(0, self._run)
        if self._num_not_finite and (self._spec.cluster.dashboard or os.environ.get("RAY_ADDRESS")):
            self._say(f"a loss was not finite: {SECONDS_TO_BE_READ:.0f} s are left for the alert of Prometheus")
            time.sleep(SECONDS_TO_BE_READ)

    def _add_step(self, record: StepRecord) -> None:
        for family, label, value in measurements(self._spec, record):
            if family in self._times:
                self._times[family].observe(value, self._run)
            else:
                names = STEP_FAMILIES[family].label.split("/")
                tags = dict(zip(names, label.split("/"), strict=True)) if label else {}
                self._gauges[family].set(value, self._run | tags)
        self._steps.inc(1, self._run)
        for name, counter in self._learned.items():
            _grow(counter, getattr(record, name), self._run)
        for domain, num_bytes in zip(self._spec.corpus.domain_names, record.domain_bytes, strict=True):
            _grow(self._domain_bytes, num_bytes, self._run | {"domain": domain})

    def _add_stage(self, stage: StageTotals) -> None:
        tags = self._run | {"stage": stage.name}
        before = self._seen.get(stage.name, StageTotals(stage.name))
        for name, counter in self._stages.items():
            _grow(counter, getattr(stage, name) - getattr(before, name), tags)
        self._replicas.set(stage.replicas, tags)
        self._restarts.set(max(0, stage.starts - stage.replicas), tags)
        self._seen[stage.name] = stage


def _tag_keys(label: str) -> tuple[str, ...]:
    return ("run", *label.split("/")) if label else ("run",)


def _grow(counter: Counter, value: float, tags: dict[str, str]) -> None:
    """Add ``value`` to a counter; Ray's counters refuse to grow by 0."""
    if value > 0:
        counter.inc(value, tags)
