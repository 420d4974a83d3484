"""The spec of a run: its sections, loading, checks, and the authors' presets."""

from engine.spec.sections import (
    AlignmentSpec,
    ClusterSpec,
    CorpusSpec,
    Divergence,
    DomainSpec,
    EvaluationSpec,
    FusionRuleSpec,
    FusionSpec,
    LoraSpec,
    MergeSpec,
    ObjectiveSpec,
    OptimizerSpec,
    RunSpec,
    SourceModelSpec,
    TargetModelSpec,
    TrainingSpec,
)

__all__ = [
    "AlignmentSpec",
    "ClusterSpec",
    "CorpusSpec",
    "Divergence",
    "DomainSpec",
    "EvaluationSpec",
    "FusionRuleSpec",
    "FusionSpec",
    "LoraSpec",
    "MergeSpec",
    "ObjectiveSpec",
    "OptimizerSpec",
    "RunSpec",
    "SourceModelSpec",
    "TargetModelSpec",
    "TrainingSpec",
]
