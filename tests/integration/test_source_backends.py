"""vLLM's rows equal transformers' rows, and would not with a shift.

For three architectures, prompts of every length, with BOS and without, prefilled in chunks and whole.
"""

import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pytest

from actors.sources.backends import PromptRows
from actors.sources.backends.transformers import TransformersBackend
from engine.errors import SourceModelError
from engine.model_files.checkpoint import Checkpoint
from engine.spec import SourceModelSpec
from engine.text.tokenization import PassageTokenizer
from tests.support.tiny_models import POSITIONS, tiny_checkpoint
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(120)

TOP_K = 8
CONTEXT = POSITIONS - 1
STEP_TOKENS = {True: 64, False: 1024}  # in chunks: prompts longer than this need several steps; whole: never
TOLERANCE = 1e-3
TEXTS = ["The quick brown fox.", "def f(x):\n\treturn x", "Zwölf 🙂 日本", "a", "one two three four five six " * 3]


@cache
def vllm_backend(checkpoint: str, in_chunks: bool) -> Any:
    """In the other process; an engine takes seconds to load."""
    from actors.sources.backends.vllm import ENVIRONMENT, VllmBackend

    os.environ.update(ENVIRONMENT, TORCHDYNAMO_DISABLE="1")  # read when vLLM is imported
    import vllm

    with mock.patch.object(vllm, "LLM", partial(vllm.LLM, enable_chunked_prefill=in_chunks)):
        return VllmBackend(section(checkpoint, batched_tokens=STEP_TOKENS[in_chunks]), TOP_K, CONTEXT)


def section(checkpoint: str, **fields) -> SourceModelSpec:
    return SourceModelSpec(name="one", checkpoint=checkpoint, dtype="float32", kv_cache_bytes=2**24, **fields)


def score_with_vllm(checkpoint: str, prompts: list[np.ndarray], dense: bool, in_chunks: bool) -> list[PromptRows]:
    backend = vllm_backend(checkpoint, in_chunks)
    assert backend._engine.llm_engine.vllm_config.scheduler_config.enable_chunked_prefill == in_chunks
    assert backend.dense, "this vLLM is the one that the capture was written for"
    backend.dense = dense
    try:
        return backend.score(prompts)
    finally:
        backend.dense = True


def install_in_another_vllm() -> tuple[bool, list[str]]:
    """Whether the capture goes in where the method that it replaces takes something else, and the warnings."""
    from vllm.v1.engine.logprobs import LogprobsProcessor

    from actors.sources.backends.vllm_patches import keep_tensors

    known = LogprobsProcessor._update_prompt_logprobs
    LogprobsProcessor._update_prompt_logprobs = lambda self, something_else: None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return keep_tensors(), [str(warning.message) for warning in caught]
    finally:
        LogprobsProcessor._update_prompt_logprobs = known


@pytest.fixture(scope="module")
def other_process():
    """A process of its own: vLLM changes torch and transformers for all the process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict:
    folders = tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))
    return dict(zip(("llama", "gpt2", "gpt-neox"), folders, strict=True))


@pytest.fixture(
    scope="module",
    params=product(["llama", "gpt2", "gpt-neox"], [True, False]),
    ids=lambda case: f"{case[0]}, {'in chunks' if case[1] else 'whole'}",
)
def scored(request, tokenizers, other_process, tmp_path_factory) -> dict:
    """Prompts of texts with BOS and without, and random ones of every length, scored three ways."""
    architecture, in_chunks = request.param
    folder = tokenizers[architecture]
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("model") / architecture, architecture, folder)
    tokenizer = PassageTokenizer.load(Checkpoint(checkpoint))
    prompts = [tokenizer.encode_with_roles(text, bos, True)[0] for bos in (True, False) for text in TEXTS]
    random = np.random.default_rng(0)
    prompts += [random.integers(0, tokenizer.vocab_size, length).astype(np.int32) for length in range(1, CONTEXT + 1)]
    dense, flat = (
        other_process.submit(score_with_vllm, checkpoint, prompts, form, in_chunks).result(timeout=100)
        for form in (True, False)
    )
    oracle = TransformersBackend(section(checkpoint), TOP_K).score(prompts)
    return {
        "checkpoint": checkpoint,
        "in_chunks": in_chunks,
        "prompts": prompts,
        "dense": dense,
        "flat": flat,
        "oracle": oracle,
    }


def assert_same(found: list[PromptRows], expected: list[PromptRows]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in ("topk_ids", "topk_logprobs", "token_logprobs"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_vllm_equals_transformers(scored):
    for prompt, found, expected in zip(scored["prompts"], scored["dense"], scored["oracle"], strict=True):
        assert found.topk_ids.shape == found.topk_logprobs.shape == (len(prompt) - 1, TOP_K)
        np.testing.assert_allclose(found.token_logprobs, expected.token_logprobs, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.topk_logprobs, expected.topk_logprobs, rtol=0, atol=TOLERANCE)
        assert (np.diff(found.topk_logprobs, axis=1) <= 0).all(), "in descending order"


def test_the_top_tokens_are_the_same_wherever_the_order_is_certain(scored):
    compared, entries = 0, 0
    for found, expected in zip(scored["dense"], scored["oracle"], strict=True):
        gaps = -np.diff(expected.topk_logprobs, axis=1)
        before = np.pad(gaps, [(0, 0), (1, 0)], constant_values=np.inf)
        after = np.pad(gaps, [(0, 0), (0, 1)])  # the entry after the last is not known: the last is never certain
        certain = np.minimum(before, after) > 2 * TOLERANCE
        assert np.array_equal(found.topk_ids[certain], expected.topk_ids[certain])
        compared, entries = compared + certain.sum(), entries + certain.size
    assert compared > 0.8 * entries


def test_a_shift_of_one_would_be_seen(scored):
    for found, expected in zip(scored["dense"], scored["oracle"], strict=True):
        if len(found.token_logprobs) > 8:
            for name in ("token_logprobs", "topk_logprobs"):
                one, other = getattr(found, name), getattr(expected, name)
                assert np.abs(one[1:] - other[:-1]).mean() > 100 * TOLERANCE
                assert np.abs(one[:-1] - other[1:]).mean() > 100 * TOLERANCE


def test_the_dense_capture_equals_the_public_form_exactly(scored):
    assert_same(scored["dense"], scored["flat"])


def test_another_vllm_gets_the_public_form_with_a_warning(other_process):
    installed, caught = other_process.submit(install_in_another_vllm).result(timeout=100)
    assert not installed
    assert any("scoring takes the slower public form" in message for message in caught)


def test_the_token_that_follows_has_the_probability_of_its_entry(scored):
    seen = 0
    for prompt, found in zip(scored["prompts"], scored["dense"], strict=True):
        assert (np.exp(found.topk_logprobs).sum(-1) <= 1 + 1e-4).all()
        row, entry = np.nonzero(found.topk_ids == prompt[1:, None])
        np.testing.assert_allclose(found.topk_logprobs[row, entry], found.token_logprobs[row], rtol=0, atol=1e-5)
        seen += len(row)
    assert seen > 0


def test_ids_outside_the_vocabulary_are_refused(scored, other_process):
    message = "the tokenizer does not belong to this checkpoint"
    with pytest.raises(SourceModelError, match=message):
        outside = [np.array([3, 400], np.int32)]
        other_process.submit(score_with_vllm, scored["checkpoint"], outside, True, scored["in_chunks"]).result(
            timeout=60
        )
    oracle = TransformersBackend(section(scored["checkpoint"]), TOP_K)
    with pytest.raises(SourceModelError, match=message):
        oracle.score([np.array([3, -1], np.int32)])
