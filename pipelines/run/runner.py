"""A run from beginning to end: preflight, Ray, the stream into training, evaluation, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.monitor import RunMonitor
from engine.errors import FusionError, PreflightError
from engine.history.result import EvaluationResult, Progress, RunResult
from engine.history.stopping import reached
from engine.history.totals import seconds_of_earlier_starts
from engine.reporting.evaluation_files import write_evaluation
from engine.reporting.evaluation_tables import failure_lines
from engine.reporting.model_card import write_model_card
from engine.reporting.stalls import StallAlarm
from engine.reporting.terminal import ProgressDisplay, show_evaluation, show_phase, show_summary
from engine.reporting.trackers import chosen_trackers
from engine.reporting.watch import Watch
from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from pipelines.cluster.autoscaling import NodesInUse, release_nodes
from pipelines.cluster.failures import readable_errors
from pipelines.cluster.ray_metrics import RayMetrics
from pipelines.cluster.session import ray_session, spilled_bytes
from pipelines.evaluation.evaluate import evaluate_models
from pipelines.evaluation.models import comparison_faults
from pipelines.evaluation.needs import evaluation_needs
from pipelines.run.event_log import EventLog
from pipelines.run.lease import lease
from pipelines.run.live_page import LivePage
from pipelines.run.node_checks import check_nodes
from pipelines.run.preflight import preflight, write_spec
from pipelines.run.result import result_of
from pipelines.stream.sizes import FlowPlan, derive_flow
from pipelines.stream.training import train


def run_located(spec: FusionSpec, started: float, forks: str) -> RunResult:
    """A run of a spec whose paths are absolute; see ``pipelines.run.start.run``.

    Args:
        spec: of the run.
        started: the monotonic clock when it started.
        forks: socket of a fork server for the workers of a local Ray; empty for none.
    """
    flow = preflight(spec)
    show_phase("checked the spec, its files and models", time.monotonic() - started)
    with lease(spec.run.output_dir), LivePage(spec) as page, EventLog(spec) as events:
        write_spec(spec, flow)
        with ray_session(spec, flow.needs, evaluation_needs(spec), forks), readable_errors():
            check_nodes(spec, flow)
            show_phase("Ray is ready", time.monotonic() - started)
            result = _train_and_evaluate(spec, flow, page, events)
        result = replace(result, wall_seconds=result.wall_seconds + time.monotonic() - started)
        write_evaluation(spec, result.evaluation)
        write_model_card(spec, result)
        page.finish(result)
        events.finish(result)
    show_summary(result)
    return result


def evaluate(spec: FusionSpec | Mapping[str, Any] | str | Path) -> EvaluationResult:
    """Evaluate the target before, the sources, the run's export if there is one, further models, merges and ensembles.

    Measures held-out bits per byte (``evaluation.corpora``) and tasks (``evaluation.tasks``). Prints the tables and
    writes ``evaluation.json`` and ``evaluation.png`` to the output folder, those of the parts that could be made if one
    could not.

    Raises:
        SpecError, PreflightError, FusionError: as in ``run``.
    """
    evaluation = evaluate_located(as_located_spec(spec))
    if evaluation.failures:
        raise FusionError("; ".join(failure_lines(evaluation)))
    return evaluation


def evaluate_located(spec: FusionSpec) -> EvaluationResult:
    """As ``evaluate``, of a spec whose paths are absolute; the result says what could not be measured."""
    derive_flow(spec)
    faults = comparison_faults(spec, trains_first=False)
    if faults:
        raise PreflightError(faults)
    with ray_session(spec, evaluation_needs(spec)), readable_errors():
        release_nodes()
        evaluation = evaluate_models(spec)
    show_evaluation(evaluation, write_evaluation(spec, evaluation))
    return evaluation


def _train_and_evaluate(spec: FusionSpec, flow: FlowPlan, page: LivePage, events: EventLog) -> RunResult:
    """Stream the corpus through the source models into training, watched by all observers; then evaluate.

    Raises:
        FusionError: nothing was learned.
    """
    spilled_before, monitor = spilled_bytes(), _run_monitor()

    def snapshot(mark: int) -> Progress:
        return ray.get(monitor.snapshot.remote(mark))

    display = ProgressDisplay(spec, page.earlier)
    stalls = StallAlarm(spec.cluster.stall_minutes, display.say)
    # The metrics come last: their end may wait, and no other observer shall wait for it.
    observers = [display, page, events, stalls, NodesInUse(), *chosen_trackers(spec), RayMetrics(spec, display.say)]
    with Watch(snapshot, observers, display.say):
        history = train(spec, flow, monitor)
    progress = ray.get(monitor.snapshot.remote(0, most_rows=None))
    if not history:
        raise FusionError(_nothing_learned(spec, progress))
    seconds = seconds_of_earlier_starts(history, progress)
    result = result_of(spec, history, progress, seconds, reached(spec, history) or "corpus")
    return replace(result, evaluation=evaluate_models(spec), spilled_bytes=spilled_bytes() - spilled_before)


def _nothing_learned(spec: FusionSpec, progress: Progress) -> str:
    """The message about a run whose corpus holds nothing to learn."""
    skipped = progress.skipped
    first = f", the first one {skipped[0].path}, row {skipped[0].row}: {skipped[0].reason}" if skipped else ""
    return (
        f"nothing was learned: the corpus {', '.join(spec.corpus.all_paths)} gave no passage; "
        f"{len(skipped)} files or rows were skipped{first}. No model was exported; correct its paths, "
        f"corpus.text_column or corpus.messages_column"
    )


def _run_monitor() -> ActorHandle:
    """Start the run monitor on the driver's own node: the run cannot outlive that node anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(RunMonitor).remote()
