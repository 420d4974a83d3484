"""Held-out evaluation on the run's cluster: every model scores the same passages, each model in a task of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from engine.errors import RecordError
from engine.spec import FusionSpec
from engine.tokenization import PassageTokenizer
from pipelines.corpus import Unreadable, find_files, read_documents, units_of
from pipelines.evaluation import bits_per_byte
from pipelines.flow import scoring_window
from pipelines.passages import PassageCutter

#: A passage of an evaluation: its text, and whether the document ends with it.
HeldOutPassage = tuple[str, bool]


def evaluate_models(spec: FusionSpec, models: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Held-out bits per byte of each model in each domain of ``spec.evaluation.corpora``.

    Args:
        spec: of the run.
        models: label to checkpoint. All of them see the same passages, cut to fit the smallest window among them.

    Returns:
        Label to domain to bits per byte.
    """
    passages = held_out_passages(spec, list(models.values()))
    training = spec.training
    score = ray.remote(num_cpus=1, num_gpus=training.num_gpus_per_worker)(bits_per_byte)
    device = "cuda" if training.num_gpus_per_worker else "cpu"
    shared = ray.put(passages)
    scores = [score.remote(name, shared, spec.evaluation.batch_tokens, device) for name in models.values()]
    return dict(zip(models, ray.get(scores), strict=True))


def held_out_passages(spec: FusionSpec, checkpoints: Sequence[str]) -> dict[str, list[HeldOutPassage]]:
    """The passages of every held-out domain.

    Raises:
        RecordError: a file or row cannot be read and ``corpus.on_error`` is ``fail``.
    """
    windows = [scoring_window(checkpoint, spec.training.block_length) for checkpoint in checkpoints]
    cutter = PassageCutter([PassageTokenizer.load(checkpoint) for checkpoint in checkpoints], windows)
    return {domain: _passages(spec, paths, cutter) for domain, paths in spec.evaluation.corpora.items()}


def _passages(spec: FusionSpec, paths: Sequence[str], cutter: PassageCutter) -> list[HeldOutPassage]:
    passages: list[HeldOutPassage] = []
    for path in find_files(paths, "evaluation.corpora")[0]:
        for unit in units_of(path):
            for document in read_documents(unit, spec.corpus.text_column):
                if not isinstance(document, Unreadable):
                    texts = list(cutter.cut(document.text))
                    passages += [(text, index == len(texts) - 1) for index, text in enumerate(texts)]
                elif spec.corpus.on_error == "fail":
                    raise RecordError(f"{document}; mend it, or set corpus.on_error: skip to go on without it")
    return passages
