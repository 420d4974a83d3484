"""Records of training steps for tests that count, show or judge them."""

from __future__ import annotations

from typing import Any

from engine.history.result import StepRecord


def step_record(step: int = 1, **fields: Any) -> StepRecord:
    """A step of 100 tokens in 4 passages and 2 seconds; ``fields`` replace the values that matter to a test."""
    values = {
        "loss": 5.0,
        "lm_loss": 5.25,
        "fusion_loss": 4.75,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "tokens": 100,
        "passages": 4,
        "bytes": 400,
        "seconds": 2.0,
        "wait_seconds": 0.5,
        "padding": 0.1,
        "fused_rows": 90,
        "fusion_gain": 0.5,
        "fusion_weight": 1.0,
    }
    return StepRecord(step=step, **values | fields)
