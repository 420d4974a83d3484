"""The numbers of one training step as metrics: name, meaning, unit and value; for Ray, TensorBoard and W&B.

Each has at most one label: a part of the loss, a source model, a domain, or a domain and a source model with a slash
between them, which no name has. ``pipelines.cluster.ray_metrics``
serves them to Prometheus, ``engine.reporting.trackers`` writes them to the trackers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.history.result import StepRecord
from engine.history.totals import DomainSums, ratio, source_gain
from engine.spec import FusionSpec


@dataclass(frozen=True)
class Family:
    """A metric: its meaning with its unit, and the name of its label, or of both with a slash, if it has one."""

    meaning: str
    label: str = ""


#: The metrics of every step, by name.
STEP_FAMILIES = {
    "loss": Family("Loss of the last step: the objective and its parts, nats per row", "part"),
    "gradient_norm": Family("Global norm of the gradient before clipping"),
    "learning_rate": Family("Learning rate of the last step"),
    "tokens_per_second": Family("Target tokens learned per second in the last step, waiting included"),
    "step_seconds": Family("Wall time of a step, waiting included, seconds"),
    "exposed_wait_seconds": Family("Time of a step that training waited for data, seconds"),
    "packing_utilisation": Family("Share of the training blocks' places that hold a token to learn, 0 to 1"),
    "fused_share": Family("Share of the target rows with a fused distribution, 0 to 1"),
    "fusion_gain": Family(
        "Nats per row by which the fused distributions beat the target on labels read for the first time"
    ),
    "fusion_weight": Family("Mean weight of the fused rows in the fusion loss, 0 to 1"),
    "source_gain": Family(
        "Nats per byte by which a source model beats the target on a step's text, all of it read for the first time",
        "source",
    ),
    "source_retired": Family("Step after which the run has gone on without a source model", "source"),
    "source_nats_per_byte": Family("Cross-entropy of a source model on the passages of the last step", "source"),
    "source_win_rate": Family("Share of the last step's passages that a source model won, 0 to 1", "source"),
    "source_coverage": Family("Share of target rows with a row of the source model, 0 to 1", "source"),
    "domain_share": Family("Share of the last step's bytes that are of a domain of the corpus, 0 to 1", "domain"),
    "domain_source_nats_per_byte": Family("source_nats_per_byte in one domain of the corpus", "domain/source"),
    "domain_source_gain": Family("source_gain in one domain of the corpus", "domain/source"),
    "domain_source_win_rate": Family("source_win_rate in one domain of the corpus", "domain/source"),
    "domain_source_coverage": Family("source_coverage in one domain of the corpus", "domain/source"),
    "held_out_bits_per_byte": Family("Held-out bits per byte of the target model during training", "domain"),
}


class Measurement(NamedTuple):
    """One number of a step: a key of ``STEP_FAMILIES``, the value of its label ("" without one), and the number."""

    family: str
    label: str
    value: float


def measurements(spec: FusionSpec, record: StepRecord) -> Iterator[Measurement]:
    """All finite numbers of a step."""
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
    yield Measurement("fusion_gain", "", record.fusion_gain)
    yield Measurement("fusion_weight", "", record.fusion_weight)
    for index, source in enumerate(spec.source_models):
        yield Measurement("source_gain", source.name, source_gain(record, index))
        nats_per_byte = ratio(record.source_nats[index], record.source_bytes[index])
        yield Measurement("source_nats_per_byte", source.name, nats_per_byte)
        if spec.fusion.rule == "min_ce":
            yield Measurement("source_win_rate", source.name, ratio(record.source_wins[index], record.passages))
        yield Measurement("source_coverage", source.name, ratio(record.source_covered_rows[index], rows))
    for name in record.retired:
        yield Measurement("source_retired", name, record.step)
    for domain, totals in enumerate(DomainSums(spec).add([record]).totals()):
        yield Measurement("domain_share", totals.name, totals.share)
        for index, source in enumerate(totals.sources):
            label = f"{totals.name}/{source.name}"
            yield Measurement("domain_source_nats_per_byte", label, source.cross_entropy)
            yield Measurement("domain_source_gain", label, source_gain(record, index, domain))
            yield Measurement("domain_source_win_rate", label, source.win_rate)
            yield Measurement("domain_source_coverage", label, source.coverage)
    for held_out, bits_per_byte in record.held_out.items():
        yield Measurement("held_out_bits_per_byte", held_out, bits_per_byte)
