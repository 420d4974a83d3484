"""The engine's door: preflight, the stream into training, evaluation, report."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.monitor import RunMonitor
from engine.errors import PreflightError
from engine.history.result import EvaluationResult, Progress, RunResult, SourceTotals, StepRecord
from engine.history.stopping import exported_step, reached
from engine.reporting.evaluation_files import write_evaluation
from engine.reporting.model_card import write_model_card
from engine.reporting.page import write_report
from engine.reporting.rates import in_stream_order
from engine.reporting.terminal import ProgressDisplay, show_evaluation, show_summary
from engine.reporting.trackers import chosen_trackers
from engine.reporting.watch import Watch
from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from pipelines.cluster import session as cluster
from pipelines.cluster.failures import readable_errors
from pipelines.cluster.placement import check_places
from pipelines.cluster.ray_metrics import RayMetrics
from pipelines.evaluation.evaluate import evaluate_models
from pipelines.evaluation.models import comparison_faults, export_dir
from pipelines.run.preflight import SPEC_FILE, preflight
from pipelines.stream.sizes import derive_flow
from pipelines.stream.training import train


def run(spec: FusionSpec | Mapping[str, Any] | str | Path) -> RunResult:
    """Fuse the source models into the target model: score, align, fuse, train, export, evaluate, report.

    Blocks until the run is done. Joins the Ray of a submitted job or starts a local one. A run that was stopped goes on
    from its last checkpoint when it is started again with the same spec.

    Args:
        spec: a spec, a mapping, or the path of a YAML file.

    Raises:
        SpecError: the spec is wrong; nothing was started.
        PreflightError: files, models or the cluster do not allow the run; lists all faults.
        FusionError: the run failed; says at which stage and why.
    """
    started = time.monotonic()
    spec = as_located_spec(spec)
    flow = preflight(spec)
    with cluster.session(spec, flow.logical_cpus, flow.gpus), readable_errors():
        check_places(spec)
        spilled_before, monitor = cluster.spilled_bytes(), _run_monitor()
        display = ProgressDisplay(spec)
        observers = [display, RayMetrics(spec), *chosen_trackers(spec)]
        with Watch(lambda since_step: _snapshot(monitor, since_step), observers, display.say):
            history = train(spec, flow, monitor)
        result = _result(spec, history, _snapshot(monitor))
        result = replace(
            result,
            evaluation=evaluate_models(spec),
            spilled_bytes=cluster.spilled_bytes() - spilled_before,
            wall_seconds=result.wall_seconds + time.monotonic() - started,
        )
    write_evaluation(spec, result.evaluation)
    write_model_card(spec, result)
    write_report(spec, result, result.report_path)
    show_summary(result)
    return result


def evaluate(spec: FusionSpec | Mapping[str, Any] | str | Path) -> EvaluationResult:
    """Evaluate the target before, the sources, the run's export if there is one, further models, merges and ensembles.

    Held-out bits per byte (``evaluation.corpora``) and tasks (``evaluation.tasks``); printed, and written to
    ``evaluation.json`` and ``evaluation.png`` in the output folder.

    Raises:
        SpecError, PreflightError, FusionError: as in ``run``.
    """
    spec = as_located_spec(spec)
    derive_flow(spec)
    faults = comparison_faults(spec, trains_first=False)
    if faults:
        raise PreflightError(faults)
    with cluster.session(spec, logical_cpus=1, gpus=spec.training.num_gpus_per_worker), readable_errors():
        evaluation = evaluate_models(spec)
    show_evaluation(evaluation, write_evaluation(spec, evaluation))
    return evaluation


def _run_monitor() -> ActorHandle:
    """On the driver's own node: Ray would put it anywhere, and the run cannot outlive it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(RunMonitor).remote()


def _snapshot(monitor: ActorHandle, since_step: int = 0) -> Progress:
    return ray.get(monitor.snapshot.remote(since_step))


def _result(spec: FusionSpec, history: Sequence[StepRecord], progress: Progress) -> RunResult:
    """The run's totals; evaluation, spilling and the wall time of this start are not known yet."""
    return RunResult(
        name=spec.run.name,
        output_dir=spec.run.output_dir,
        export_dir=export_dir(spec),
        report_path=os.path.join(spec.run.output_dir, "report.html"),
        spec_path=os.path.join(spec.run.output_dir, SPEC_FILE),
        steps=len(history),
        passages=sum(record.passages for record in history),
        tokens=sum(record.tokens for record in history),
        bytes=sum(record.bytes for record in history),
        wall_seconds=_earlier_seconds(history, progress),
        spilled_bytes=0,
        stopped_by=reached(spec, history) or "corpus",
        exported_step=exported_step(spec, history),
        sources=tuple(_source_totals(spec, history, index) for index in range(len(spec.source_models))),
        history=tuple(history),
        stages=tuple(in_stream_order(progress.stages, spec)),
        skipped=progress.skipped,
        left_out=progress.left_out,
    )


def _source_totals(spec: FusionSpec, history: Sequence[StepRecord], index: int) -> SourceTotals:
    """Sums over all steps, as rates. A passage of T tokens has T-1 rows with a label."""
    passages = sum(record.passages for record in history)
    rows = sum(record.tokens for record in history) - passages
    scored_bytes = sum(record.source_bytes[index] for record in history)
    return SourceTotals(
        name=spec.source_models[index].name,
        cross_entropy=_ratio(sum(record.source_nats[index] for record in history), scored_bytes),
        win_rate=_ratio(sum(record.source_wins[index] for record in history), passages)
        if spec.fusion.rule == "min_ce"
        else math.nan,
        coverage=_ratio(sum(record.source_covered_rows[index] for record in history), rows),
        left_out=sum(record.source_left_out[index] for record in history),
    )


def _earlier_seconds(history: Sequence[StepRecord], progress: Progress) -> float:
    """Time in training of the earlier starts of a run, from those steps that this one has not seen happen."""
    first = min((record.step for record in progress.steps), default=math.inf)
    return max((record.elapsed_seconds for record in history if record.step < first), default=0.0)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
