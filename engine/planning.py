"""What a run would do and need, said before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.spec import FusionSpec
from engine.specfile import as_located_spec
from pipelines.flow import FlowPlan, derive_flow

#: Bytes of one kept entry on its way: an int32 id and a float16 log-probability.
BYTES_PER_ENTRY = 6


@dataclass(frozen=True)
class Plan:
    """The spec, and what follows from it, its models and its corpus. ``print`` it."""

    spec: FusionSpec
    flow: FlowPlan

    def __str__(self) -> str:
        spec, flow, training = self.spec, self.flow, self.spec.training
        step_tokens = training.global_batch_blocks * training.block_length
        windows = ", ".join(
            f"{name} {window}"
            for name, window in zip(["target", *(s.name for s in spec.source_models)], flow.windows, strict=True)
        )
        lines = {
            "run": f"{spec.run.name} -> {spec.run.output_dir}",
            "corpus": f"{len(flow.corpus_units)} units x {spec.corpus.passes} passes",
            "windows": f"{windows} text tokens a passage",
            "fusion": _fusion_line(spec),
            "batch": f"{flow.batch_passages} passages in a call of a source model",
            "step": f"{training.global_batch_blocks} blocks of {training.block_length} = {step_tokens:,} tokens, "
            f"{flow.blocks_per_worker} blocks a worker on {training.num_workers} workers",
            "length": f"at most {training.max_steps} steps = {training.max_steps * step_tokens:,} tokens",
            "traffic": f"{BYTES_PER_ENTRY * spec.fusion.top_k:,} bytes a token from each source",
            "Ray reserves": f"{flow.logical_cpus:g} logical CPUs, {flow.gpus:g} GPUs",
        }
        return "\n".join(f"{name:<14}{text}" for name, text in lines.items())


def plan(spec: FusionSpec | Mapping[str, Any] | str | Path) -> Plan:
    """Look at the models' configurations and tokenizers and at the corpus' files; start nothing.

    Raises:
        SpecError: the spec is wrong.
        PreflightError: lists every model that cannot be loaded and every path without files.
    """
    located = as_located_spec(spec)
    return Plan(located, derive_flow(located))


def _fusion_line(spec: FusionSpec) -> str:
    if not spec.source_models:
        return "none: continued training on the causal LM loss alone"
    fusion, weight = spec.fusion, spec.objective.lm_loss_weight
    return (
        f"{fusion.rule} per {fusion.granularity} of {len(spec.source_models)} source models, top {fusion.top_k}; "
        f"loss = {weight:g} x causal LM + {1 - weight:g} x fusion"
    )
