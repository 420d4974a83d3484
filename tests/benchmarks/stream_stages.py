"""CPU time of each stage of a stream when it runs alone: the same batches, one stage after the other, without Ray.

Every stage gets a process of its own, as it has in a run: vLLM changes torch for all of its process. The processes
share the cores as those of a run do.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
import torch.distributed

from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records import flat_values
from engine.records.batches import as_row, of_row
from engine.spec import FusionSpec
from pipelines.stream.sizes import FlowPlan, mapping_sample

if TYPE_CHECKING:
    from engine.blocks.packing import Packer

#: Optimizer steps that are done first and not counted: they compile, allocate and fill caches.
WARM_STEPS = 3


@dataclass(frozen=True)
class StageCost:
    """One stage alone over one pass of the corpus.

    Attributes:
        name: as in ``result.StageTotals``; ``pack`` for the packer, which a run does not count.
        cpu_seconds, passages: of what was counted. bytes_out: of the Arrow data that it hands on.
    """

    name: str
    cpu_seconds: float
    passages: int
    bytes_out: int

    def __add__(self, other: StageCost) -> StageCost:
        """Of both measurements together; what is handed on is the same in both."""
        return replace(self, cpu_seconds=self.cpu_seconds + other.cpu_seconds, passages=self.passages + other.passages)

    @property
    def cpu_seconds_per_passage(self) -> float:
        """All threads of its process together."""
        return self.cpu_seconds / self.passages


def costs_alone(spec: FusionSpec, flow: FlowPlan) -> tuple[list[StageCost], StageCost]:
    """All stages in the order of the stream; each works on what the one before has handed on.

    Training is done by as many workers as in the run; what it costs one worker that holds the whole target comes
    besides.
    """
    cost, batches = _alone(read, spec, flow)
    costs = [cost]
    for index in range(len(spec.source_models)):
        cost, batches = _alone(score, spec, index, batches)
        costs.append(cost)
    for stage, *arguments in ((align, flow), (pack,)):
        cost, batches = _alone(stage, spec, *arguments, batches)
        costs.append(cost)
    return [*costs, train(spec, batches, spec.training.num_workers)], train(spec, batches, 1)


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def read(spec: FusionSpec, flow: FlowPlan) -> tuple[StageCost, list[pa.Table]]:
    """The corpus, cut into passages."""
    from actors.monitor import NoMeter
    from actors.reader import PassageReader
    from engine.blocks.arrangement import Arrangement
    from engine.corpus.cutting import Cutter
    from engine.corpus.shards import in_passes

    shards = in_passes(flow.corpus_shards, passes=1)
    reader = PassageReader(
        corpus=spec.corpus,
        target_checkpoint=flow.checkpoints[0],
        cut=Cutter(flow.checkpoints, flow.windows, spec.corpus.overlap_bytes),
        shards=shards,
        arrange=Arrangement.of(spec, flow.batch_blocks),
        learned=Ledger(),
        meter=NoMeter(),
    )
    task = pa.Table.from_pylist([{"shards": [shard.number for shard in shards], "first_turn": 0}])
    batches = list(reader(task))
    started = time.process_time()
    for _ in reader(task):
        pass
    return _cost("corpus", time.process_time() - started, batches, batches), batches


def score(spec: FusionSpec, index: int, batches: Sequence[pa.Table]) -> tuple[StageCost, list[pa.Table]]:
    """The rows of source model ``index``."""
    from actors.sources.source_model import SourceModel

    torch.set_num_threads(1)
    source = spec.source_models[index]
    model = SourceModel(source=source, top_k=spec.fusion.top_k)
    return _timed(source.name, lambda row: _changed(row, model), batches)


def align(spec: FusionSpec, flow: FlowPlan, batches: Sequence[pa.Table]) -> tuple[StageCost, list[pa.Table]]:
    """All sources aligned, mapped and fused."""
    from actors.aligner import Aligner
    from actors.monitor import NoMeter

    sources = [(source.name, Checkpoint.of(source)) for source in spec.source_models]
    aligner = Aligner(
        target_checkpoint=Checkpoint.of(spec.target_model),
        sources=sources,
        fusion=spec.fusion,
        alignment=spec.alignment,
        sample=mapping_sample(spec, flow),
        meter=NoMeter(),
    )
    return _timed("align and fuse", lambda row: _changed(row, aligner), batches)


def pack(spec: FusionSpec, batches: Sequence[pa.Table]) -> tuple[StageCost, list[pa.Table]]:
    """Training blocks."""
    from engine.blocks.packing import Packer

    packer = Packer(spec.training.block_length, spec.fusion.top_k)
    return _timed("pack", lambda row: _packed(packer, row), batches)


def train(spec: FusionSpec, batches: Sequence[pa.Table], workers: int) -> StageCost:
    """Optimizer steps of so many workers that share the target."""
    steps = list(_steps(pa.concat_tables(batches).combine_chunks(), spec.training.global_batch_blocks))
    share = spec.training.global_batch_blocks // workers
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes,
    ):
        store = f"file://{os.path.join(folder, 'store')}"
        shares = [[_rows(step, rank * share, share) for step in steps] for rank in range(workers)]
        done = [processes.submit(_train, spec, shares[rank], store, rank, workers) for rank in range(workers)]
        seconds = sum(worker.result() for worker in done)
    passages = sum(len(flat_values(step["passage_ids"])[0]) for step in steps[WARM_STEPS:])
    return StageCost("train", seconds, passages, 0)


def _train(spec: FusionSpec, steps: Sequence[pa.Table], store: str, rank: int, workers: int) -> float:
    """One worker's CPU seconds."""
    from actors.training.journal import Journal
    from actors.training.loop import learn
    from actors.training.target_model import TargetModel

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    settings = (spec.training, spec.objective, spec.fusion.top_k, torch.device("cpu"))
    target = TargetModel(spec.target_model, *settings)
    journal = Journal()
    for table in steps[:WARM_STEPS]:
        learn(target, (table, 0.0), spec, journal)
    started = time.process_time()
    for table in steps[WARM_STEPS:]:
        learn(target, (table, 0.0), spec, journal)
    seconds = time.process_time() - started
    torch.distributed.destroy_process_group()
    return seconds


