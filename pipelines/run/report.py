"""``engine.report``: the page of a run from its output folder at any time, and one page that compares several runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import yaml

from actors.training.checkpoint_index import recorded_steps
from engine.errors import FusionError
from engine.history.stopping import reached
from engine.reporting.comparison import Run, render_comparison
from engine.reporting.evaluation_files import read_evaluation
from engine.reporting.page import Status, earlier_data, render_report, write_page
from engine.spec.loading import load_spec
from engine.store import content
from pipelines.run.preflight import SPEC_FILE
from pipelines.run.result import REPORT_FILE, result_of

#: The page of one run, in its output folder: beside the run's own page, which knows more.
CHECKPOINT_REPORT_FILE = "report-from-checkpoint.html"

#: The page that compares several runs, in the working folder.
COMPARISON_FILE = "comparison.html"


def report(output_dirs: Sequence[str], url: str = "") -> str:
    """Write the page of one run, or one that compares several, from their checkpoints and evaluations.

    A checkpoint holds no stages, no skipped rows and not the time outside of the training loop: a page made here leaves
    out what only the run itself has seen, but for the token view of the run's own page. That page stays as it is.

    Args:
        output_dirs: ``run.output_dir`` of each run; any path or fsspec URL.
        url: of the page; by default ``report-from-checkpoint.html`` in the folder of the run, and for several
            ``comparison.html`` here.

    Returns:
        The page's path or URL.

    Raises:
        FusionError: a folder holds no run.
        StoreError: a folder cannot be read, or the page cannot be written.
    """
    runs = [recorded_run(folder) for folder in output_dirs]
    now = time.time()
    if len(runs) == 1:
        spec, result = runs[0]
        url = url or os.path.join(output_dirs[0], CHECKPOINT_REPORT_FILE)
        status = Status(f"made from the checkpoint of step {result.steps:,}", now)
        page = render_report(spec, result, status, earlier_data(os.path.join(output_dirs[0], REPORT_FILE)))
    else:
        url = url or COMPARISON_FILE
        page = render_comparison(runs, Status("made from the last checkpoint of each run", now))
    write_page(page, url)
    return url


def recorded_run(output_dir: str) -> Run:
    """The spec and the result of a run, as its output folder holds them; what it does not hold is not known.

    Raises:
        FusionError: the folder holds no run.
        StoreError: the folder cannot be read.
    """
    data = content(os.path.join(output_dir, SPEC_FILE))
    if data is None:
        raise FusionError(
            f"{output_dir}: holds no run, for it has no {SPEC_FILE}; give the folder of run.output_dir of a run"
        )
    spec = load_spec(yaml.safe_load(data))
    spec = spec.model_copy(update={"run": spec.run.model_copy(update={"output_dir": output_dir})})
    history = recorded_steps(output_dir)
    result = result_of(spec, history, None, math.nan, reached(spec, history))
    return spec, replace(result, evaluation=read_evaluation(output_dir))
