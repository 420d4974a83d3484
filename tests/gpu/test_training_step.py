"""A training step on a GPU, sharded by FSDP2 over nccl, against the same step on the CPU over gloo."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from actors.training.target_model import TargetModel
from engine.spec import ObjectiveSpec, OptimizerSpec, TargetModelSpec, TrainingSpec
from tests.support.tiny_models import tiny_checkpoint
from tests.support.training_blocks import LENGTH, TOP_K, training_blocks, with_known_labels

pytestmark = pytest.mark.timeout(180)

STEPS = 4


@pytest.fixture(scope="module")
def both_groups(tmp_path_factory):
    """A process group of this process alone that speaks gloo for tensors on the CPU and nccl for those on the GPU."""
    store = tmp_path_factory.mktemp("process-group") / "store"
    torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def curve(checkpoint: str, device: str, full_gain: float = 0.0, **training) -> list[tuple[float, ...]]:
    """LM loss, fusion loss and gradient norm of some steps; with ``full_gain``, taught by rows that know the labels."""
    section = TrainingSpec(
        block_length=LENGTH,
        global_batch_blocks=4,
        micro_batch_blocks=2,
        max_steps=STEPS,
        optimizer=OptimizerSpec(learning_rate=3e-3),
        **training,
    )
    objective = ObjectiveSpec(lm_loss_weight=0.5, full_gain=full_gain)
    target = TargetModel(TargetModelSpec(checkpoint=checkpoint), section, objective, TOP_K, torch.device(device))
    blocks = [training_blocks(step) for step in range(STEPS)]
    steps = [target.train_step(with_known_labels(table) if full_gain else table) for table in blocks]
    return [(losses.lm_loss, losses.fusion_loss, losses.grad_norm) for losses in steps]


@pytest.mark.parametrize(
    ("architecture", "full_gain"), [("llama", 0.0), ("llama", 16.0), ("gpt2", 0.0), ("gpt-neox", 0.0)]
)
@pytest.mark.usefixtures("both_groups")
def test_steps_equal_the_cpus(tmp_path, architecture, full_gain):
    checkpoint = without_dropout(tiny_checkpoint(tmp_path, architecture, tied=architecture == "gpt2"))
    right = curve(checkpoint, "cpu", full_gain)
    assert right[-1][0] < right[0][0] and right[-1][1] > 0.0
    for ways, loss_tolerance, norm_tolerance in (
        ({}, 1e-4, 1e-4),
        ({"activation_checkpointing": True}, 1e-4, 1e-4),
        ({"precision": "bfloat16"}, 3e-2, 1e-1),  # the norm is that of gradients with 8 bits, at a steep place
    ):
        for step, expected in zip(curve(checkpoint, "cuda", full_gain, **ways), right, strict=True):
            assert step[:2] == pytest.approx(expected[:2], rel=loss_tolerance)
            assert step[2] == pytest.approx(expected[2], rel=norm_tolerance)


def without_dropout(checkpoint: str) -> str:
    """Take GPT-2's dropout away: a GPU draws other numbers than a CPU."""
    file = Path(checkpoint) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: 0.0 if name.endswith("_pdrop") else value for name, value in config.items()}))
    return checkpoint


@pytest.mark.usefixtures("both_groups")
def test_flex_attention_keeps_passages_apart_as_a_mask_does(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    for step, expected in zip(
        curve(checkpoint, "cuda", attention="flex_attention"), curve(checkpoint, "cuda", attention="sdpa"), strict=True
    ):
        assert step == pytest.approx(expected, rel=1e-3)
