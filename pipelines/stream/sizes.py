"""The numbers of a run that follow from its spec, its models and its corpus; ``plan`` shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from actors.sources.backends.key_value_cache import least_cache_bytes, token_bytes
from engine.corpus.domains import Domain
from engine.corpus.files import CorpusUnit, find_corpus, units_of
from engine.corpus.sample import sample
from engine.corpus.shards import shards_of
from engine.corpus.windows import scoring_window, text_window
from engine.errors import Fault, PreflightError, StoreError
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import context_limit, load_configuration
from engine.model_files.inspection import field_of
from engine.spec import FusionSpec, SourceModelSpec
from engine.text.chat import ChatTemplate
from engine.text.tokenization import PassageTokenizer
from pipelines.cluster.needs import Need, total_cpus, total_gpus
from pipelines.stream.model_checks import collect, model_faults, vocabulary_rows, weight_faults
from pipelines.stream.needs import ALIGNER_CPUS, READER_CPUS, stream_needs

#: Tokens of one batch: several steps of an engine, as the last one is partly empty. A CPU's has 2,048 tokens, a GPU's
#: up to 16,384; more would only wait longer before each stage.
BATCH_TOKENS = {"cpu": 16_384, "cuda": 32_768}

#: Largest size of a batch that has passed all sources, a row of the stream; several wait before each stage.
MOST_BATCH_BYTES = 100 * 10**6

#: Bytes of one kept entry on its way: an int32 id and a float16 log-probability.
BYTES_PER_ENTRY = 6

#: Files that are opened at the same time for their row groups: of ten thousand in a store, each takes a round trip.
FILES_AT_ONCE = 32

#: Source replicas that one reader keeps busy.
REPLICAS_A_READER = 4


@dataclass(frozen=True)
class FlowPlan:
    """Sizes of the stream.

    Attributes:
        domains: of the corpus; one without a name where it has none.
        checkpoints, windows: of the target and all sources: where their files are, and the text tokens that each can
            take in one passage.
        batch_blocks: training blocks whose passages are one call of a source model, an aligner or the packer; as many
            for one training worker as for the other, or fewer than there are workers.
        reader_replicas, reader_cpus, aligner_replicas, aligner_cpus: of the stages between the models.
        needs: what Ray must be able to reserve for all stages and workers at once.
    """

    domains: tuple[Domain, ...]
    checkpoints: tuple[Checkpoint, ...]
    windows: tuple[int, ...]
    batch_blocks: int
    reader_replicas: int
    reader_cpus: float
    aligner_replicas: int
    aligner_cpus: float
    needs: tuple[Need, ...]

    @property
    def logical_cpus(self) -> float:
        """Logical CPUs of all stages and workers."""
        return total_cpus(self.needs)

    @property
    def gpus(self) -> float:
        """GPUs of all stages and workers."""
        return total_gpus(self.needs)

    @property
    def corpus_shards(self) -> tuple[tuple[CorpusUnit, ...], ...]:
        """The units of each shard of the corpus, in one pass."""
        return tuple(units for domain in self.domains for units in domain.shards)

    @property
    def corpus_units(self) -> list[CorpusUnit]:
        """All units of the corpus, in one pass."""
        return [unit for units in self.corpus_shards for unit in units]


def derive_flow(spec: FusionSpec, further: Sequence[Fault] = ()) -> FlowPlan:
    """Look at the models' files and the corpus' files and derive all sizes.

    Args:
        further: faults found elsewhere, to be listed with those found here.

    Raises:
        PreflightError: lists every model that cannot be loaded, every path without files, and ``further``; or names a
            file that its store does not give.
    """
    faults: list[Fault] = []
    files, missing = find_corpus(spec.corpus)
    faults += missing
    window_of_block = partial(scoring_window, limit=spec.training.block_length)
    windows = [_window(faults, "target_model", Checkpoint.of(spec.target_model), window_of_block)]
    for index, source in enumerate(spec.source_models):
        where, look = f"source_models.{index}", partial(_source_window, limit=source.max_context_tokens)
        windows.append(_window(faults, where, Checkpoint.of(source), look))
        if windows[-1] is not None:
            faults += [*_uneven_heads(where, source), *_few_tokens(source, spec.fusion.top_k)]
            faults += _small_cache(where, source)
    for label, path in spec.evaluation.models.items():
        _window(faults, f"evaluation.models.{label}", Checkpoint(path), window_of_block)
    _check_chat_templates(spec, faults)
    faults += further
    if not faults:  # takes longer than all the rest
        faults += _weight_faults(spec)
    if faults:
        raise PreflightError(faults)
    replicas = sum(source.replicas for source in spec.source_models)
    domains = _domains(spec, files)
    # One order of passages has one reader: see ``engine.blocks.arrangement``.
    wanted = 1 if spec.run.deterministic else spec.corpus.readers or replicas // REPLICAS_A_READER
    readers = max(1, min(wanted, *(len(domain.shards) for domain in domains)))
    aligners = max(1, replicas // 2)
    return FlowPlan(
        domains=domains,
        checkpoints=tuple(Checkpoint.of(model) for model in (spec.target_model, *spec.source_models)),
        windows=tuple(windows),
        batch_blocks=_batch_blocks(spec),
        reader_replicas=readers,
        reader_cpus=READER_CPUS,
        aligner_replicas=aligners,
        aligner_cpus=ALIGNER_CPUS,
        needs=stream_needs(spec, readers, aligners),
    )


def mapping_sample(spec: FusionSpec, flow: FlowPlan) -> list[str]:
    """The text that a statistical vocabulary mapping is counted on; empty for the other mappings."""
    if spec.alignment.vocabulary != "statistical":
        return []
    return sample(flow.corpus_units, spec.corpus.text_column, spec.corpus.messages_column, spec.alignment.sample_bytes)


def _domains(spec: FusionSpec, files: Mapping[str, Sequence[str]]) -> tuple[Domain, ...]:
    """The domains of the corpus; ``files`` has those of each in the order of their names.

    Raises:
        PreflightError: names the first file that its store does not give; the next ones are not asked for.
    """
    weights = {name: domain.weight for name, domain in spec.corpus.domains.items()} or {"": 1.0}
    return tuple(Domain(name, weights[name], shards_of(_units(name, paths))) for name, paths in files.items())


def _units(domain: str, paths: Sequence[str]) -> list[CorpusUnit]:
    """The units of all files of a domain, whose name is empty for a corpus without domains."""
    try:
        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            return [unit for found in threads.map(units_of, paths) for unit in found]
    except StoreError as error:
        where = f"corpus.domains.{domain}.paths" if domain else "corpus.paths"
        raise PreflightError([Fault(where, str(error))]) from None


def _batch_blocks(spec: FusionSpec) -> int:
    """Training blocks that hold about ``BATCH_TOKENS``.

    Fewer, if the columns of all sources would be more than ``MOST_BATCH_BYTES``; at least one. A deterministic mixture
    has whole batches in each step: a batch that a checkpoint cut in two would be scored in other company afterwards,
    since its blocks are of several shards.
    """
    on_gpu = any(source.num_gpus for source in spec.source_models)
    tokens = BATCH_TOKENS["cuda" if on_gpu else "cpu"]
    token_bytes = BYTES_PER_ENTRY * spec.fusion.top_k * max(1, len(spec.source_models))
    blocks = min(tokens, MOST_BATCH_BYTES // token_bytes) // spec.training.block_length
    workers = spec.training.num_workers
    blocks = max(1, blocks if blocks < workers else blocks // workers * workers)
    if not (spec.corpus.domains and spec.run.deterministic):
        return blocks
    step = spec.training.global_batch_blocks
    sizes = [size for size in range(1, blocks + 1) if step % size == 0 and (size < workers or size % workers == 0)]
    return sizes[-1]


def _window(faults: list[Fault], where: str, checkpoint: Checkpoint, look: Callable[[Checkpoint], int]) -> int | None:
    """The window of a model, or None and its faults."""
    found = model_faults(where, checkpoint)
    faults += found
    return None if found else collect(faults, field_of(where), "configuration", look, checkpoint)


def _weight_faults(spec: FusionSpec) -> list[Fault]:
    """Everything that keeps the weights of a model of the spec from being loaded."""
    faults = weight_faults("target_model", Checkpoint.of(spec.target_model))
    for index, source in enumerate(spec.source_models):
        faults += weight_faults(f"source_models.{index}", Checkpoint.of(source), source.backend)
    for label, path in spec.evaluation.models.items():
        faults += weight_faults(f"evaluation.models.{label}", Checkpoint(path))
    return faults


def _source_window(checkpoint: Checkpoint, limit: int) -> int:
    return text_window(checkpoint, context_limit(load_configuration(checkpoint), limit, generated_tokens=1))


def _uneven_heads(where: str, source: SourceModelSpec) -> list[Fault]:
    """A fault if the GPUs of one replica cannot share its attention heads evenly, which vLLM asks for."""
    if source.tensor_parallel_size == 1:
        return []
    size, config = source.tensor_parallel_size, load_configuration(Checkpoint.of(source)).get_text_config()
    heads = getattr(config, "num_attention_heads", size)  # a model without attention has no heads to share
    if heads % size == 0:
        return []
    divisors = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
    reason = f"{size} GPUs cannot share the {heads} attention heads of {source.checkpoint} evenly"
    return [Fault(f"{where}.tensor_parallel_size", reason, f"choose one of {divisors}")]


def _small_cache(where: str, source: SourceModelSpec) -> list[Fault]:
    """A fault if the key-value cache that the spec asks for cannot hold one passage, or a step of the spec's size."""
    if not source.kv_cache_bytes or source.backend != "vllm":
        return []
    config = load_configuration(Checkpoint.of(source))
    context = context_limit(config, source.max_context_tokens, generated_tokens=1)
    least = least_cache_bytes(source, config, context)
    held = f"{source.kv_cache_bytes:,} bytes cannot hold one"
    where = f"{where}.kv_cache_bytes"
    if source.kv_cache_bytes < least:
        reason = f"{held} passage of {context} tokens, which takes {least:,}"
        return [Fault(where, reason, "raise it, set it to 0 to derive it, or lower max_context_tokens")]
    step = source.batched_tokens * token_bytes(source, config)
    if source.kv_cache_bytes < step and least:  # vLLM needs less for layers that are not counted in ``least``
        reason = f"{held} step of {source.batched_tokens} tokens, which takes {step:,}"
        return [Fault(where, reason, "raise it, set it to 0 to derive it, or lower batched_tokens")]
    return []


