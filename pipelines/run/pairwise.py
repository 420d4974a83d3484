"""FuseChat's recipe (arXiv 2408.07990): the target fused with each source model alone, then these targets merged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from engine.history.result import RunResult
from engine.spec import FusionSpec, MergeSpec, SourceModelSpec
from pipelines.run.preflight import SPEC_FILE, preflight, write_spec
from pipelines.run.report import report
from pipelines.run.result import REPORT_FILE
from pipelines.run.runner import evaluate_located

#: Label of the merged target in the evaluation, and the name of its folder below ``output_dir/merges``.
MERGED = "pairwise"


def run_pairwise(spec: FusionSpec, run: Callable[[FusionSpec], RunResult]) -> RunResult:
    """Run each pair of the target and a source model, one after the other, then merge and evaluate.

    A pair that has ended is started again when the recipe is, and has no more to learn; a stopped one goes on.

    Args:
        spec: of the recipe, with absolute paths.
        run: carries out the run of one pair.

    Returns:
        Sums over the pairs, and the evaluation. Steps and stages are in each pair's own result.

    Raises:
        PreflightError, FusionError: as ``engine.run``; the former before the first pair.
    """
    started, folder = time.monotonic(), spec.run.output_dir
    write_spec(spec, preflight(spec))
    pairs = [run(pair_spec(spec, source)) for source in spec.source_models]
    evaluation = evaluate_located(with_merge(spec))
    return RunResult(
        name=spec.run.name,
        output_dir=folder,
        export_dir=os.path.join(folder, "merges", MERGED),
        report_path=report([pair.output_dir for pair in pairs], os.path.join(folder, REPORT_FILE)),
        spec_path=os.path.join(folder, SPEC_FILE),
        steps=sum(pair.steps for pair in pairs),
        passages=sum(pair.passages for pair in pairs),
        tokens=sum(pair.tokens for pair in pairs),
        bytes=sum(pair.bytes for pair in pairs),
        wall_seconds=time.monotonic() - started,
        spilled_bytes=sum(pair.spilled_bytes or 0 for pair in pairs),
        stopped_by=pairs[-1].stopped_by,
        sources=tuple(source for pair in pairs for source in pair.sources),
        num_skipped=sum(pair.num_skipped or 0 for pair in pairs),
        num_left_out=sum(pair.num_left_out or 0 for pair in pairs),
        evaluation=evaluation,
    )


def pair_spec(spec: FusionSpec, source: SourceModelSpec) -> FusionSpec:
    """The run of the target with one source model; evaluated only where that decides when it ends."""
    evaluation = {"models": {}, "merges": {}, "ensembles": {}, "tasks": ()}
    if not spec.evaluation.every_steps:
        evaluation["corpora"] = {}
    name = f"{spec.run.name}-{source.name}"[:64]  # what a name may have at most
    return spec.model_copy(
        update={
            "run": spec.run.model_copy(update={"name": name, "output_dir": _pair_folder(spec, source)}),
            "source_models": (source,),
            "pairwise": None,
            "evaluation": spec.evaluation.model_copy(update=evaluation),
        }
    )


def with_merge(spec: FusionSpec) -> FusionSpec:
    """The recipe's spec for ``engine.evaluate``: the targets of all pairs are models, and the result is their merge."""
    pairs = {f"pair {source.name}": os.path.join(_pair_folder(spec, source), "export") for source in spec.source_models}
    base = "target before" if spec.pairwise.adds_changes else ""
    merge = MergeSpec(**spec.pairwise.model_dump(), models=tuple(pairs), base=base)
    evaluation = spec.evaluation.model_copy(
        update={"models": spec.evaluation.models | pairs, "merges": spec.evaluation.merges | {MERGED: merge}}
    )
    return spec.model_copy(update={"evaluation": evaluation})


def _pair_folder(spec: FusionSpec, source: SourceModelSpec) -> str:
    return os.path.join(spec.run.output_dir, "pairs", source.name)
