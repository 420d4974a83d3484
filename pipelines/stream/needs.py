"""What the processes of a stream need of a cluster.

Logical CPUs are counted because too few of them do not slow a stream down, they stop it: actor pools reserve theirs
before the first task runs, and a task that finds none left waits forever, without a word.
"""

from __future__ import annotations

from engine.spec import FusionSpec
from pipelines.cluster.needs import Need

READER_CPUS = 0.5

ALIGNER_CPUS = 1.0

#: There is an aligner for every two replicas.
REPLICAS = ("source_models[].replicas",)


def stream_needs(spec: FusionSpec, readers: int, aligners: int) -> tuple[Need, ...]:
    """The needs of all processes that a stream starts with; more replicas, up to ``most_replicas``, may come later."""
    training = spec.training
    sources = [
        Need(
            f"source_models.{index}",
            f"replica of {source.name}",
            source.num_cpus,
            source.num_gpus * source.tensor_parallel_size,
            source.replicas,
            spec.cluster.source_model_labels,
            "cluster.source_model_labels",
            REPLICAS,
            tuple(f"source_models[].{field}" for field in ("num_cpus", "num_gpus", "tensor_parallel_size")),
        )
        for index, source in enumerate(spec.source_models)
    ]
    worker = Need(
        "training",
        "training worker",
        training.num_cpus_per_worker,
        training.num_gpus_per_worker,
        training.num_workers,
        spec.cluster.training_labels,
        "cluster.training_labels",
        ("training.num_workers",),
        ("training.num_cpus_per_worker", "training.num_gpus_per_worker"),
    )
    reader = Need("corpus", "reader", READER_CPUS, count=readers, count_fields=("corpus.readers",))
    aligner = Need("source_models", "aligner", ALIGNER_CPUS, count=aligners, count_fields=REPLICAS)
    return (*sources, worker, reader, aligner)
