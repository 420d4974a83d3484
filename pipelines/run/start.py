"""Where a run starts: libraries load in two processes at once, this one and that of which workers are forked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from pipelines.cluster.fork_server import fork_server
from pipelines.cluster.local_ray import starts_local_ray

if TYPE_CHECKING:
    from engine.history.result import RunResult


def run(spec: FusionSpec | Mapping[str, Any] | str | Path) -> RunResult:
    """Fuse the source models into the target model: score, align, fuse, train, export, evaluate, report.

    Returns when the run has ended. Joins the Ray of a submitted job or starts a local one. A run that was stopped goes
    on from its last checkpoint when it is started again with the same spec.

    Args:
        spec: a spec, a mapping, or the path of a YAML file.

    Raises:
        SpecError: the spec is wrong; nothing was started.
        PreflightError: files, models or the cluster do not allow the run; lists all faults.
        FusionError: the run failed; says at which stage and why.
    """
    started = time.monotonic()
    spec = as_located_spec(spec)
    if spec.pairwise is not None:
        from pipelines.run.pairwise import run_pairwise

        return run_pairwise(spec, run)
    with _fork_server(spec) as forks:
        # Ray, torch and all else take seconds, in which the server imports as well.
        from pipelines.run.runner import run_located

        return run_located(spec, started, forks)


def _fork_server(spec: FusionSpec) -> AbstractContextManager[str]:
    """A fork server for a local Ray's workers; none where another Ray is joined.

    Nor is there one where a stage has a GPU: what the libraries find out about GPUs at their import must be found out
    in the process that uses them.
    """
    uses_gpus = spec.training.num_gpus_per_worker or any(source.num_gpus for source in spec.source_models)
    if uses_gpus or not starts_local_ray():
        return nullcontext("")
    return fork_server(with_vllm=any(source.backend == "vllm" for source in spec.source_models))
