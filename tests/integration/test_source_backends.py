"""vLLM's rows equal transformers' rows, for three architectures, with and without BOS, and would not with a shift."""

import multiprocessing
from multiprocessing.queues import Queue

import numpy as np
import pytest

from actors.backends.transformers import TransformersBackend
from engine.tokenization import PassageTokenizer
from tests.tiny_models import POSITIONS, tiny_checkpoint
from tests.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(150)

TOP_K = 8
CONTEXT = POSITIONS - 1
TEXTS = ["The quick brown fox.", "def f(x):\n\treturn x", "Zwölf 🙂 日本", "a", "one two three four five six " * 3]


def score_with_vllm(checkpoint: str, prompts: list[np.ndarray], results: Queue) -> None:
    """In a process of its own: vLLM changes torch and transformers for the whole process."""
    from actors.backends.vllm import VllmBackend

    # 64 tokens a step, so that longer prompts are prefilled in chunks.
    backend = VllmBackend(checkpoint, TOP_K, "float32", CONTEXT, 2**26, "cpu", batched_tokens=64)
    assert backend.dense
    dense = backend.score(prompts)
    backend.dense = False
    flat = backend.score(prompts)
    try:
        backend.score([np.array([3, backend.vocab_size], np.int32)])
        refusal = ""
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"
    results.put((dense, flat, refusal))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict:
    folders = tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))
    return dict(zip(("llama", "gpt2", "gpt-neox"), folders, strict=True))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt-neox"])
def scored(request, tokenizers, tmp_path_factory) -> dict:
    """Prompts with BOS, without BOS, and of every awkward length, scored three ways."""
    folder = tokenizers[request.param]
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("model") / request.param, request.param, folder)
    tokenizer = PassageTokenizer.load(checkpoint)
    prompts = [tokenizer.encode_with_roles(text, bos, True)[0] for bos in (True, False) for text in TEXTS]
    random = np.random.default_rng(0)
    lengths = (1, 2, 3, 63, 64, 65, 100, CONTEXT)
    prompts += [random.integers(0, tokenizer.vocab_size, length).astype(np.int32) for length in lengths]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=score_with_vllm, args=(checkpoint, prompts, results))
    process.start()
    dense, flat, refusal = results.get(timeout=120)
    process.join(30)
    oracle = TransformersBackend(checkpoint, TOP_K, "float32", "cpu").score(prompts)
    return {"prompts": prompts, "dense": dense, "flat": flat, "oracle": oracle, "refusal": refusal}


def test_vllm_equals_transformers(scored):
    for prompt, found, expected in zip(scored["prompts"], scored["dense"], scored["oracle"], strict=True):
        assert found.topk_ids.shape == (len(prompt) - 1, TOP_K)
        np.testing.assert_allclose(found.token_logprobs, expected.token_logprobs, atol=1e-3)
        np.testing.assert_allclose(found.topk_logprobs, expected.topk_logprobs, atol=1e-3)
        assert (np.diff(found.topk_logprobs, axis=1) <= 0).all(), "likeliest first"
        # Where two candidates are further apart than the tolerance, they are the same tokens too.
        apart = np.diff(expected.topk_logprobs, axis=1, prepend=np.inf) < -2e-3
        assert (found.topk_ids == expected.topk_ids)[apart].mean() > 0.99 if apart.any() else True


def test_a_shift_of_one_would_be_seen(scored):
    for found, expected in zip(scored["dense"], scored["oracle"], strict=True):
        if len(found.token_logprobs) > 8:
            assert np.abs(found.token_logprobs[1:] - expected.token_logprobs[:-1]).mean() > 0.2
            assert np.abs(found.topk_logprobs[1:] - expected.topk_logprobs[:-1]).mean() > 0.02


def test_the_dense_capture_equals_the_public_form_exactly(scored):
    for dense, flat in zip(scored["dense"], scored["flat"], strict=True):
        assert np.array_equal(dense.topk_ids, flat.topk_ids)
        assert np.array_equal(dense.topk_logprobs, flat.topk_logprobs)
        assert np.array_equal(dense.token_logprobs, flat.token_logprobs)


def test_rows_are_probabilities_of_what_follows(scored):
    for prompt, found in zip(scored["prompts"], scored["dense"], strict=True):
        for row in range(len(prompt) - 1):
            where = np.flatnonzero(found.topk_ids[row] == prompt[row + 1])
            if len(where):
                assert found.topk_logprobs[row, where[0]] == pytest.approx(found.token_logprobs[row], abs=1e-5)
        assert (np.exp(found.topk_logprobs).sum(-1) <= 1 + 1e-4).all()


def test_ids_outside_the_vocabulary_are_refused(scored):
    assert "SourceModelError" in scored["refusal"]
    assert "the tokenizer does not belong to this checkpoint" in scored["refusal"]
