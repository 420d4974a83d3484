"""Check a spec and the files that it names on this machine; loads no library of models."""

from __future__ import annotations

from engine.corpus.files import find_files
from engine.errors import PreflightError
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.inspection import checkpoint_faults
from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from pipelines.stream.output_folder import written_folder_faults


def check(spec: FusionSpec, may_be_elsewhere: bool = True) -> None:
    """Look at the files that a spec names, which takes a second.

    Args:
        may_be_elsewhere: pass over everything that is not on this machine: a spec may be checked on another one.

    Raises:
        PreflightError: lists every checkpoint whose files are damaged or do not fit each other, every path of a corpus
            that can be no file of it, and folders that no run could write.
    """
    spec = as_located_spec(spec)
    faults = find_files(spec.corpus.paths, "corpus.paths", may_be_elsewhere)[1]
    for domain, paths in spec.evaluation.corpora.items():
        faults += find_files(paths, f"evaluation.corpora.{domain}", may_be_elsewhere)[1]
    faults += checkpoint_faults("target_model", Checkpoint.of(spec.target_model), may_be_elsewhere)
    for index, source in enumerate(spec.source_models):
        faults += checkpoint_faults(f"source_models.{index}", Checkpoint.of(source), may_be_elsewhere)
    for label, path in spec.evaluation.models.items():
        faults += checkpoint_faults(f"evaluation.models.{label}", Checkpoint(path), may_be_elsewhere)
    faults += written_folder_faults(spec, may_be_elsewhere)
    if faults:
        raise PreflightError(faults)
