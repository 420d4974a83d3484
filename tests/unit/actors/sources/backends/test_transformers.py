"""A source's rows are the same whether its passes and softmaxes are small or large."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.sources.backends import transformers as backend
from engine.spec import SourceModelSpec
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

MODEL = str(ROOT / "pipelines/quickstart/models/llama-docs")
TOP_K = 5
LENGTHS = (7, 1, 2, 30, 12, 12, 64)


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 1000, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(prompts) -> list[torch.Tensor]:
    """The log-probabilities of each prompt by itself, [n-1,V]."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        each = [model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, :-1] for prompt in prompts]
    return [logits.log_softmax(-1) for logits in each]


@pytest.mark.parametrize(("pass_rows", "softmax_rows"), [(10**6, 10**6), (30, 7), (1, 1)])
def test_rows(prompts, expected, monkeypatch, pass_rows, softmax_rows):
    vocabulary = expected[0].shape[-1]
    monkeypatch.setattr(backend, "PASS_LOGITS", pass_rows * vocabulary)
    monkeypatch.setattr(backend, "SOFTMAX_LOGITS", {"cpu": softmax_rows * vocabulary})
    source = backend.TransformersBackend(SourceModelSpec(name="one", checkpoint=MODEL, dtype="float32"), TOP_K)
    passes = []
    source._model.register_forward_pre_hook(
        lambda _, __, given: passes.append(given["input_ids"].numel()), with_kwargs=True
    )
    for prompt, logprobs, rows in zip(prompts, expected, source.score(prompts), strict=True):
        values, ids = logprobs.topk(TOP_K, dim=-1)
        assert rows.topk_ids.dtype == np.int32 and rows.topk_logprobs.dtype == rows.token_logprobs.dtype == np.float32
        np.testing.assert_array_equal(rows.topk_ids, ids)
        np.testing.assert_allclose(rows.topk_logprobs, values, atol=1e-4)
        of_tokens = logprobs.gather(-1, torch.from_numpy(prompt[1:].astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(rows.token_logprobs, of_tokens, atol=1e-4)
    assert max(passes) <= max(pass_rows, max(LENGTHS)), "a longer prompt has a pass of its own, others share one"
    assert len(passes) == {10**6: 1, 30: 4, 1: len(LENGTHS)}[pass_rows]
