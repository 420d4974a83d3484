"""The size of the key-value cache, against sizes worked out by hand."""

import pytest
from transformers import DeepseekV3Config, FalconConfig, GPT2Config, LlamaConfig, MistralConfig

from actors.sources.backends.key_value_cache import LEAST_BYTES, cache_bytes, least_cache_bytes
from engine.spec import SourceModelSpec

pytestmark = pytest.mark.timeout(30)

LLAMA_2_7B = LlamaConfig(dtype="float16")  # 32 layers, 32 heads of 128: 512 KiB a token
GROUPED = LlamaConfig(num_key_value_heads=8, dtype="bfloat16")


def source(**fields) -> SourceModelSpec:
    return SourceModelSpec(name="one", checkpoint="one", **fields)


@pytest.mark.parametrize(
    ("config", "fields", "kib_a_token"),
    [
        (LLAMA_2_7B, {}, 512),
        (LLAMA_2_7B, {"dtype": "float32"}, 1024),
        (LLAMA_2_7B, {"tensor_parallel_size": 2, "num_gpus": 1}, 256),
        (GROUPED, {}, 128),
        (GROUPED, {"tensor_parallel_size": 16, "num_gpus": 1}, 16),
        (GPT2Config(dtype="float16"), {}, 36),
        (FalconConfig(multi_query=True, dtype="bfloat16"), {}, 32 * 2 * 64 * 2 / 1024),
        (DeepseekV3Config(dtype="bfloat16"), {}, 61 * (512 + 64) * 2 / 1024),
        (MistralConfig(sliding_window=4096), {}, 0),
    ],
)
def test_one_passage_takes_the_bytes_of_its_tokens(config, fields, kib_a_token):
    assert least_cache_bytes(source(**fields), config, context=1023) == 1024 * 1024 * kib_a_token


def test_the_cache_holds_two_steps_or_two_passages_and_no_less_than_the_smallest():
    assert cache_bytes(source(), LLAMA_2_7B, context=2048, step_tokens=4096) == 2 * 4096 * 512 * 1024
    assert cache_bytes(source(), LLAMA_2_7B, context=8191, step_tokens=4096) == 2 * 8192 * 512 * 1024
    assert cache_bytes(source(), GPT2Config(dtype="float16"), context=1023, step_tokens=2048) == LEAST_BYTES
    assert cache_bytes(source(kv_cache_bytes=2**20), LLAMA_2_7B, context=2048, step_tokens=4096) == 2**20
