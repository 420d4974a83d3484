"""Memory and work of each model, and a proposal of replicas, from the configurations alone.

Work counts the floating point operations of matrix products: 2 for each weight and token in a forward pass, 6 in a
training step. Attention's own share is small at these lengths and left out. The proposal is valid for replicas on
devices of one kind; the report of a run names the slowest stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actors.sources.backends import transformers as transformers_backend
from actors.sources.backends.key_value_cache import cache_bytes
from actors.sources.backends.step_size import PLANNED_GPU_BYTES, step_tokens
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import context_limit, load_configuration
from engine.spec import FusionSpec, SourceModelSpec
from engine.text.tokenization import PassageTokenizer

FORWARD, TRAINING = 2, 6
#: The log-probabilities of a scoring chunk are float32.
BYTES_PER_LOGIT = 4
#: Bytes of a weight in training: the float32 weight, its gradient and the two moments of AdamW.
BYTES_PER_TRAINED_WEIGHT = 16


@dataclass(frozen=True)
class ModelCost:
    """Memory and work of one model.

    Attributes:
        name: ``target``, or the source's name.
        parameters: all parameters. matrix_weights: those in matrix products with every token.
        memory_bytes: of one replica: weights, key-value cache and the vocabulary rows of a scoring chunk; of the
            target: weights, gradients and optimizer over all workers, without activations.
        work_per_byte: floating point operations for each byte of text.
        relative: work per byte divided by that of the target's training.
        replicas: of the spec (the target: training workers). proposed: enough to keep up with the training workers, at
            least 1.
        step_tokens: prompt tokens in one step of a source's engine, on a GPU of ``PLANNED_GPU_BYTES``; 0 of the target.
    """

    name: str
    parameters: int
    matrix_weights: int
    memory_bytes: int
    work_per_byte: float
    relative: float
    replicas: int
    proposed: int
    step_tokens: int


def model_costs(spec: FusionSpec, texts: Sequence[str]) -> tuple[ModelCost, ...]:
    """The costs of the target and of all sources.

    Args:
        texts: a sample of the corpus, to count each model's tokens per byte.
    """
    workers = spec.training.num_workers
    checkpoint = Checkpoint.of(spec.target_model)
    parameters, weights, _, _ = _sizes(checkpoint)
    training = TRAINING * weights * _tokens_per_byte(checkpoint, texts)
    target = ModelCost(
        "target", parameters, weights, parameters * BYTES_PER_TRAINED_WEIGHT, training, 1.0, workers, workers, 0
    )
    return target, *(_source_cost(source, texts, training, workers) for source in spec.source_models)


def _source_cost(source: SourceModelSpec, texts: Sequence[str], training: float, workers: int) -> ModelCost:
    parameters, weights, vocabulary, own_dtype_bytes = _sizes(Checkpoint.of(source))
    work = FORWARD * weights * _tokens_per_byte(Checkpoint.of(source), texts)
    relative = work / training if training else 0.0
    weight_bytes = parameters * {"float32": 4, "bfloat16": 2, "float16": 2}.get(source.dtype, own_dtype_bytes)
    step, chunk, cache = _step(source, vocabulary)
    logits = chunk * vocabulary * BYTES_PER_LOGIT
    return ModelCost(
        source.name,
        parameters,
        weights,
        weight_bytes + cache + logits,
        work,
        relative,
        source.replicas,
        _enough(relative * workers),
        step,
    )


def _enough(replicas: float) -> int:
    """Whole replicas, at least one; a sum that comes out whole may be a little above it in floating point."""
    return max(1, math.ceil(round(replicas, 6)))


def _step(source: SourceModelSpec, vocabulary: int) -> tuple[int, int, int]:
    """Tokens in one step, tokens whose vocabulary rows are in memory at once, bytes of the cache on all GPUs."""
    if source.backend == "transformers":
        tokens = transformers_backend.pass_tokens(vocabulary)
        return tokens, tokens, 0
    config = load_configuration(Checkpoint.of(source))
    context = context_limit(config, source.max_context_tokens, generated_tokens=1)
    tokens = step_tokens(source, config, context, PLANNED_GPU_BYTES)
    cache = cache_bytes(source, config, context, tokens) * source.tensor_parallel_size
    return tokens, min(tokens, context), cache  # vLLM makes the rows of one prompt at a time, or of 1,024 tokens


def _sizes(checkpoint: Checkpoint) -> tuple[int, int, int, int]:
    """Number of parameters, of weights in matrix products, of vocabulary rows, and bytes of a stored weight."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_configuration(checkpoint)
    with torch.device("meta"):  # shapes alone, no memory
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = 0 if embedding is head else embedding.numel()
    dtype = config.dtype if config.dtype is not None else torch.float32
    return parameters, parameters - looked_up, head.shape[0], dtype.itemsize


def weight_count(checkpoint: Checkpoint) -> int:
    """Number of a model's parameters, from its configuration."""
    return _sizes(checkpoint)[0]


def _tokens_per_byte(checkpoint: Checkpoint, texts: Sequence[str]) -> float:
    tokenizer = PassageTokenizer.load(checkpoint)
    num_bytes = sum(len(text.encode("utf8")) for text in texts)
    return sum(len(tokenizer.encode(text)[0]) for text in texts) / num_bytes if num_bytes else 0.0
