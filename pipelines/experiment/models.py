"""Make the models from which the arms start, in plain torch.

Setting A: a target for every seed, and two larger models with the target's tokenizer; its source models are the
quickstart's. Setting B: a base for every seed, and its experts. All share the tokenizer of the quickstart's target, so
that seeds differ in the initial weights and in the first training text, not in the tokens.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.quickstart.build import FOLDER, batches, train
from pipelines.quickstart.recipes import INITIAL_SPREAD, RECIPES, WINDOW, Recipe
from pipelines.quickstart.texts import Document

TARGET = next(recipe for recipe in RECIPES if recipe.name == "mistral-target")
PROCESSES = 2

#: Steps of eight passages.
LARGER_STEPS, EQUAL_STEPS, BASE_STEPS, EXPERT_STEPS = 600, 2400, 200, 240


@dataclass(frozen=True)
class Job:
    """One model to make.

    Attributes:
        recipe: of its training.
        documents: of its training.
        folder: of its files; a model that is there is not made again.
        start: the model that it continues; None: random weights.
    """

    recipe: Recipe
    documents: Sequence[Document]
    folder: Path
    start: Path | None = None


def target_folder(folder: Path, seed: int) -> Path:
    """Folder of setting A's target."""
    return folder / "models" / f"target-{seed}"


def larger_folder(folder: Path) -> Path:
    """Folder of the larger source."""
    return folder / "models" / "larger"


def equal_folder(folder: Path) -> Path:
    """Folder of the source that is about as good as the quickstart's, with the target's tokenizer."""
    return folder / "models" / "equal"


def base_folder(folder: Path, seed: int) -> Path:
    """Folder of setting B's base."""
    return folder / "models" / f"base-{seed}"


def expert_folder(folder: Path, domain: str, rate: float, seed: int) -> Path:
    """Folder of an expert: the base of a seed continued on one domain."""
    return folder / "models" / f"expert-{domain}-rate-{rate:g}-seed-{seed}"


def target_jobs(folder: Path, seeds: Iterable[int], documents: list[Document]) -> list[Job]:
    """The jobs of setting A's targets."""
    return [Job(replace(TARGET, seed=seed), documents, target_folder(folder, seed)) for seed in seeds]


def source_jobs(folder: Path, documents: list[Document]) -> list[Job]:
    """The jobs of setting A's sources with the target's tokenizer; the longer one first."""
    larger = replace(TARGET, config=_larger, steps=LARGER_STEPS, learning_rate=3e-3)
    equal = replace(larger, steps=EQUAL_STEPS)
    return [Job(equal, documents, equal_folder(folder)), Job(larger, documents, larger_folder(folder))]


def base_jobs(folder: Path, seeds: Iterable[int], documents: list[Document], domains: Sequence[str]) -> list[Job]:
    """The jobs of setting B's bases, trained on a little text of every domain."""
    recipe = replace(TARGET, shares=dict.fromkeys(domains, 1 / len(domains)), steps=BASE_STEPS)
    return [Job(replace(recipe, seed=seed), documents, base_folder(folder, seed)) for seed in seeds]


def expert_job(folder: Path, domain: str, documents: list[Document], rate: float, seed: int) -> Job:
    """The job of an expert: the base of a seed continued on one domain."""
    recipe = replace(TARGET, shares={domain: 1.0}, steps=EXPERT_STEPS, learning_rate=rate, seed=seed)
    own = [document for document in documents if document.domain == domain]
    return Job(recipe, own, expert_folder(folder, domain, rate, seed), base_folder(folder, seed))


def make(jobs: Iterable[Job]) -> None:
    """Train and store the missing models, two at once with one thread each.

    On one kind of CPU, the same versions give the same weights.
    """
    with made_meanwhile(jobs):
        pass


@contextmanager
def made_meanwhile(jobs: Iterable[Job]) -> Iterator[None]:
    """``make`` while the body of the ``with`` runs; its end waits for the models."""
    missing = [job for job in jobs if not (job.folder / "model.safetensors").exists()]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        making = [pool.submit(_make, job) for job in missing]
        yield
        for made in making:
            made.result()


def _make(job: Job) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(job.recipe.seed)
    transformers.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "models" / TARGET.name)
    if job.start:
        model = AutoModelForCausalLM.from_pretrained(job.start, dtype=torch.float32)
    else:
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = job.recipe.config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **special)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    train(model, job.recipe, batches(job.recipe, job.documents, tokenizer))
    tokenizer.save_pretrained(job.folder)
    model.save_pretrained(job.folder)


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
