"""FSDP2 over two processes: the losses and rows of one, with and without accumulation, and back from a checkpoint."""

import math
import multiprocessing
import os
from collections.abc import Callable, Hashable, Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from actors.training import checkpoints
from actors.training.checkpoint_index import latest
from actors.training.target_model import StepLosses, TargetModel
from engine.errors import TrainingError
from engine.spec import ObjectiveSpec, OptimizerSpec, TargetModelSpec, TrainingSpec
from tests.support.tiny_models import tiny_checkpoint
from tests.support.training_blocks import (
    LENGTH,
    TOP_K,
    repeated,
    training_blocks,
    with_bad_probability,
    with_known_labels,
)

pytestmark = pytest.mark.timeout(300)

STEPS = 5

#: Figures of a step, without the sums by domain (there are none here) and the rows that a worker was asked for.
FIGURES = StepLosses._fields.index("domain_lm_nats")

#: Rows that the first worker is asked for, of the first passage of its first block.
ASKED = np.array([1, 4, 7])


class Run(NamedTuple):
    """Steps ``first`` to ``end`` on one or two workers, from the last checkpoint in ``folder`` if first is not 0."""

    workers: int
    micro: int
    folder: str = ""
    first: int = 0
    end: int = STEPS
    fields: tuple[tuple[str, str], ...] = ()


def begin(rank: int, run: Run, model: str, store: str) -> TargetModel:
    """This worker's shard of the target model, in a process group of its own; each worker is a node of its own."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=run.workers)
    training = TrainingSpec(
        num_workers=run.workers,
        block_length=LENGTH,
        global_batch_blocks=4,
        micro_batch_blocks=run.micro,
        max_steps=STEPS,
        **dict(run.fields),
        optimizer=OptimizerSpec(learning_rate=3e-3),
    )
    return TargetModel(
        TargetModelSpec(checkpoint=model),
        training,
        ObjectiveSpec(lm_loss_weight=0.5),
        TOP_K,
        torch.device("cpu"),
    )


def train(rank: int, run: Run, model: str, store: str) -> list[tuple]:
    """What every step was like, as this worker sees it; on the first one also costs and gains of some rows."""
    target = begin(rank, run, model, store)
    if run.first:
        checkpoints.load(target, latest(run.folder))
    asked = ASKED if rank == 0 else None
    steps = [target.train_step(share(step, rank, run.workers), asked) for step in range(run.first, run.end)]
    losses = [(*step[:FIGURES], *looked_at(step)) for step in steps]
    if run.end < STEPS:
        checkpoints.save(target, f"{run.folder}/step-{target.step:08d}", {}).result()
    dist.destroy_process_group()
    return losses


def looked_at(step: StepLosses) -> list[float]:
    """The costs and gains of the rows that this worker was asked for."""
    return [] if step.own is None else torch.cat([step.own.costs, step.own.gains]).tolist()


def share(step: int, rank: int, workers: int) -> pa.Table | None:
    """This worker's blocks of a step; in the last one the second worker has run out.

    In every other step the sources know what follows; from the third on, every other block is of a second pass.
    """
    blocks = training_blocks(step, lengths=[31] if step == STEPS - 1 else [20, 30, 12, 25, 16, 9, 31])
    blocks = with_known_labels(blocks) if step % 2 == 0 else blocks
    if step >= 2:
        rows = [blocks.slice(index, 1) for index in range(len(blocks))]
        blocks = pa.concat_tables([repeated(row) if index % 2 else row for index, row in enumerate(rows)])
    mine = [blocks.slice(index, 1) for index in range(rank, len(blocks), workers)]
    return pa.concat_tables(mine) if mine else None


def worker(rank: int, runs: Sequence[Run], model: str, base: str, results: Queue) -> None:
    """All runs that this worker takes part in, one after the other: importing torch takes longer than any of them."""
    torch.set_num_threads(1)
    for number, run in enumerate(runs):
        if rank < run.workers:
            results.put(((rank, number), train(rank, run, model, f"{base}/store-{number}")))


def refused(rank: int, model: str, store: str, results: Queue) -> None:
    """The errors of two workers for a row and for a gradient on the second that are not finite."""
    torch.set_num_threads(1)
    target, good = begin(rank, Run(2, 1), model, store), training_blocks(2 + rank)
    infinite = patch.object(torch.nn.utils, "clip_grad_norm_", return_value=torch.tensor(math.inf))
    errors = []
    with pytest.raises(TrainingError) as error:
        target.train_step(with_bad_probability(good) if rank else good)
    errors.append(str(error.value))
    with infinite, pytest.raises(TrainingError) as error:
        target.train_step(good if rank else None)
    errors.append(str(error.value))
    results.put((rank, errors))
    dist.destroy_process_group()


def in_two_processes(work: Callable[..., None], arguments: tuple, answers: int) -> dict[Hashable, list]:
    """What ``work(rank, *arguments, results)`` puts into its results, as pairs."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, *arguments, results)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=200) for _ in range(answers))
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    return found


