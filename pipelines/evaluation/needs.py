"""What the tasks of an evaluation need of a cluster."""

from __future__ import annotations

from dataclasses import replace

from engine.spec import FusionSpec
from pipelines.cluster.needs import Need
from pipelines.evaluation.models import evaluation_labels


def evaluation_needs(spec: FusionSpec) -> tuple[Need, ...]:
    """What the evaluation needs of a cluster: room for one model at a time; nothing if nothing is evaluated."""
    settings = spec.evaluation
    return (model_need(spec),) if settings.corpora or settings.tasks or settings.merges else ()


def model_need(spec: FusionSpec) -> Need:
    """The need of the task that evaluates one model."""
    return Need(
        "evaluation",
        "evaluated model",
        1.0,
        spec.training.num_gpus_per_worker,
        labels=evaluation_labels(spec),
        labels_where="evaluation.labels" if spec.evaluation.labels else "cluster.training_labels",
        size_fields=("training.num_gpus_per_worker",),
    )


def merge_need(spec: FusionSpec) -> Need:
    """The need of the task that writes one merge: it uses no GPU."""
    return replace(model_need(spec), who="merge", gpus=0.0, size_fields=())