def _steps(blocks: pa.Table, blocks_per_step: int) -> Iterator[pa.Table]:
    """The blocks of each step, the incomplete last one left out."""
    for start in range(0, len(blocks) - blocks_per_step + 1, blocks_per_step):
        yield blocks.slice(start, blocks_per_step)


def _rows(table: pa.Table, start: int, rows: int) -> pa.Table:
    """Copied: a slice takes the whole table along when it is sent to another process."""
    return table.take(list(range(start, start + rows)))


def _changed(row: pa.Table, stage: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """A row whose passages a stage has changed."""
    passages, blocks = of_row(row)
    return as_row(stage(passages), blocks)


def _packed(packer: Packer, row: pa.Table) -> pa.Table:
    passages, blocks = of_row(row)
    return packer(passages, blocks.of_passages, blocks.entries)


def _timed(
    name: str, stage: Callable[[pa.Table], pa.Table], batches: Sequence[pa.Table]
) -> tuple[StageCost, list[pa.Table]]:
    """What a stage makes of the batches, and what it costs to make it a second time.

    What is made the second time is dropped at once, as in a run: memory that is kept is new memory for each batch.
    """
    made = [stage(batch) for batch in batches]
    started = time.process_time()
    for batch in batches:
        stage(batch)
    return _cost(name, time.process_time() - started, batches, made), made


def _cost(name: str, seconds: float, batches: Iterable[pa.Table], made: Iterable[pa.Table]) -> StageCost:
    passages = sum(len(of_row(batch)[0]) for batch in batches)
    return StageCost(name, seconds, passages, sum(table.nbytes for table in made))
