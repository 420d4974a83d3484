"""Write a run's metrics to TensorBoard and Weights & Biases; their libraries are imported only if the spec asks."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import time
from typing import Any

from engine.errors import Fault
from engine.history.result import Progress
from engine.reporting.measurements import Measurement, measurements
from engine.spec import FusionSpec

#: The URLs that tensorboardX can write to, besides local folders.
TENSORBOARD_URLS = ("s3://", "gs://")

#: The metric over which Weights & Biases draws all others.
WANDB_AXIS = "step"


def tracker_faults(spec: FusionSpec) -> list[Fault]:
    """The missing requirements of the trackers that ``spec.run`` asks for."""
    faults = []
    output_dir = spec.run.output_dir
    if spec.run.tensorboard and "://" in output_dir and not output_dir.startswith(TENSORBOARD_URLS):
        what = f"event files cannot be written to {output_dir}"
        faults.append(Fault("run.tensorboard", what, "use a local run.output_dir, s3:// or gs://, or set it to false"))
    for field, package in {"tensorboard": "tensorboardX", "wandb_project": "wandb"}.items():
        value = getattr(spec.run, field)
        if value and importlib.util.find_spec(package) is None:
            what = f"is {value!r}, but the package {package} is not installed"
            faults.append(Fault(f"run.{field}", what, f"pip install {package} where the driver runs, or unset it"))
    return faults


def chosen_trackers(spec: FusionSpec) -> list[TensorBoardLog | WandbLog]:
    """The trackers that ``spec.run`` asks for, as observers."""
    trackers: list[TensorBoardLog | WandbLog] = [TensorBoardLog(spec)] if spec.run.tensorboard else []
    return trackers + ([WandbLog(spec)] if spec.run.wandb_project else [])


class TensorBoardLog:
    """An observer that writes event files to ``output_dir/logs/tensorboard``, one for each start of the run."""

    product = "the TensorBoard log"

    def __init__(self, spec: FusionSpec):
        self._spec = spec
        self._folder = os.path.join(spec.run.output_dir, "logs", "tensorboard")
        self._writer: Any = None

    def see(self, picture: Progress, now: float) -> None:
        """Write the new steps, each with its own time; after a restart of the training workers into another file."""
        if picture.void_after is not None:
            self.close()
            self._writer = None
        for record in picture.steps:
            # Steps may have been written after the last checkpoint; they are void and must not be shown.
            self._writer = self._writer or _summary_writer(self._folder, first_step=record.step)
            taken = time.time() - (picture.steps[-1].elapsed_seconds - record.elapsed_seconds)
            for found in measurements(self._spec, record):
                self._writer.add_scalar(_path(found), found.value, record.step, walltime=taken)
        if picture.steps:
            self._writer.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._writer is not None:
            self._writer.close()


class WandbLog:
    """An observer that sends every step to Weights & Biases; a resumed run continues its entry there."""

    product = "the entry at Weights & Biases"

    def __init__(self, spec: FusionSpec):
        import wandb

        self._spec = spec
        self._scratch = tempfile.TemporaryDirectory(prefix="wandb-")
        self._run = wandb.init(
            project=spec.run.wandb_project,
            name=spec.run.name,
            id=hashlib.sha256(spec.run.output_dir.encode("utf8")).hexdigest()[:16],
            resume="allow",
            config=spec.model_dump(mode="json"),
            dir=self._scratch.name,
        )
        # Its own count of steps only grows: it would drop the steps that are taken again after a restart.
        self._run.define_metric(WANDB_AXIS)
        self._run.define_metric("*", step_metric=WANDB_AXIS)

    def see(self, picture: Progress, now: float) -> None:
        """Send the new steps; those that are taken again after a restart are drawn beside the first."""
        for record in picture.steps:
            found = {_path(found): found.value for found in measurements(self._spec, record)}
            self._run.log({WANDB_AXIS: record.step, **found})

    def close(self) -> None:
        """Send the rest and end the entry."""
        self._run.finish()
        self._scratch.cleanup()


def _summary_writer(folder: str, first_step: int) -> Any:
    """A writer of one more file; TensorBoard hides the other files' steps from ``first_step`` on."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(folder, purge_step=first_step, filename_suffix=f".step-{first_step}")


def _path(found: Measurement) -> str:
    """The metric's path: ``loss/objective``; without a label ``gradient_norm``."""
    return f"{found.family}/{found.label}" if found.label else found.family
