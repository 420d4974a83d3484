"""Scoring on a GPU, for the benchmark ``gpu``: a source model's whole call, Arrow to Arrow.

``gpu_scoring_vs_prefill``: against vLLM's bare prefill of the same prompts, which makes logits for one token of each
prompt alone. ``gpu_scoring_vs_engine``: against the same engine asked for the same rows, tokenized prompts, tensors
dropped: what tokenizing, checking and converting cost, by one batch at a time and by two in flight, as a run has them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from actors.sources.source_model import SourceModel
from engine.model_files.checkpoint import Checkpoint
from engine.spec import SourceModelSpec
from engine.text.tokenization import PassageTokenizer
from tests.benchmarks.figures import say
from tests.benchmarks.gpu_shapes import SHAPES, card, llama_config, save_checkpoint, seconds_in_turns
from tests.benchmarks.scoring_ways import corpus_texts, passages, tensors_dropped

TOKENIZER, ROUNDS = "llama-docs", 3

#: Batches of one measurement and prompts of a batch: about 50,000 and 25,000 tokens a batch on a GPU.
BATCHES = {"tiny": 2, "1b": 4, "7b": 2}
PROMPTS = {"tiny": 4, "1b": 32, "7b": 16}


def figures(device: str, size: str, vocabularies: Sequence[int] | None, every_top_k: Sequence[int]) -> None:
    """The figures of one size of model, for each vocabulary (None: all of the size) and each K."""
    shape = SHAPES[size]
    for vocabulary in vocabularies or shape.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            dtype = torch.bfloat16 if device == "cuda" else torch.float32
            save_checkpoint(Path(folder), llama_config(size, vocabulary), TOKENIZER, device, dtype)
            if device == "cuda":
                torch.cuda.empty_cache()
            section = SourceModelSpec(
                name="source",
                checkpoint=folder,
                dtype=str(dtype).removeprefix("torch."),
                num_gpus=1.0 if device == "cuda" else 0.0,
                probe="off",
                max_context_tokens=shape.context,
                kv_cache_bytes=0 if device == "cuda" else 2**26,
            )
            source = SourceModel(section, max(every_top_k))
            measure(source, device, size, vocabulary, texts(folder, shape.context - 8, PROMPTS[size]), every_top_k)


def texts(folder: str, tokens: int, count: int) -> list[str]:
    """Texts of about so many tokens each, from the quickstart's corpus over and over."""
    whole = "\n\n".join(corpus_texts())
    ends = PassageTokenizer.load(Checkpoint(folder)).encode(whole)[1]
    size = int(ends[min(tokens, len(ends) - 1)] * 0.7)  # other parts have more tokens a byte
    text = (whole * (1 + size * count // len(whole))).encode("ascii", "replace").decode("ascii")
    return [text[size * place : size * (place + 1)] for place in range(count)]


def measure(
    source: SourceModel, device: str, size: str, vocabulary: int, batch_texts: list[str], every_top_k: Sequence[int]
) -> None:
    """The figures of one loaded model."""
    from vllm import SamplingParams

    backend, batch = source._backend.backend, passages(batch_texts)
    prompts = [{"prompt_token_ids": ids.tolist()} for ids, _, _ in source._encoded(batch)]
    batches = BATCHES[size]
    tokens = batches * sum(len(prompt["prompt_token_ids"]) for prompt in prompts)

    def generate(sampling: SamplingParams) -> None:
        def all_batches():
            for _ in range(batches):
                backend._engine.generate(prompts, sampling, use_tqdm=False)

        with tensors_dropped():
            source._backend._thread.submit(all_batches).result()

    def two_in_flight() -> None:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(source, [batch] * batches))

    def one_at_a_time() -> None:
        for _ in range(batches):
            source(batch)

    bare = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    runner = "V2" if getattr(backend._engine.llm_engine.vllm_config, "use_v2_model_runner", False) else "V1"
    step = backend._engine.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    for top_k in every_top_k:
        source._top_k = backend._top_k = top_k
        backend._sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False, flat_logprobs=True
        )
        ways: list[Callable[[], None]] = [
            lambda: generate(bare),
            lambda: generate(backend._sampling),
            one_at_a_time,
            two_in_flight,
        ]
        prefill, rows, one, two = seconds_in_turns(ways, device, ROUNDS)
        on = {"card": card(device), "size": size, "vocabulary": vocabulary, "top_k": top_k, "runner": runner}
        on |= {"tokens": tokens, "step_tokens": step, "dense": backend.dense}
        speed = (tokens / two, "tokens/s")
        say("gpu_scoring_vs_prefill", *speed, "vLLM's bare prefill of the same prompts", prefill / two, **on)
        say("gpu_scoring_vs_engine", *speed, "the same rows by the engine alone, tensors dropped", rows / two, **on)
        say("gpu_scoring_in_flight", *speed, "one batch at a time", one / two, **on)
