"""What one Ray Train worker does: take its share of the stream, step the target model, keep the journal, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.actor import ActorHandle

from actors.training import checkpoints
from actors.training.checkpoint_index import checkpoints_folder
from actors.training.collectives import longest
from actors.training.export import export
from actors.training.held_out_loss import HeldOutBlocks, with_held_out_loss
from actors.training.journal import Journal, commit, restore
from actors.training.step_counts import count, over_workers, step_record_of
from actors.training.target_model import TargetModel
from engine.history.result import StepRecord
from engine.history.stopping import best_step, reached
from engine.model_files.checkpoint import Checkpoint
from engine.records import SHARE, of_list, rows_of
from engine.spec import FusionSpec


def train_worker(
    spec: FusionSpec, monitor: ActorHandle, threads: int, held_out_domains: Callable[[], dict[str, HeldOutBlocks]]
) -> tuple[StepRecord, ...]:
    """The training loop of one worker; all workers run it in step.

    Args:
        spec: of the run.
        monitor: the run's ``RunMonitor`` actor.
        threads: of torch.
        held_out_domains: reads the held-out text; called if the target is evaluated while it is trained.

    Returns:
        The records of all steps, those before a restart included.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(spec.run.seed)  # adapters begin at random
    target = TargetModel(
        spec.target_model,
        spec.training,
        spec.objective,
        spec.fusion.top_k,
        ray.train.torch.get_device(),
    )
    journal = restore(target, spec.run.output_dir)
    writer = checkpoints.CheckpointWriter(checkpoints_folder(spec.run.output_dir), spec.training.keep_checkpoints)
    held_out = held_out_domains() if spec.evaluation.every_steps else {}
    blocks = _blocks(spec)
    saved_step, told_steps = target.step, len(journal.history)
    while reached(spec, journal.history) is None:
        _seed(spec.run.seed, target.step)
        if learn(target, next_blocks(blocks), len(spec.source_models), journal) is None:
            break
        if held_out and target.step % spec.evaluation.every_steps == 0:
            _evaluate(target, spec, held_out, journal)
        # The run's last step is always evaluated, and known as the last only when there is no other: it waits so long.
        told_steps = _tell(monitor, journal.history[: -1 if held_out else None], told_steps)
        if target.step % spec.training.checkpoint_every_steps == 0:
            commit(target, journal, writer)
            saved_step = target.step
    if held_out and journal.history and not journal.history[-1].held_out:
        _evaluate(target, spec, held_out, journal)
    _tell(monitor, journal.history, told_steps)
    if target.step != saved_step:  # a finished run that is started again must not write its only checkpoint anew
        commit(target, journal, writer)
    writer.finish()
    if not (spec.evaluation.patience and best_step(spec, journal.history)):  # else the best is there already
        export_target(target, spec)
    return tuple(journal.history)


def _evaluate(target: TargetModel, spec: FusionSpec, held_out: dict[str, HeldOutBlocks], journal: Journal) -> None:
    """Add the held-out loss to the last step's record; with patience, export the weights if they are the best so far.

    Exported at once, so that the best weights need no checkpoint that outlives all others.
    """
    record = with_held_out_loss(journal.history[-1], target, held_out, spec.training.micro_batch_blocks)
    journal.history[-1] = record
    if spec.evaluation.patience and best_step(spec, journal.history) == record.step:
        export_target(target, spec)


def export_target(target: TargetModel, spec: FusionSpec) -> None:
    export(target, Checkpoint.of(spec.target_model), os.path.join(spec.run.output_dir, "export"))


def _tell(monitor: ActorHandle, history: Sequence[StepRecord], told: int) -> int:
    """Report the steps behind the first ``told``; one worker speaks for all. Returns how many have been told then."""
    for record in history[told:] if torch.distributed.get_rank() == 0 else ():
        monitor.step.remote(record)
    return max(told, len(history))


def _seed(seed: int, step: int) -> None:
    """Draw the step's dropout, where the target has it, from the step itself: a run that goes on draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, torch.distributed.get_rank()]).generate_state(1)[0]))


def next_blocks(blocks: Iterator[pa.Table]) -> tuple[pa.Table | None, float]:
    """This worker's blocks of the next step, None when its share is used up, and the seconds it waited for them."""
    started = time.perf_counter()
    table = next(blocks, None)
    return table, time.perf_counter() - started


def _blocks(spec: FusionSpec) -> Iterator[pa.Table]:
    """This worker's share of the stream, one table a step; the last one may be smaller."""
    shard = ray.train.get_dataset_shard("train")
    rows = shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1)
    return in_steps(
        (of_list(row[SHARE]) for row in rows), spec.training.global_batch_blocks // spec.training.num_workers
    )


def in_steps(shares: Iterable[pa.Table], blocks_per_step: int) -> Iterator[pa.Table]:
    """Training blocks as they come, cut into tables of so many; the last one may be smaller."""
    waiting: pa.Table | None = None
    for share in shares:
        waiting = pa.concat_tables([waiting, share]) if waiting else share
        while len(waiting) >= blocks_per_step:
            yield waiting.slice(0, blocks_per_step).combine_chunks()
            waiting = waiting.slice(blocks_per_step)
    if waiting:
        yield waiting.combine_chunks()


def learn(
    target: TargetModel, waited: tuple[pa.Table | None, float], num_sources: int, journal: Journal
) -> StepRecord | None:
    """One optimizer step over all workers, written into the journal; None when every worker's share is used up."""
    table, own_wait_seconds = waited
    started = time.perf_counter()
    counts, wait_seconds = over_workers(count(table, num_sources), own_wait_seconds, target.device)
    if not counts.places:
        return None
    losses = target.train_step(table)
    # Who has waited less for data has waited here for the others: the longest wait is in the time already.
    seconds = own_wait_seconds + time.perf_counter() - started
    record = step_record_of(target.step, losses, counts, seconds, wait_seconds)
    record = replace(record, elapsed_seconds=longest(time.monotonic() - journal.began, target.device))
    journal.history.append(record)
    if table is not None:
        journal.fresh += [str(passage_id) for row in rows_of(table["passage_ids"]) for passage_id in row]
    return record
