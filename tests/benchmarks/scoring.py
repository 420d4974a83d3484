"""Scoring through a source model, against vLLM's own loop, vLLM's public log-probabilities, and transformers.

    python -m tests.benchmarks.scoring [--vocabulary 2k | --vocabulary 32k]

Figures, for both vocabularies and three K, all of one run, one model and the same texts, in turns, on one thread:
``scoring_vs_engine``: Arrow to Arrow, tokenization included, against the same engine on tokenized prompts with its
tensors dropped. ``front_end_seconds``: what we do outside of the engine, against what vLLM's public form (lists of
dicts, detokenised) does there. ``scoring_vs_public``, ``scoring_vs_transformers``: whole calls. ``engine_fill``: how
full a call leaves the engine's steps. Seconds are of this process' CPU, for others may use the machine as well; speeds
and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.sources.backends.step_size import CPU_TOKENS
from actors.sources.backends.transformers import TransformersBackend
from engine.model_files.checkpoint import Checkpoint
from engine.spec import SourceModelSpec
from engine.text.tokenization import PassageTokenizer
from tests.benchmarks.figures import say
from tests.benchmarks.scoring_ways import (
    DTYPE,
    TOKENIZERS,
    Clock,
    Ways,
    in_turns,
    load_public_llm,
    make_checkpoint,
    median_ratio,
    passage_texts,
    seconds_split,
)

if TYPE_CHECKING:
    from vllm import LLM

TOP_K = (10, 64, 128)
PASSAGES, PASSAGE_TOKENS = 64, 200
ROUNDS, SLOW_ROUNDS = 9, 3
FILLED_STEPS = (1, 2, 4, 8, 16)


def main() -> None:
    """All figures; a process for each vocabulary, because an engine does not give back all that it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", choices=[*TOKENIZERS])
    chosen = parser.parse_args().vocabulary
    if chosen:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            figures(make_checkpoint(Path(folder), chosen), chosen)
        return
    for vocabulary in TOKENIZERS:
        command = [sys.executable, "-m", "tests.benchmarks.scoring", "--vocabulary", vocabulary]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def figures(checkpoint: str, vocabulary: str) -> None:
    """The figures of one vocabulary."""
    most_passages = max(FILLED_STEPS) * CPU_TOKENS // PASSAGE_TOKENS
    texts = passage_texts(PassageTokenizer.load(Checkpoint(checkpoint)), PASSAGE_TOKENS, most_passages)
    oracle = TransformersBackend(SourceModelSpec(name="oracle", checkpoint=checkpoint, dtype=DTYPE), max(TOP_K))
    every = {top_k: Ways(checkpoint, texts[:PASSAGES], top_k, oracle) for top_k in TOP_K}
    public_llm = load_public_llm(checkpoint, max(TOP_K))  # after ours, which sets what vLLM reads when it is imported
    on = {"vocabulary": vocabulary, "passages": PASSAGES, "dtype": DTYPE, "threads": 1}
    for top_k, ways in every.items():
        here = {**on, "top_k": top_k, "tokens": ways.tokens}
        against_engine(ways, here)
        against_others(ways, public_llm, here)
    engine_fill(Ways(checkpoint, texts, TOP_K[0], oracle), {"vocabulary": vocabulary, "top_k": TOP_K[0]})


def against_engine(ways: Ways, on: dict[str, Any]) -> None:
    """Our whole call, against the engine's loop alone."""
    engine, ours = in_turns([ways.engine, ways.ours], ROUNDS)
    outside, inside = seconds_split(ways.ours, ways.llm, "generate", SLOW_ROUNDS)
    say(
        "scoring_vs_engine",
        ways.tokens / statistics.median(ours.cpu),
        "tokens/s",
        "the same engine, prompts tokenized, tensors dropped",
        median_ratio(ours.cpu, engine.cpu),
        **on,
        rounds=ROUNDS,
        ratio_of_best=round(min(engine.cpu) / min(ours.cpu), 4),
        wall_ratio=median_ratio(ours.wall, engine.wall),
        share_inside_engine=round(inside / (inside + outside), 4),
    )


def against_others(ways: Ways, public_llm: LLM, on: dict[str, Any]) -> None:
    """Our whole call against the public form and transformers; what is done outside of the engine, likewise."""
    from vllm.v1.engine.logprobs import LogprobsProcessor

    in_public = partial(ways.public, public_llm)
    clocks = in_turns([ways.engine, ways.ours, in_public, ways.transformers], SLOW_ROUNDS)
    engine, ours, public, _ = (statistics.median(clock.cpu) for clock in clocks)
    front_end, _ = seconds_split(ways.ours, ways.llm, "generate", SLOW_ROUNDS)
    _, conversion = seconds_split(in_public, LogprobsProcessor, "_update_prompt_logprobs", SLOW_ROUNDS)
    on = {**on, "rounds": SLOW_ROUNDS}
    say(
        "front_end_seconds",
        front_end,
        "CPU s, tokenization included",
        "vLLM's conversion to lists of dicts, detokenised, prompts tokenized",
        conversion / front_end,
        **on,
        theirs=round(conversion, 4),
        ours_less_engine=round(ours - engine, 4),
        theirs_less_engine=round(public - engine, 4),
    )
    speed = (ways.tokens / ours, "tokens/s")
    of_public, of_transformers = (median_ratio(clocks[1].cpu, clock.cpu) for clock in clocks[2:])
    say("scoring_vs_public", *speed, "vLLM's lists of dicts, prompts tokenized", of_public, **on)
    say("scoring_vs_transformers", *speed, "batched forward, prompts tokenized", of_transformers, **on)


def engine_fill(ways: Ways, on: dict[str, Any]) -> None:
    """Tokens in the engine's steps, and its speed, by the tokens of a call."""
    capacity = CPU_TOKENS
    calls = {"64 passages": PASSAGES} | {f"{steps} steps": steps * capacity // PASSAGE_TOKENS for steps in FILLED_STEPS}
    steps = {name: steps_of(ways, count) for name, count in calls.items()}
    clocks: list[Clock] = in_turns([partial(ways.engine, count) for count in calls.values()], SLOW_ROUNDS)
    rates = {
        name: ways.tokens_of(count) / min(clock.cpu) for (name, count), clock in zip(calls.items(), clocks, strict=True)
    }
    for name, count in calls.items():
        say(
            "engine_fill",
            ways.tokens_of(count) / steps[name] / capacity,
            "of the tokens that its steps could hold",
            f"speed of a call of {max(FILLED_STEPS)} steps",
            rates[name] / rates[f"{max(FILLED_STEPS)} steps"],
            **on,
            call=name,
            tokens=ways.tokens_of(count),
            steps=steps[name],
        )


def steps_of(ways: Ways, count: int) -> int:
    """Steps that the engine takes for the first ``count`` passages."""
    calls = Clock()
    original = ways.llm.llm_engine.step
    ways.llm.llm_engine.step = partial(calls.run, original)
    try:
        ways.engine(count)
    finally:
        ways.llm.llm_engine.step = original
    return len(calls.cpu)


if __name__ == "__main__":
    main()
