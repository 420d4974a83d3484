"""Check a spec and the files that it names on this machine; loads no library of models if the files say enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain

from engine.corpus.files import find_corpus, find_files, units_of
from engine.corpus.first_rows import unreadable_corpus, unreadable_domain
from engine.errors import Fault, PreflightError
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.inspection import checkpoint_faults, leaves_eos_open, quantisation_faults
from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from pipelines.cluster.address import silent_address
from pipelines.stream.output_folder import written_folder_faults


def check(spec: FusionSpec, may_be_elsewhere: bool = True, needs_ray: bool = False) -> None:
    """Look at the files that a spec names, which takes a second.

    Args:
        may_be_elsewhere: pass over everything that is not on this machine: a spec may be checked on another one.
        needs_ray: try the cluster that ``RAY_ADDRESS`` names, too.

    Raises:
        PreflightError: lists every checkpoint whose files are damaged or do not fit each other, every path of a corpus
            that can be no file of it, corpora whose first rows cannot be read, and folders that no run could write.
    """
    spec = as_located_spec(spec)
    found, faults = find_corpus(spec.corpus, may_be_elsewhere)
    if not faults:
        units = {name: chain.from_iterable(map(units_of, files)) for name, files in found.items() if files}
        faults += unreadable_corpus(spec.corpus, units)
    for domain, paths in spec.evaluation.corpora.items():
        files, missing = find_files(paths, f"evaluation.corpora.{domain}", may_be_elsewhere)
        units = (unit for path in files for unit in units_of(path))
        faults += missing or (unreadable_domain(spec.corpus, domain, units) if files else [])
    for where, checkpoint, backend in _checkpoints(spec):
        found = checkpoint_faults(where, checkpoint, may_be_elsewhere)
        found = found or quantisation_faults(where, checkpoint, backend, may_be_elsewhere)
        faults += found or _tokenizer_faults(where, checkpoint)
    faults += written_folder_faults(spec, may_be_elsewhere)
    if needs_ray:
        faults += silent_address()
    if faults:
        raise PreflightError(faults)


def _tokenizer_faults(where: str, checkpoint: Checkpoint) -> list[Fault]:
    """Faults of a tokenizer whose EOS the files leave open; transformers is asked then, which takes seconds."""
    folder = os.path.expanduser(checkpoint.path)
    if not os.path.isdir(folder) or not leaves_eos_open(folder):
        return []
    from pipelines.stream.model_checks import model_faults  # `check` loads transformers for nothing else

    return model_faults(where, checkpoint)


def _checkpoints(spec: FusionSpec) -> Iterator[tuple[str, Checkpoint, str]]:
    """Every model of the spec: its place in the spec, its files, and the library that reads its weights."""
    yield "target_model", Checkpoint.of(spec.target_model), "transformers"
    for index, source in enumerate(spec.source_models):
        yield f"source_models.{index}", Checkpoint.of(source), source.backend
    for label, path in spec.evaluation.models.items():
        yield f"evaluation.models.{label}", Checkpoint(path), "transformers"
