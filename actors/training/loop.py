"""The work of one Ray Train worker: take its share of the stream, step the target model, save, evaluate, export."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from actors.training.checkpoint_index import checkpoints_folder
from actors.training.checkpoints import CheckpointWriter
from actors.training.collectives import longest
from actors.training.export import export
from actors.training.held_out_loss import HeldOutBlocks, with_held_out_loss
from actors.training.journal import Journal, commit, restore
from actors.training.looks import Looks
from actors.training.preemption import PreemptionNotices
from actors.training.step_counts import count, over_workers, step_record
from actors.training.target_model import TargetModel
from engine.errors import TrainingError
from engine.history.ledger import ENTRY_NUMBERS
from engine.history.result import StepRecord
from engine.history.retirement import to_retire
from engine.history.stopping import best_step, reached
from engine.model_files.checkpoint import Checkpoint
from engine.records import flat_values
from engine.spec import FusionSpec


def train_worker(
    spec: FusionSpec,
    monitor: Any,
    threads: int,
    shares: Iterable[pa.Table],
    held_out_domains: Callable[[], Mapping[str, HeldOutBlocks]],
) -> tuple[StepRecord, ...]:
    """Train the target model to the end of the run, or to the checkpoint at which a source model is retired.

    All workers do the same steps at the same time.

    Args:
        spec: of the run.
        monitor: handle of the run's ``RunMonitor`` actor.
        threads: of torch.
        shares: the training blocks of this worker, one table for each batch of the stream.
        held_out_domains: reads the held-out text; called only if the target is evaluated during training.

    Returns:
        The records of all steps, those before a restart included.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(spec.run.seed)  # adapters begin at random
    device = ray.train.torch.get_device()
    sections, num_domains = (spec.target_model, spec.training, spec.objective), len(spec.corpus.domains)
    target = TargetModel(*sections, spec.fusion.top_k, device, num_domains)
    journal = restore(target, spec.run.output_dir)
    folder, training = checkpoints_folder(spec.run.output_dir), spec.training
    reports = StepReports(monitor, len(journal.history))
    writer = CheckpointWriter(folder, training.keep_checkpoints, training.collective_timeout_hours, reports.commit)
    notices = PreemptionNotices()
    held_out = held_out_domains() if spec.evaluation.every_steps else {}
    looks = Looks(is_wanted=dist.get_rank() == 0)
    tables = in_steps(shares, spec.training.global_batch_blocks // spec.training.num_workers)
    while reached(spec, journal.history) is None:
        _seed(spec.run.seed, target.step)
        if learn(target, next_table(tables), spec, journal, looks, reports) is None:
            break
        if held_out and target.step % spec.evaluation.every_steps == 0:
            _evaluate(target, spec, held_out, journal)
        # With held-out text the last step waits: the run's last one is evaluated too, as soon as it is known as such.
        is_due = target.step % training.checkpoint_every_steps == 0
        if is_due and reached(spec, journal.history) is None:
            journal.history[-1] = replace(journal.history[-1], retired=to_retire(spec, journal.history))
        reports.send(journal.history[:-1] if held_out else journal.history)
        if notices.is_new() or is_due:
            commit(target, journal, writer, spec.run.output_dir)
        if journal.history[-1].retired:
            writer.finish()
            reports.send(journal.history)
            return tuple(journal.history)
    if held_out and journal.history and not journal.history[-1].held_out:
        _evaluate(target, spec, held_out, journal)
    reports.send(journal.history)
    if target.step != journal.saved_step:  # a finished run that is started again keeps its only checkpoint as it is
        commit(target, journal, writer, spec.run.output_dir)
    writer.finish()
    is_exported = spec.evaluation.patience and best_step(spec, journal.history)
    if journal.history and not is_exported:
        _export(target, spec)
    return tuple(journal.history)


class StepReports:
    """Sends each step's record to the run monitor once, from the first worker, which knows those of all.

    Args:
        monitor: handle of the run's ``RunMonitor`` actor.
        sent: records at the head of the history that an earlier start of the run has sent.
    """

    def __init__(self, monitor: Any, sent: int):
        self._monitor = monitor
        self._sent = sent

    def send(self, history: Sequence[StepRecord]) -> None:
        """Send the records after those that were sent before."""
        if dist.get_rank() == 0:
            for record in history[self._sent :]:
                self._monitor.step.remote(record)
        self._sent = max(self._sent, len(history))

    def inspect(self, passages: Sequence[dict[str, Any]]) -> None:
        """Send what the sources and the target say of some tokens (``actors.training.looks``)."""
        if passages:
            self._monitor.inspect.remote(passages)

    def commit(self, step: int) -> None:
        """Report that the checkpoint of a step is complete; only the first worker knows that."""
        self._monitor.commit.remote(step)

    def refuse(self) -> None:
        """Report that a step was not taken, since its loss or its gradient was not finite."""
        if dist.get_rank() == 0:
            self._monitor.refuse_step.remote()


def learn(
    target: TargetModel,
    waited: tuple[pa.Table | None, float],
    spec: FusionSpec,
    journal: Journal,
    looks: Looks | None = None,
    reports: StepReports | None = None,
) -> StepRecord | None:
    """Take one optimizer step over all workers and add it to the journal.

    Args:
        target: on this worker.
        waited: this worker's blocks and the seconds that it waited for them (``next_table``).
        spec: of the run.
        journal: gets the step and the ledger entries of this worker's blocks.
        looks, reports: choose and send the passages that the report shows token by token; None shows none.

    Returns:
        The step's record; None if no worker has blocks left.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    table, own_wait_seconds = waited
    started = time.perf_counter()
    own_counts = count(table, len(spec.source_models), len(spec.corpus.domains))
    counts, wait_seconds = over_workers(own_counts, own_wait_seconds, target.device)
    if not counts.places:
        return None
    step = target.step + 1
    asked = looks.choose(table, step, target.block_length) if looks is not None else None
    try:
        losses = target.train_step(table, asked)
    except TrainingError:  # not finite, on all workers
        if reports is not None:
            reports.refuse()
        raise
    if looks is not None and reports is not None:
        reports.inspect(looks.descriptions(losses.own, step))
    # A worker that has waited less for data has waited here for the others: the time holds the longest wait already.
    seconds = own_wait_seconds + time.perf_counter() - started
    elapsed_seconds = longest(time.monotonic() - journal.began, target.device)
    record = step_record(target.step, losses, counts, seconds, wait_seconds, elapsed_seconds)
    numbers = [] if table is None else flat_values(table["ledger_entry"])[0]
    journal.add(record, np.reshape(numbers, (-1, ENTRY_NUMBERS)).astype(np.int64))
    return record


def next_table(tables: Iterator[pa.Table]) -> tuple[pa.Table | None, float]:
    """This worker's blocks of the next step, None when its share is used up, and the seconds it waited for them."""
    started = time.perf_counter()
    table = next(tables, None)
    return table, time.perf_counter() - started


def in_steps(shares: Iterable[pa.Table], blocks_per_step: int) -> Iterator[pa.Table]:
    """Cut training blocks into one table a step, in their order; the last table may be smaller."""
    waiting: pa.Table | None = None
    for share in shares:
        waiting = pa.concat_tables([waiting, share]) if waiting else share
        while len(waiting) >= blocks_per_step:
            yield waiting.slice(0, blocks_per_step).combine_chunks()
            waiting = waiting.slice(blocks_per_step)
    if waiting:
        yield waiting.combine_chunks()


def _seed(seed: int, step: int) -> None:
    """Draw a step's dropout from the number of the step: a run that goes on from a checkpoint draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, dist.get_rank()]).generate_state(1)[0]))


def _evaluate(target: TargetModel, spec: FusionSpec, held_out: Mapping[str, HeldOutBlocks], journal: Journal) -> None:
    """Add the held-out loss to the last step's record; with patience, export the weights if they are the best so far.

    The export comes at once, so that the best weights need no checkpoint that outlives all others.
    """
    record = with_held_out_loss(journal.history[-1], target, held_out, spec.training.micro_batch_blocks)
    journal.history[-1] = record
    if spec.evaluation.patience and best_step(spec, journal.history) == record.step:
        _export(target, spec)


def _export(target: TargetModel, spec: FusionSpec) -> None:
    folder = os.path.join(spec.run.output_dir, "export")
    export(target, Checkpoint.of(spec.target_model), folder, spec.training.export_dtype)
