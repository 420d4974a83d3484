"""The tokens of one step of the engine, against memory worked out by hand."""

import pytest
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig

from actors.sources.backends.key_value_cache import cache_bytes
from actors.sources.backends.step_size import CPU_TOKENS, PLANNED_GPU_BYTES, replica_bytes, step_tokens
from engine.spec import SourceModelSpec

pytestmark = pytest.mark.timeout(30)

LLAMA_2_7B = LlamaConfig(dtype="float16")
LLAMA_2_13B = LlamaConfig(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, dtype="float16"
)
TINY_LLAMA = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4, dtype="bfloat16"
)
PYTHIA = GPTNeoXConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16, dtype="float16"
)
OPEN_LLAMA_3B = LlamaConfig(hidden_size=3200, intermediate_size=8640, num_hidden_layers=26, dtype="float16")


def source(**fields) -> SourceModelSpec:
    return SourceModelSpec(name="one", checkpoint="one", **fields)


def tokens_of(config, **fields) -> int:
    return step_tokens(source(**fields), config, context=2048, gpu_bytes=PLANNED_GPU_BYTES)


@pytest.mark.parametrize(
    ("config", "fields", "tokens"),
    [
        (TINY_LLAMA, {"num_gpus": 0.15}, 16_384),
        (PYTHIA, {"num_gpus": 0.15}, 8192),
        (PYTHIA, {"num_gpus": 0.2}, 16_384),
        (OPEN_LLAMA_3B, {"num_gpus": 0.25}, 8192),
        (LLAMA_2_7B, {"num_gpus": 1}, 16_384),
        (LLAMA_2_13B, {"num_gpus": 1}, 16_384),
        (LLAMA_2_13B, {"num_gpus": 1, "dtype": "float32"}, 4096),
        (LLAMA_2_13B, {"num_gpus": 1, "dtype": "float32", "tensor_parallel_size": 4}, 16_384),
        (MixtralConfig(dtype="bfloat16"), {"num_gpus": 1}, 2048),  # 93 GB of weights fit in no step
    ],
)
def test_a_step_is_as_large_as_the_share_of_a_gpu_holds(config, fields, tokens):
    assert tokens_of(config, **fields) == tokens


def test_a_cpu_and_a_spec_need_no_gpu():
    assert step_tokens(source(), LLAMA_2_7B, context=2048, gpu_bytes=0) == CPU_TOKENS
    assert tokens_of(LLAMA_2_7B, batched_tokens=300) == 300
    assert tokens_of(LLAMA_2_7B, num_gpus=0.1, batched_tokens=5000) == 5000


def test_two_steps_fit_into_a_cache_of_the_specs_own_size():
    """Pythia keeps 192 KiB a token: 2 GiB hold 10,922 tokens."""
    assert tokens_of(PYTHIA, num_gpus=0.5, kv_cache_bytes=2**31) == 4096
    assert tokens_of(PYTHIA, num_gpus=0.5, kv_cache_bytes=2 * 8192 * 192 * 2**10) == 8192


def test_memory_counts_weights_cache_activations_and_the_logits_of_a_prompt():
    """GPT-2: 124 million weights, of which 39 million twice and a third matrix in each feed-forward layer."""
    config, one = GPT2Config(dtype="float32"), source(num_gpus=1)
    weights = 12 * (4 * 768**2 + 3 * 768 * 3072) + 2 * 50257 * 768
    cache = cache_bytes(one, config, 1023, 4096)
    assert cache == 2 * 4096 * 12 * 2 * 768 * 4
    activations = 4096 * (4 * 768 + 3 * 3072) * 4
    assert replica_bytes(one, config, 1023, 4096) == 10**9 + 4 * weights + cache + activations + 1023 * 50257 * 6
