"""Checks across sections of a spec: settings that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import Fault


def cross_field_faults(sections: Mapping[str, Any]) -> Iterator[Fault]:
    """All faults between sections. A section with a fault of its own is absent, and its checks are skipped."""
    sources = sections.get("source_models")
    if sources is not None:
        yield from _repeated_names(sources)
        yield from _shrinking_pools(sources)
        yield from _vllm_alone(sources)
    if "objective" in sections and sources is not None:
        yield from _idle_loss(sources, sections["objective"].lm_loss_weight)
    if "training" in sections:
        yield from _uneven_batch(sections["training"])
        yield from _shared_gpu(sections["training"])
    if "corpus" in sections:
        yield from _one_corpus(sections["corpus"])
    if "training" in sections and "corpus" in sections:
        yield from _long_overlap(sections["corpus"].overlap_bytes, sections["training"].block_length)
    if "run" in sections and "corpus" in sections:
        yield from _many_readers(sections["run"].deterministic, sections["corpus"].readers)
    if "evaluation" in sections:
        yield from _blind_evaluation(sections["evaluation"])
        yield from _unusable_merges(sections["evaluation"].merges)
        yield from _repeated_labels(sections["evaluation"])
    if "training" in sections and "evaluation" in sections:
        yield from _long_stride(sections["evaluation"].stride_tokens, sections["training"].block_length)
    if "corpus" in sections and sections["corpus"].messages_column:
        yield from _not_for_conversations(sections["corpus"], sections.get("alignment"))
    if sources is not None and "fusion" in sections:
        yield from _single_source(sources, sections["fusion"])
        yield from _incomparable_gain(sources, sections["fusion"].arithmetic)
    if sources is not None and sections.get("pairwise") is not None:
        yield from _unusable_pairs(len(sources), sections["pairwise"], sections.get("fusion"))
    if "alignment" in sections and "fusion" in sections:
        yield from _methods_apart(sections["alignment"], sections["fusion"])


def _one_corpus(corpus: Any) -> Iterator[Fault]:
    if not corpus.paths and not corpus.domains:
        yield Fault("corpus.paths", "is missing", "name the files of the corpus, or its domains in corpus.domains")
    if corpus.paths and corpus.domains:
        yield Fault("corpus.domains", "are set, and corpus.paths too", "give one of them, and the paths to a domain")
    if corpus.exhausted == "repeat" and not corpus.domains:
        reason = "is repeat, but only domains run out one before the other"
        yield Fault("corpus.exhausted", reason, "set it to stop, or raise corpus.passes")


def _repeated_names(sources: Sequence[Any]) -> Iterator[Fault]:
    names = [source.name for source in sources]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Fault(
                f"source_models.{index}.name", f"{name!r} is taken by source_models.{names.index(name)}.name", "rename"
            )


def _shrinking_pools(sources: Sequence[Any]) -> Iterator[Fault]:
    for index, source in enumerate(sources):
        if 0 < source.most_replicas < source.replicas:
            reason = f"{source.most_replicas} is fewer than replicas, {source.replicas}"
            yield Fault(f"source_models.{index}.most_replicas", reason, "raise it, or set it to 0 for a fixed pool")


def _many_readers(deterministic: bool, readers: int) -> Iterator[Fault]:
    if deterministic and readers > 1:
        reason = f"{readers} readers give no fixed order of passages, which run.deterministic asks for"
        yield Fault("corpus.readers", reason, "set it to 1 or 0, or turn run.deterministic off")


def _vllm_alone(sources: Sequence[Any]) -> Iterator[Fault]:
    for index, source in enumerate(sources):
        parallel = source.tensor_parallel_size > 1
        if parallel and (source.backend != "vllm" or source.num_gpus != 1.0):
            where = f"source_models.{index}.tensor_parallel_size"
            yield Fault(where, f"is {source.tensor_parallel_size}", "it needs backend vllm and num_gpus 1")
        if source.batched_tokens and source.backend != "vllm":
            yield Fault(f"source_models.{index}.batched_tokens", "is vLLM's", "set backend to vllm, or it to 0")
        if source.quantization and source.backend != "vllm":
            yield Fault(f"source_models.{index}.quantization", "is vLLM's", "set backend to vllm, or leave it empty")


def _idle_loss(sources: Sequence[Any], lm_loss_weight: float) -> Iterator[Fault]:
    where = "objective.lm_loss_weight"
    if not sources and lm_loss_weight != 1.0:
        yield Fault(where, f"is {lm_loss_weight}, but without source models there is no fusion loss", "set it to 1.0")
    if sources and lm_loss_weight == 1.0:
        yield Fault(where, "is 1.0, so the source models would have no effect", "lower it, or set source_models=[]")


def _single_source(sources: Sequence[Any], fusion: Any) -> Iterator[Fault]:
    names = [source.name for source in sources]
    if fusion.rule == "single" and fusion.single_source not in names:
        yield Fault(
            "fusion.single_source", f"{fusion.single_source!r} is no source model", f"choose one of {', '.join(names)}"
        )
    if fusion.rule != "single" and fusion.single_source:
        yield Fault("fusion.single_source", f"is set, but fusion.rule is {fusion.rule}", "set fusion.rule to single")


def _incomparable_gain(sources: Sequence[Any], arithmetic: str) -> Iterator[Fault]:
    for index, source in enumerate(sources):
        if source.retire and arithmetic == "fusellm":
            reason = (
                "is true, but fusion.arithmetic fusellm compares nats per own token, not with the target's per byte"
            )
            yield Fault(f"source_models.{index}.retire", reason, "set it to false, or arithmetic to exact")


def _methods_apart(alignment: Any, fusion: Any) -> Iterator[Fault]:
    if alignment.tokens == "bytes" and fusion.arithmetic != "exact":
        reason = f"bytes cannot go with fusion.arithmetic {fusion.arithmetic}, which fuses whole rows of the sources"
        yield Fault("alignment.tokens", reason, "set it to byte_offset, or arithmetic to exact")
    if fusion.granularity == "token" and fusion.arithmetic == "fusellm":
        reason = "token cannot go with fusion.arithmetic fusellm, which compares whole passages"
        yield Fault("fusion.granularity", reason, "set it to passage, or arithmetic to exact")


def _long_overlap(overlap_bytes: int, block_length: int) -> Iterator[Fault]:
    if overlap_bytes > block_length:
        reason = f"{overlap_bytes} bytes of context leave no room for text in a passage of {block_length} tokens"
        yield Fault("corpus.overlap_bytes", reason, f"set it to {block_length} or less")


def _not_for_conversations(corpus: Any, alignment: Any) -> Iterator[Fault]:
    if corpus.overlap_bytes:
        reason = f"is {corpus.overlap_bytes}, but a conversation is cut between turns"
        yield Fault("corpus.overlap_bytes", reason, "set it to 0, or leave corpus.messages_column empty")
    if alignment and alignment.tokens not in ("bytes", "byte_offset"):
        reason = f"{alignment.tokens} aligns whole texts, but each model renders a conversation as a different text"
        yield Fault("alignment.tokens", reason, "set it to bytes, or leave corpus.messages_column empty")


def _uneven_batch(training: Any) -> Iterator[Fault]:
    if training.global_batch_blocks % training.num_workers:
        yield Fault(
            "training.global_batch_blocks",
            f"{training.global_batch_blocks} cannot be shared evenly by {training.num_workers} workers",
            "use a multiple of training.num_workers",
        )


def _shared_gpu(training: Any) -> Iterator[Fault]:
    if training.num_workers > 1 and 0.0 < training.num_gpus_per_worker < 1.0:
        yield Fault(
            "training.num_gpus_per_worker",
            f"{training.num_gpus_per_worker:g} cannot go with {training.num_workers} workers, which need a GPU each",
            "set it to 1, or num_workers to 1",
        )


def _unusable_merges(merges: Mapping[str, Any]) -> Iterator[Fault]:
    for label, merge in merges.items():
        where = f"evaluation.merges.{label}"
        method = merge.method
        if merge.adds_changes and not merge.base:
            reason = f"{method} adds changes to a base: name the model before the changes"
            yield Fault(f"{where}.base", "is missing", reason)
        if not merge.adds_changes and merge.base:
            yield Fault(f"{where}.base", f"is set, but {method} has none", "add it to models, or set method to ties")
        if method == "slerp" and len(merge.models) != 2:
            reason = f"has {len(merge.models)} models, slerp takes two"
            yield Fault(f"{where}.models", reason, "name two, or set method to linear")
        yield from _unusable_weights(where, merge, len(merge.models))


def _unusable_weights(where: str, merge: Any, num_models: int) -> Iterator[Fault]:
    method, weights = merge.method, list(merge.weights)
    if method in ("slerp", "sce") and weights:
        yield Fault(f"{where}.weights", f"are set, but {method} has none", "remove them, or set method to linear")
    if weights and (len(weights) != num_models or not sum(weights)):
        yield Fault(
            f"{where}.weights", f"{weights} cannot weigh {num_models} models", "give one for each model, not all 0"
        )


def _unusable_pairs(num_sources: int, merge: Any, fusion: Any) -> Iterator[Fault]:
    if num_sources < 2:
        yield Fault("pairwise", f"is set for {num_sources} source models", "name two or more, or set it to null")
    elif merge.method == "slerp" and num_sources != 2:
        yield Fault("pairwise.method", f"slerp merges two, there are {num_sources} source models", "set it to linear")
    if fusion is not None and fusion.rule == "single":
        reason = "is single, but under pairwise each source model is the only one of its run"
        yield Fault("fusion.rule", reason, "set it to uniform, or pairwise to null")
    yield from _unusable_weights("pairwise", merge, num_sources)


def _repeated_labels(evaluation: Any) -> Iterator[Fault]:
    for kind, others in (("merges", ("models",)), ("ensembles", ("models", "merges"))):
        for label in getattr(evaluation, kind):
            for other in others:
                if label in getattr(evaluation, other):
                    yield Fault(f"evaluation.{kind}.{label}", f"{label!r} is in evaluation.{other} too", "rename")


def _long_stride(stride_tokens: int, block_length: int) -> Iterator[Fault]:
    if stride_tokens > block_length:
        reason = f"{stride_tokens} is more than a window of {block_length} tokens (training.block_length)"
        yield Fault("evaluation.stride_tokens", reason, f"set it to {block_length} or less")


def _blind_evaluation(evaluation: Any) -> Iterator[Fault]:
    if evaluation.every_steps and not evaluation.corpora:
        what = f"is {evaluation.every_steps}, but evaluation.corpora is empty"
        yield Fault("evaluation.every_steps", what, "name held-out domains there, or set it to 0")
    if evaluation.patience and not evaluation.every_steps:
        what = f"is {evaluation.patience}, but evaluation.every_steps is 0"
        yield Fault("evaluation.patience", what, "raise every_steps, or set patience to 0")
