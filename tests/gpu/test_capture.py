"""Scores out of vLLM on a GPU: the captured tensors, its public form and transformers agree on every row."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.sources.backends.vllm import VllmBackend
from engine.spec import SourceModelSpec
from tests.support.tiny_models import tiny_checkpoint

pytestmark = pytest.mark.timeout(180)

CONTEXT, VOCABULARY, STEP_TOKENS = 600, 400, 256

#: Prompts of one token, of a whole step less one, of a step, of a step and one, and of several steps.
LENGTHS = (1, 2, 3, 17, 255, 256, 257, 300, 511, 600)

DEVICE = "cuda"


@contextmanager
def engine(section: SourceModelSpec, top_k: int) -> Iterator[VllmBackend]:
    """An engine that gives its memory and its process group back: other tests in this process make their own.

    Left to Python, it ends at any later moment, and takes the next engine's process group with it.
    """
    backend = VllmBackend(section, top_k, CONTEXT)
    try:
        yield backend
    finally:
        backend._engine.llm_engine.engine_core.shutdown()


def prompts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, length).astype(np.int32) for length in LENGTHS]


@torch.no_grad()
def by_transformers(folder: Path, dtype: torch.dtype) -> list[np.ndarray]:
    """Log-probabilities [n,V] of each prompt, from logits of that type."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE).eval()
    return [
        model(torch.tensor(prompt[None].astype(np.int64)).to(DEVICE)).logits[0].float().log_softmax(-1).cpu().numpy()
        for prompt in prompts()
    ]


@pytest.mark.parametrize(("architecture", "top_k"), [("llama", 10), ("gpt2", 64), ("gpt-neox", 128)])
def test_every_row_is_right(tmp_path, architecture, top_k):
    tiny_checkpoint(tmp_path, architecture, positions=1024)
    # First, since vLLM makes some of transformers' classes its own in the whole process.
    exact, rounded = by_transformers(tmp_path, torch.float32), by_transformers(tmp_path, torch.bfloat16)
    section = SourceModelSpec(
        name="one",
        checkpoint=str(tmp_path),
        dtype="bfloat16",
        num_gpus=0.1,
        batched_tokens=STEP_TOKENS,
        kv_cache_bytes=2**27,
    )
    with engine(section, top_k) as backend:
        config = backend._engine.llm_engine.vllm_config
        print(f"{architecture}: model runner {'V2' if getattr(config, 'use_v2_model_runner', False) else 'V1'}")
        assert backend.dense, "this vLLM's tensors cannot be captured"
        captured = backend.score(prompts())
        backend.dense = False
        public = backend.score(prompts())
    for rows, others in zip(captured, public, strict=True):
        for name in ("topk_ids", "topk_logprobs", "token_logprobs"):
            np.testing.assert_array_equal(getattr(rows, name), getattr(others, name))
    check_against(exact, rounded, captured, top_k)


def check_against(exact: list[np.ndarray], rounded: list[np.ndarray], captured, top_k: int) -> None:
    """The captured rows are about as far from float32's as transformers' in bfloat16; one place off is far away."""
    ours, theirs, shifted = [], [], []
    for prompt, right, in_bfloat16, rows in zip(prompts(), exact, rounded, captured, strict=True):
        assert rows.topk_ids.shape == (len(prompt) - 1, top_k)
        assert rows.topk_ids.dtype == np.int32 and rows.topk_logprobs.dtype == np.float32
        ids = np.concatenate([prompt[1:, None], rows.topk_ids], axis=1)
        logprobs = np.concatenate([rows.token_logprobs[:, None], rows.topk_logprobs], axis=1)
        ours += [(logprobs - np.take_along_axis(right[:-1], ids, 1)).ravel()]
        theirs += [np.take_along_axis(in_bfloat16[:-1] - right[:-1], ids, 1).ravel()]
        shifted += [(logprobs - np.take_along_axis(right[1:], ids, 1)).ravel()]
    mean, rounding, one_place_off = (np.abs(np.concatenate(values)).mean() for values in (ours, theirs, shifted))
    print(f"mean difference {mean:.5f} nats, transformers' own {rounding:.5f}, one place off {one_place_off:.3f}")
    assert mean < 1.5 * rounding and mean < one_place_off / 10
