"""The whole data flow on one screen: the corpus, cut and arranged; source models, one after the other; fusion; blocks.

A chain, not a join: each pool adds its columns to the same passages, and all pools work at once on different batches.
A row of the stream is a batch (``engine.records.batches``). Nothing is stored in between. Every epoch and every restart
of a Ray Data execution would load all source models again, so several passes over the corpus repeat its *shards* inside
one execution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset

from actors.aligner import Aligner
from actors.mixed_reader import MixedPassageReader
from actors.monitor import Meter
from actors.reader import PassageReader
from actors.sources.optional_source import OptionalSource
from actors.sources.source_model import SourceModel
from engine.blocks.arrangement import Arrangement
from engine.blocks.packing import Packer
from engine.corpus.cutting import Cutter
from engine.corpus.domains import Domain, shard_numbers
from engine.corpus.shards import Shard, in_passes
from engine.history.ledger import Ledger
from engine.history.result import StepRecord
from engine.history.retirement import retired_sources
from engine.history.totals import bytes_by_domain
from engine.spec import CorpusSpec, FusionSpec, SourceModelSpec
from pipelines.stream.sizes import FlowPlan
from pipelines.stream.stages import ONE_BATCH, AlignerStage, PassageReaderStage, SourceModelStage, pool, reader_pool


def fused_blocks(
    spec: FusionSpec,
    flow: FlowPlan,
    sample: Sequence[str],
    learned: Ledger,
    history: Sequence[StepRecord],
    monitor: ActorHandle,
) -> Dataset:
    """The stream of training blocks (``records.TRAINING_BLOCK``); a row is what one worker learns of a batch.

    Args:
        spec: of the run.
        flow: the sizes that ``pipelines.stream.sizes`` has derived from it.
        sample: text that a statistical mapping is counted on, see ``sizes.mapping_sample``.
        learned: training blocks that are never learned again, and where the reading of the others begins.
        history: of the steps so far, for the bytes of each domain and the retired source models.
        monitor: the run's ``RunMonitor`` actor.
    """
    retired = retired_sources(history)
    if spec.corpus.domains:
        tasks, reader = _mixed_reading(spec, flow, learned, bytes_by_domain(spec, history))
    else:
        tasks, reader = _reading(spec, flow, learned)
    stream = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    stream = stream.map_batches(
        PassageReaderStage,
        fn_constructor_kwargs={
            **reader,
            "corpus": spec.corpus,
            "target_checkpoint": flow.checkpoints[0],
            "cut": Cutter(flow.checkpoints, flow.windows, spec.corpus.overlap_bytes),
            "arrange": Arrangement.of(spec, flow.batch_blocks),
            "learned": learned,
            "meter": Meter("corpus", monitor, spec.training.max_restarts),
        },
        **ONE_BATCH,
        num_cpus=flow.reader_cpus,
        compute=reader_pool(flow.reader_replicas),
    )
    for source in spec.source_models:
        if source.name not in retired:
            stream = _scored(stream, source, spec, monitor)
    return stream.map_batches(
        AlignerStage,
        fn_constructor_kwargs={
            "align_and_fuse": Aligner,
            "target_checkpoint": flow.checkpoints[0],
            "sources": list(zip([source.name for source in spec.source_models], flow.checkpoints[1:], strict=True)),
            "fusion": spec.fusion,
            "alignment": spec.alignment,
            "sample": sample,
            "conversations": bool(spec.corpus.messages_column),
            "retired": tuple(retired),
            "meter": Meter("align and fuse", monitor, spec.training.max_restarts),
            "pack": Packer(spec.training.block_length, spec.fusion.top_k),
            "share_out_among": spec.training.num_workers,
        },
        **ONE_BATCH,
        num_cpus=flow.aligner_cpus,
        compute=ActorPoolStrategy(size=flow.aligner_replicas),
    )


def _scored(stream: Dataset, source: SourceModelSpec, spec: FusionSpec, monitor: ActorHandle) -> Dataset:
    """The stream with one source model's columns."""
    return stream.map_batches(
        SourceModelStage,
        fn_constructor_kwargs={
            "score": SourceModel if source.required else OptionalSource,
            "source": source,
            "top_k": spec.fusion.top_k,
            "meter": Meter(source.name, monitor, source.max_restarts, "source_models max_restarts"),
        },
        **ONE_BATCH,
        num_cpus=source.num_cpus,
        num_gpus=source.num_gpus * source.tensor_parallel_size,
        label_selector=spec.cluster.source_model_labels,
        compute=pool(source),
    )


def _reading(spec: FusionSpec, flow: FlowPlan, learned: Ledger) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The readers' tasks, and what a reader is made of: it reads one shard after the other."""
    shards = in_passes(flow.corpus_shards, spec.corpus.passes)
    tasks = reading_tasks(shards, learned, in_order=spec.run.deterministic)
    return tasks, {"read": PassageReader, "shards": shards}


def _mixed_reading(
    spec: FusionSpec, flow: FlowPlan, learned: Ledger, learned_bytes: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same where the corpus has domains: a reader reads a shard of each side by side."""
    lanes = reading_lanes(spec.corpus, flow.domains, learned, flow.reader_replicas)
    tasks = [{"lane": lane, "lanes": lanes} for lane in range(lanes)]
    return tasks, {"read": MixedPassageReader, "domains": flow.domains, "learned_bytes": learned_bytes}


def keeps_order(spec: FusionSpec, readers: int) -> bool:
    """Whether batches keep their order through all stages; a slow replica then delays the others.

    A deterministic run keeps it. So does one that reads text again: a small corpus is on its way several times at once,
    and its second pass would be learned before its first, in which the gain of the fusion is measured. Readers that
    read a mixture side by side keep each its own order; each has enough text between two passes over the same.
    """
    reads_again = spec.corpus.passes > 1 or spec.corpus.exhausted == "repeat"
    return spec.run.deterministic or (reads_again and (readers == 1 or not spec.corpus.domains))


def reading_lanes(corpus: CorpusSpec, domains: Sequence[Domain], learned: Ledger, readers: int) -> int:
    """How many readers can read side by side: each needs a shard of every domain, or it could not keep the shares."""
    if corpus.exhausted == "repeat":
        return readers
    left = [
        sum(not learned.is_done(number) for number in shard_numbers(domains, index, corpus.passes))
        for index in range(len(domains))
    ]
    return max(1, min(readers, *left))


def reading_tasks(shards: Sequence[Shard], learned: Ledger, in_order: bool) -> list[dict[str, Any]]:
    """What readers do, one task at a time: a shard, or all of them in order; those that are learned are left out.

    Blocks are dealt out to the training workers in turns, which count from the first shard's beginning. Only a reader
    of all shards can count so; otherwise batches overtake each other, and there is no order to keep.
    """
    left = [shard.number for shard in shards if not learned.is_done(shard.number)]
    if in_order or not left:
        return [{"shards": left, "first_turn": learned.blocks_done}]
    return [{"shards": [number], "first_turn": 0} for number in left]
