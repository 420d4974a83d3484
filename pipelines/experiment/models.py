"""The models that the experiment makes itself: a target for every seed, and a larger model with the target's tokenizer.

The source models of setting A are the quickstart's. Its target's tokenizer serves all targets, so that seeds differ in
the initial weights and in the text that they have seen first, not in what a token is.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipelines.experiment.texts import target_documents
from pipelines.quickstart.build import FOLDER, batches, train
from pipelines.quickstart.recipes import INITIAL_SPREAD, RECIPES, WINDOW, Recipe
from pipelines.quickstart.texts import Document

TARGET = next(recipe for recipe in RECIPES if recipe.name == "mistral-target")
LARGER_SOURCE = "larger source"
PROCESSES = 2


def make_models(folder: Path, parts: dict[str, list[Document]], seeds: Sequence[int], larger_steps: int) -> None:
    """Train and store ``target-SEED`` for every seed and ``larger-source``, where they are not there yet.

    Two models at once, one thread each. On one kind of CPU the same versions give the same weights.
    """
    documents = target_documents(parts)
    jobs = [(replace(TARGET, seed=seed), documents, target_folder(folder, seed)) for seed in seeds]
    larger = replace(TARGET, config=_larger, steps=larger_steps, learning_rate=3e-3)
    jobs = [(larger, parts["sources"], larger_source_folder(folder)), *jobs]
    missing = [job for job in jobs if not (job[2] / "model.safetensors").exists()]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for made in [pool.submit(_make, *job) for job in missing]:
            made.result()


def target_folder(folder: Path, seed: int) -> Path:
    return folder / "models" / f"target-{seed}"


def larger_source_folder(folder: Path) -> Path:
    return folder / "models" / "larger-source"


def _make(recipe: Recipe, documents: Sequence[Document], folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "models" / TARGET.name)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = recipe.config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **special)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    train(model, recipe, batches(recipe, documents, tokenizer))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _larger(**shared):
    """The target's architecture with two and a half times as many parameters."""
    from transformers import MistralConfig

    return MistralConfig(
        hidden_size=192,
        intermediate_size=512,
        initializer_range=INITIAL_SPREAD,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=WINDOW,
        sliding_window=None,
        tie_word_embeddings=False,
        **shared,
    )