def _few_tokens(source: SourceModelSpec, top_k: int) -> list[Fault]:
    """A fault if a source has fewer tokens than entries are kept of each of its rows."""
    tokens = vocabulary_rows(Checkpoint.of(source))
    if tokens >= top_k:
        return []
    return [Fault("fusion.top_k", f"{top_k} is more than the {tokens} tokens of {source.name}", "lower it")]


def _check_chat_templates(spec: FusionSpec, faults: list[Fault]) -> None:
    """A template that a spec names must be there; every model of a conversation needs one that can be learned from."""
    checkpoints = {"target_model": Checkpoint.of(spec.target_model)}
    for index, source in enumerate(spec.source_models):
        checkpoints[f"source_models.{index}"] = Checkpoint.of(source)
    unread = {fault.where for fault in faults}
    remedy = "give a Jinja chat template, or save one with the tokenizer"
    for where, checkpoint in checkpoints.items():
        if f"{where}.checkpoint" in unread:
            continue
        if spec.corpus.messages_column:
            collect(faults, f"{where}.chat_template", "chat template", _load_chat_template, checkpoint, remedy)
        elif checkpoint.chat_template:
            collect(faults, f"{where}.chat_template", "chat template", PassageTokenizer.load, checkpoint, remedy)
    for label, path in spec.evaluation.models.items() if spec.evaluation.corpora else ():
        where = f"evaluation.models.{label}"
        if spec.corpus.messages_column and where not in unread:
            collect(faults, where, "chat template", _load_chat_template, Checkpoint(path), remedy)


def _load_chat_template(checkpoint: Checkpoint) -> ChatTemplate:
    return ChatTemplate.of(PassageTokenizer.load(checkpoint))
