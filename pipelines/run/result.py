"""The result of a run from its steps and the monitor's picture: at its end, and while it works."""

from __future__ import annotations

import os
from collections.abc import Sequence

from engine.history.result import Progress, RunResult, StepRecord, StopReason
from engine.history.series import StepSeries
from engine.history.stopping import exported_step
from engine.reporting.rates import in_stream_order
from engine.spec import FusionSpec
from pipelines.evaluation.models import export_dir
from pipelines.run.preflight import SPEC_FILE

REPORT_FILE = "report.html"


def result_of(
    spec: FusionSpec,
    history: Sequence[StepRecord],
    picture: Progress | None,
    wall_seconds: float,
    stopped_by: StopReason | None,
    series: StepSeries | None = None,
) -> RunResult:
    """The result of the steps so far, without evaluation and spilled bytes.

    Args:
        history: all steps of the run.
        picture: for the stages, the skipped rows and the passages left out; None: nothing is known of them.
        wall_seconds: over all starts; NaN: not known.
        stopped_by: None if the run has not come to its end.
        series: of the history, where it is made already.
    """
    seen = picture or Progress()
    series = series or StepSeries(spec).add(history)
    return RunResult(
        name=spec.run.name,
        output_dir=spec.run.output_dir,
        export_dir=export_dir(spec),
        report_path=os.path.join(spec.run.output_dir, REPORT_FILE),
        spec_path=os.path.join(spec.run.output_dir, SPEC_FILE),
        steps=len(history),
        passages=int(series["passages"].sum()),
        tokens=int(series["tokens"].sum()),
        bytes=int(series["bytes"].sum()),
        wall_seconds=wall_seconds,
        spilled_bytes=None,
        stopped_by=stopped_by,
        exported_step=exported_step(spec, history),
        sources=series.source_totals(),
        domains=series.domain_totals(),
        history=tuple(history),
        stages=tuple(in_stream_order(seen.stages, spec)),
        skipped=seen.skipped,
        left_out=seen.left_out,
        num_skipped=picture and seen.num_skipped,
        num_left_out=picture and seen.num_left_out,
    )
