"""The whole stream on one GPU, for the benchmark ``gpu``: three sources and a target of one size, random weights.

``gpu_stream``: target tokens a second of a run through ``engine.run``, against what the same card takes for a target
token when each stage works alone (seconds busy in the run, source by source, and in training). Above 1, stages hide
under one another. With it ``useful_share``, the operations that the models need (two for each weight and token scored,
six for each one learned; recomputation is not useful) against the card's peak; and the exposed wait, time in which
training has nothing to learn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import engine
from engine.history.result import RunResult
from tests.benchmarks.figures import say
from tests.benchmarks.gpu_shapes import (
    SHAPES,
    card,
    gpt_neox_config,
    llama_config,
    parameters_of,
    save_checkpoint,
    share_of_peak,
)
from tests.support.paths import ROOT

QUICKSTART = ROOT / "pipelines/specs/quickstart.yaml"

#: Each with the tokenizer of another of the quickstart's models.
SOURCES = (("llama-docs", llama_config), ("gpt2-code", llama_config), ("neox-mixed", gpt_neox_config))

BLOCKS = 16


def figures(device: str, size: str, passes: int) -> None:
    """The figure of one size."""
    with tempfile.TemporaryDirectory() as folder:
        report(engine.run(spec(Path(folder), device, size, passes)), device, size)


def spec(folder: Path, device: str, size: str, passes: int):
    """The quickstart's corpus, and models of that size."""
    on_gpu = device == "cuda"
    length = min(SHAPES[size].context, 1024)
    dtype = "bfloat16" if on_gpu else "float32"
    sources = [
        {
            "name": name,
            "checkpoint": make(folder / name, config(size, vocabulary_of(device)), name, device),
            "dtype": dtype,
            "backend": "vllm" if on_gpu else "transformers",  # tests/integration has vLLM's runs on a CPU
            "num_gpus": 0.15 if on_gpu else 0.0,
            "probe": "off",
            "kv_cache_bytes": 2**32 if on_gpu else 2**26,
        }
        for name, config in SOURCES
    ]
    target = make(folder / "target", llama_config(size, vocabulary_of(device)), "mistral-target", device)
    return engine.load_spec(
        QUICKSTART,
        overrides=[
            f"run.output_dir={folder / 'output'}",
            f"alignment.cache_dir={folder / 'tables'}",
            "run.deterministic=false",
            f"corpus.passes={passes}",
            f"source_models={sources}",
            f"target_model={{checkpoint: {target}}}",
            "evaluation.corpora={}",
            "training.num_workers=1",
            f"training.num_gpus_per_worker={0.55 if on_gpu else 0.0}",
            f"training.precision={dtype}",
            "training.activation_checkpointing=true",
            f"training.block_length={length}",
            f"training.global_batch_blocks={BLOCKS if on_gpu else 4}",
            "training.micro_batch_blocks=4",
            f"training.max_steps={1_000_000 if on_gpu else 8}",
            "training.checkpoint_every_steps=1000000",
        ],
    )


def vocabulary_of(device: str) -> int:
    return 32_000 if device == "cuda" else 3_000


def make(folder: Path, config, tokenizer: str, device: str) -> str:
    """A checkpoint in bfloat16."""
    return save_checkpoint(folder, config, tokenizer, device, torch.bfloat16)


def report(result: RunResult, device: str, size: str) -> None:
    """The figure of a finished run, from the moment on at which the first step has its data.

    Before that the engines start. Of the sources' work, what the later steps need counts. They are a few batches ahead
    by then, which a corpus of many batches makes small.
    """
    first, later = result.history[0], result.history[1:]
    seconds = result.history[-1].elapsed_seconds - first.wait_seconds
    share = 1.0 - first.tokens / result.tokens
    stages = {stage.name: stage for stage in result.stages}
    waited = sum(step.wait_seconds for step in later)
    alone = seconds - waited + share * sum(stages[name].busy_seconds for name, _ in SOURCES)
    weights = {name: parameters_of(config(size, vocabulary_of(device))) for name, config in SOURCES}
    scoring = share * sum(2 * weights[name] * stages[name].tokens for name, _ in SOURCES)
    learning = 6 * parameters_of(llama_config(size, vocabulary_of(device))) * result.tokens
    say(
        "gpu_stream",
        result.tokens / seconds,
        "target tokens/s",
        "the GPU's stages one after the other",
        alone / seconds,
        card=card(device),
        size=size,
        steps=result.steps,
        tokens=result.tokens,
        useful_share=round(share_of_peak(scoring + learning, seconds, device), 4),
        exposed_wait_seconds=round(waited, 2),
        exposed_wait_share=round(waited / seconds, 4),
        busy_seconds={name: round(stage.busy_seconds, 2) for name, stage in stages.items()},
        seconds=round(seconds, 2),
    )
