"""The whole data flow on one screen: corpus -> passages -> source models, one after the other -> fusion -> blocks.

A chain, not a join: each pool adds its columns to the same passages, and all pools work at once on different batches.
A row of the stream is a batch (``engine.records.batches``), as the reader has put it together
(``engine.blocks.arrangement``).
Nothing is stored in between. Every epoch and every restart of a Ray Data execution would load all source models anew,
so several passes over the corpus repeat its *units* inside one execution.
"""

from __future__ import annotations

from functools import partial

import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset

from actors.aligner import Aligner
from actors.monitor import Meter
from actors.reader import PassageReader
from actors.sources.optional_source import OptionalSource
from actors.sources.source_model import SourceModel
from engine.blocks.arrangement import Arrangement
from engine.blocks.packing import Packer
from engine.history.ledger import Ledger
from engine.spec import FusionSpec
from pipelines.stream.sizes import FlowPlan, mapping_sample
from pipelines.stream.stages import ONE_BATCH, on_batches, packed_shares, pool


def fused_blocks(spec: FusionSpec, flow: FlowPlan, learned: Ledger, monitor: ActorHandle) -> Dataset:
    """The stream of training blocks (``records.TRAINING_BLOCK``); a row is what a worker learns of a batch.

    Args:
        spec: of the run.
        flow: what ``pipelines.stream.sizes`` has derived from it.
        learned: passages that never enter the stream again.
        monitor: the run's ``RunMonitor`` actor.
    """
    stream = _read_passages(spec, flow, learned, monitor)
    for source in spec.source_models:
        stream = stream.map_batches(
            on_batches(SourceModel if source.required else OptionalSource),
            fn_constructor_kwargs={
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
    packer = Packer(spec.training.block_length, spec.fusion.top_k)
    return stream.map_batches(
        on_batches(Aligner, onward=partial(packed_shares, packer=packer, num_workers=spec.training.num_workers)),
        fn_constructor_kwargs={
            "target_checkpoint": flow.checkpoints[0],
            "sources": list(zip([source.name for source in spec.source_models], flow.checkpoints[1:], strict=True)),
            "fusion": spec.fusion,
            "alignment": spec.alignment,
            "sample": mapping_sample(spec, flow),
            "meter": Meter("align and fuse", monitor, spec.training.max_restarts),
            "conversations": bool(spec.corpus.messages_column),
        },
        **ONE_BATCH,
        num_cpus=flow.aligner_cpus,
        compute=ActorPoolStrategy(size=flow.aligner_replicas),
    )


def _read_passages(spec: FusionSpec, flow: FlowPlan, learned: Ledger, monitor: ActorHandle) -> Dataset:
    """Rows that are batches of passages (``records.PASSAGE``), all passes over the corpus in turn."""
    units = [
        {**unit, "corpus_pass": corpus_pass} for corpus_pass in range(spec.corpus.passes) for unit in flow.corpus_units
    ]
    readers = flow.reader_replicas
    shares = [{"share": share, "units": units[share::readers]} for share in range(readers)]
    return ray.data.from_items(shares, override_num_blocks=readers).map_batches(
        PassageReader,
        fn_constructor_kwargs={
            "checkpoints": flow.checkpoints,
            "windows": flow.windows,
            "overlap_bytes": spec.corpus.overlap_bytes,
            "text_column": spec.corpus.text_column,
            "messages_column": spec.corpus.messages_column,
            "on_error": spec.corpus.on_error,
            "learned": learned,
            "arrangement": Arrangement.of(spec, flow.batch_blocks),
            "meter": Meter("corpus", monitor, spec.training.max_restarts),
        },
        **ONE_BATCH,
        num_cpus=flow.reader_cpus,
        compute=ActorPoolStrategy(size=readers),
    )
