"""What one Ray Train worker does: take its share of the stream, step the target model, keep the journal, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.actor import ActorHandle

from actors import checkpoints
from actors.agreement import longest, of_all_workers
from actors.checkpoint_folders import checkpoints_folder, latest
from actors.held_out_loss import HeldOutBlocks, with_held_out_loss
from actors.target_model import StepLosses, TargetModel
from engine.checkpoint_files import with_chat_template
from engine.ledger import Ledger
from engine.records import SHARE, flat_values, of_list, rows_of
from engine.result import StepRecord
from engine.spec import FusionSpec
from engine.stopping import best_step, reached


@dataclass
class Journal:
    """What a checkpoint carries beside the weights.

    Attributes:
        history: the records of all steps.
        ledger: the passages of all checkpoints so far, over all workers.
        fresh: passages that this worker has learned since the last checkpoint.
        began: when the training would have begun, by ``time.monotonic``, had it never been interrupted.
    """

    history: list[StepRecord] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    fresh: list[str] = field(default_factory=list)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.monotonic() - (self.history[-1].elapsed_seconds if self.history else 0.0)


@dataclass(frozen=True)
class StepCounts:
    """Sums over the blocks of one step; ``per_source`` is [5, N]: nats, bytes, wins, covered rows, left out."""

    tokens: int
    passages: int
    bytes: int
    places: int
    per_source: np.ndarray


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
        _export(target, spec)
    return tuple(journal.history)


def _evaluate(target: TargetModel, spec: FusionSpec, held_out: dict[str, HeldOutBlocks], journal: Journal) -> None:
    """Add the held-out loss to the last step's record; with patience, export the weights if they are the best so far.

    Exported at once, so that the best weights need no checkpoint that outlives all others.
    """
    record = with_held_out_loss(journal.history[-1], target, held_out, spec.training.micro_batch_blocks)
    journal.history[-1] = record
    if spec.evaluation.patience and best_step(spec, journal.history) == record.step:
        _export(target, spec)


def _export(target: TargetModel, spec: FusionSpec) -> None:
    tokenizer = with_chat_template(spec.target_model.checkpoint, spec.target_model.chat_template)
    checkpoints.export(target, tokenizer, os.path.join(spec.run.output_dir, "export"))


def _tell(monitor: ActorHandle, history: Sequence[StepRecord], told: int) -> int:
    """Report the steps behind the first ``told``; one worker speaks for all. Returns how many have been told then."""
    for record in history[told:] if torch.distributed.get_rank() == 0 else ():
        monitor.step.remote(record)
    return max(told, len(history))


def _seed(seed: int, step: int) -> None:
    """Draw the step's dropout, where the target has it, from the step itself: a run that goes on draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, torch.distributed.get_rank()]).generate_state(1)[0]))


def restore(target: TargetModel, output_dir: str) -> Journal:
    """Bring the target to the last complete checkpoint and return its journal; a new one if there is none."""
    folder = latest(checkpoints_folder(output_dir))
    if folder is None:
        return Journal()
    state = checkpoints.load(target, folder)
    return Journal([_step_record(record) for record in state["history"]], Ledger(state["learned"]))


def commit(target: TargetModel, journal: Journal, writer: checkpoints.CheckpointWriter) -> None:
    """Save weights, optimizer and journal as one checkpoint; all workers take part."""
    shares: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, journal.fresh)
    for share in shares:
        journal.ledger.learn(share)
    journal.fresh.clear()
    history = [asdict(record) for record in journal.history]
    writer.save(target, {"history": history, "learned": journal.ledger.passage_ids()})


def next_blocks(blocks: Iterator[pa.Table]) -> tuple[pa.Table | None, float]:
    """This worker's blocks of the next step, None when its share is used up, and the seconds it waited for them."""
    started = time.perf_counter()
    table = next(blocks, None)
    return table, time.perf_counter() - started


def count(table: pa.Table | None, num_sources: int) -> StepCounts:
    """The sums that a step's record shows, over this worker's blocks."""
    if table is None:
        return StepCounts(0, 0, 0, 0, np.zeros((5, num_sources)))
    num_bytes = flat_values(table["passage_bytes"])[0]
    shape = (len(num_bytes), num_sources)
    cross_entropy = flat_values(table["cross_entropy"])[0].reshape(shape)
    scored = np.isfinite(cross_entropy)
    per_source = np.stack(
        [
            (np.where(scored, cross_entropy, 0.0) * num_bytes[:, None]).sum(0),
            (scored * num_bytes[:, None]).sum(0),
            flat_values(table["win_share"])[0].reshape(shape).sum(0),
            flat_values(table["covered_rows"])[0].reshape(shape).sum(0),
            (~scored).sum(0),
        ]
    )
    return StepCounts(
        tokens=int(flat_values(table["passage_tokens"])[0].sum()),
        passages=len(num_bytes),
        bytes=int(num_bytes.sum()),
        places=len(flat_values(table["input_ids"])[0]),
        per_source=per_source,
    )


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
    counts, wait_seconds = _over_workers(count(table, num_sources), own_wait_seconds, target.device)
    if not counts.places:
        return None
    losses = target.train_step(table)
    # Who has waited less for data has waited here for the others: the longest wait is in the time already.
    seconds = own_wait_seconds + time.perf_counter() - started
    record = _record(target.step, losses, counts, seconds, wait_seconds)
    record = replace(record, elapsed_seconds=longest(time.monotonic() - journal.began, target.device))
    journal.history.append(record)
    if table is not None:
        journal.fresh += [str(passage_id) for row in rows_of(table["passage_ids"]) for passage_id in row]
    return record


def _over_workers(counts: StepCounts, wait_seconds: float, device: torch.device) -> tuple[StepCounts, float]:
    """Counts summed over the workers, and the longest wait."""
    scalars = [counts.tokens, counts.passages, counts.bytes, counts.places]
    mine = torch.tensor([wait_seconds, *scalars, *counts.per_source.ravel()], dtype=torch.float64, device=device)
    every = of_all_workers(mine).cpu().numpy()
    values = every[:, 1:].sum(axis=0)
    per_source = values[len(scalars) :].reshape(counts.per_source.shape)
    return StepCounts(*(int(value) for value in values[: len(scalars)]), per_source), float(every[:, 0].max())


def _record(step: int, losses: StepLosses, counts: StepCounts, seconds: float, wait_seconds: float) -> StepRecord:
    nats, num_bytes, wins, covered_rows, left_out = counts.per_source
    return StepRecord(
        step=step,
        loss=losses.loss,
        lm_loss=losses.lm_loss,
        fusion_loss=losses.fusion_loss,
        grad_norm=losses.grad_norm,
        learning_rate=losses.learning_rate,
        tokens=counts.tokens,
        passages=counts.passages,
        bytes=counts.bytes,
        seconds=seconds,
        wait_seconds=wait_seconds,
        padding=1.0 - counts.tokens / counts.places,
        fused_rows=losses.fused_rows,
        source_nats=tuple(float(value) for value in nats),
        source_bytes=_whole(num_bytes),
        source_wins=tuple(float(value) for value in wins),
        source_covered_rows=_whole(covered_rows),
        source_left_out=_whole(left_out),
    )


def _whole(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _step_record(fields: dict[str, Any]) -> StepRecord:
    """A record as it was before JSON turned its tuples into lists."""
    return StepRecord(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
