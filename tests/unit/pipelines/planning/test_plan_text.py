"""The plan says in words what training will do."""

import pytest

from engine.spec import TrainingSpec
from pipelines.planning.plan_text import attention_line

GPU = {"num_gpus_per_worker": 1.0, "precision": "bfloat16"}
MASK = "sdpa under a mask of 512 x 512"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, f"{MASK}: flash_attention_2 needs a GPU"),
        (GPU | {"precision": "float32"}, f"{MASK}: flash_attention_2 needs training.precision bfloat16, not float32"),
        (GPU, f"flash_attention_2 where the workers have the package flash-attn, else {MASK}"),
        (GPU | {"attention": "sdpa"}, MASK),
        (GPU | {"attention": "flash_attention_2"}, "flash_attention_2, without what a mask would hide"),
        (
            GPU | {"attention": "flex_attention"},
            "flex_attention, without what a mask would hide; compiles at the first step",
        ),
    ],
)
def test_the_plan_says_which_attention_is_used(fields, line):
    assert attention_line(TrainingSpec(block_length=512, **fields)) == line