def train_all(runs: Sequence[Run], model: str, base: Path) -> list[list[tuple]]:
    """The loss curve of each run; all workers of a run must have seen the same one."""
    found = in_two_processes(worker, (runs, model, str(base)), len(all_parts(runs)))
    for part in all_parts(runs):
        # As text: a gain that was not measured is NaN, which equals nothing.
        assert [repr(step[:FIGURES]) for step in found[part]] == [repr(step[:FIGURES]) for step in found[0, part[1]]]
    return [found[0, number] for number in range(len(runs))]


def all_parts(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Rank and run of everything that a worker does."""
    return [(rank, number) for number, run in enumerate(runs) for rank in range(run.workers)]


@pytest.mark.parametrize("tied", [False, True])
def test_two_workers_and_accumulation_change_nothing(tmp_path, tied):
    model = tiny_checkpoint(tmp_path / "model", "llama", tied=tied)
    once = Run(2, 1, fields=(("sync_gradients", "once_a_step"),))
    hybrid = Run(2, 1, fields=(("shard_within", "node"),))
    rounded = Run(2, 1, fields=(("reduction", "bfloat16"),))
    runs = [Run(1, 99), Run(1, 1), Run(2, 2), Run(2, 1), once, hybrid, rounded]
    alone, *others, coarse = train_all(runs, model, tmp_path)
    assert all(len(step) == FIGURES + 2 * len(ASKED) for step in alone)
    assert alone[3][0] < alone[0][0]
    for losses in others:
        assert_same(losses, alone)
    assert coarse[0][0] == pytest.approx(alone[0][0], rel=1e-5), "the first loss is before any gradient"
    assert [step[0] for step in coarse] == pytest.approx([step[0] for step in alone], rel=0.02)


def test_a_checkpoint_of_two_workers_goes_on_with_one_and_the_other_way_round(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", "llama")
    down, up = str(tmp_path / "two-to-one"), str(tmp_path / "one-to-two")
    runs = [Run(2, 2), Run(2, 2, down, 0, 3), Run(1, 2, down, 3), Run(1, 2, up, 0, 3), Run(2, 2, up, 3)]
    undisturbed, *parts = train_all(runs, model, tmp_path)
    assert_same(parts[0] + parts[1], undisturbed)
    assert_same(parts[2] + parts[3], undisturbed)


def test_all_workers_name_the_one_whose_loss_is_not_finite(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", "llama")
    found = in_two_processes(refused, (model, f"{tmp_path}/store"), 2)
    assert found[0] == found[1]
    second = ", ".join(name for names in training_blocks(3)["passage_ids"].to_pylist() for name in names)
    bad_row, bad_gradient = found[0]
    assert "step 1: not finite: LM loss" in bad_row and "fusion loss nan" in bad_row
    assert f"nothing was updated. Worker 1 had the passages {second}. Lower" in bad_row
    assert "Worker 0" not in bad_row and "2/a" not in bad_row
    assert "gradient norm inf" in bad_gradient
    assert f"Worker 0 had the passages none; worker 1 had the passages {second}. Lower" in bad_gradient


def assert_same(losses: list[tuple], expected: list[tuple]) -> None:
    """Every figure of every step, to 1e-5."""
    for found, right in zip(losses, expected, strict=True):
        assert found == pytest.approx(right, rel=1e-5, nan_ok=True)
