"""What a plan says of the fusion rules before any training, to stand beside the targets that they have trained."""

from __future__ import annotations

from collections.abc import Sequence

import engine
from engine import load_spec
from pipelines.experiment.arms import RULE_ARMS


def planned_rules(spec_path: str, overrides: Sequence[str]) -> dict[str, float]:
    """Nats per byte of each rule's fused distribution on the labels, as ``plan --compare`` has it, the lowest first."""
    spec = load_spec(spec_path, [*overrides])
    found = engine.plan(spec, mappings=()).comparison
    of_spec = [teacher for teacher in found.teachers if teacher.tokens == spec.alignment.tokens]
    return {teacher.rule: teacher.nats_per_byte for teacher in of_spec if teacher.rule in RULE_ARMS}
