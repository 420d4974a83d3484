"""FSDP2 over two processes: the same loss curve as one, with and without accumulation, and back from a checkpoint."""

import multiprocessing
from multiprocessing.queues import Queue
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from actors import checkpoints
from actors.target_model import TargetModel
from engine.spec import Objective, Optimizer, Training
from tests.tiny_models import tiny_checkpoint
from tests.training_blocks import LENGTH, TOP_K, training_blocks

pytestmark = pytest.mark.timeout(180)

STEPS = 5


def worker(rank: int, workers: int, micro: int, model: str, base: str, steps: tuple[int, int], results: Queue) -> None:
    """Train from step ``steps[0]`` to ``steps[1]`` on this worker's share, from a checkpoint if the first is not 0."""
    torch.set_num_threads(1)
    store = Path(base) / f"store-{workers}-{micro}-{steps}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    training = Training(
        num_workers=workers,
        block_length=LENGTH,
        global_batch_blocks=4,
        micro_batch_blocks=micro,
        max_steps=STEPS,
        optimizer=Optimizer(learning_rate=3e-3),
    )
    target = TargetModel(model, training, Objective(lm_loss_weight=0.5), TOP_K, torch.device("cpu"))
    folder = f"{base}/checkpoints"
    if steps[0]:
        checkpoints.load(target, checkpoints.latest(folder))
    losses = []
    for step in range(*steps):
        blocks = training_blocks(step, lengths=[20, 30, 12, 25, 16, 9, 31])
        mine = pa.concat_tables([blocks.slice(index, 1) for index in range(rank, len(blocks), workers)])
        losses.append(tuple(target.train_step(mine)))
    if steps[1] < STEPS:
        checkpoints.save(target, f"{folder}/step-{target.step:08d}", {})
    if rank == 0:
        results.put(losses)
    dist.destroy_process_group()


def train(workers: int, micro: int, model: str, base: Path, steps: tuple[int, int] = (0, STEPS)) -> list[tuple]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (workers, micro, model, str(base), steps, results)
    processes = [context.Process(target=worker, args=(rank, *arguments)) for rank in range(workers)]
    for process in processes:
        process.start()
    losses = results.get(timeout=100)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return losses


@pytest.mark.parametrize("tied", [False, True])
def test_two_workers_and_accumulation_change_nothing(tmp_path, tied):
    model = tiny_checkpoint(tmp_path / "model", "llama", tied=tied)
    alone = train(1, 4, model, tmp_path)
    assert alone[-1][0] < alone[0][0]
    for workers, micro in ((1, 1), (2, 2), (2, 1)):
        losses = train(workers, micro, model, tmp_path)
        for expected, found in zip(alone, losses, strict=True):
            assert found == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_of_two_workers_goes_on_with_one_and_the_other_way_round(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", "llama")
    undisturbed = train(2, 2, model, tmp_path)
    for name, before, after in (("b", 2, 1), ("c", 1, 2)):
        base = tmp_path / name
        base.mkdir()
        losses = train(before, 2, model, base, (0, 3)) + train(after, 2, model, base, (3, STEPS))
        for expected, found in zip(undisturbed, losses, strict=True):
            assert found == pytest.approx(expected, rel=1e-5)
