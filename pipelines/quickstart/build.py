"""Make the quickstart's models and corpus: ``python -m pipelines.quickstart.build``, from the repository's root.

Steps: read the standard library and deal its modules out to four parts that share no module; train a tokenizer and a
model for each recipe, two models at once with one CPU thread each; store them in float16; load them again as a user
would and measure held-out bits per byte; write the corpus and ``build.log``.

Cost: about 12 minutes of CPU time, 6 to 10 minutes on two cores; 8.2 MB on disk. Every number of steps is fixed and
every choice is seeded, so the same Python, the same pinned packages and the same kind of CPU give the same files.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import platform
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from pipelines.quickstart.recipes import RECIPES, Recipe, make_tokenizer
from pipelines.quickstart.texts import DOMAINS, Document, cut, split_documents

FOLDER = Path(__file__).parent
QUOTAS = {"held-out": 30_000, "corpus": 120_000, "target": 60_000}  # bytes of each domain; the sources get the rest
SEED = 0
PROCESSES = 2

PASSAGE_CHARACTERS = (128, 640)
"""A training passage has a random size in this range, so that a model learns short and long contexts."""

PASSAGE_TOKENS = 256
SORTED_BATCHES = 8
"""Batches drawn together and filled by length: a third less padding, and still a new mixture each time."""

EVALUATION_CHARACTERS = 384
TOKENIZER_PASSAGES = 4000
BATCH = 8
WARMUP_STEPS = 50
LOSSES_SHOWN = 10


def build(folder: Path, recipes: Sequence[Recipe]) -> None:
    """Make corpus, models and log in ``folder``; an older build is replaced."""
    begin = time.perf_counter()
    parts = split_documents(QUOTAS, rest="sources", seed=SEED)
    log = [f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"]
    log += ["", "documents and bytes of each part", *_part_sizes(parts)]
    write_corpus(folder / "corpus", parts)
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pools
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        jobs = [pool.submit(make_model, recipe, parts, folder / "models" / recipe.name) for recipe in recipes]
        for job in jobs:
            log += ["", *job.result()]
    log += ["", f"{time.perf_counter() - begin:.0f} s in all"]
    (folder / "build.log").write_text("\n".join(log) + "\n", encoding="utf8")
    print("\n".join(log))


def _part_sizes(parts: dict[str, list[Document]]) -> Iterator[str]:
    for part, documents in parts.items():
        for domain in DOMAINS:
            sizes = [document.num_bytes for document in documents if document.domain == domain]
            yield f"  {part:<9} {domain:<5} {len(sizes):>5} {sum(sizes):>9,}"


def write_corpus(folder: Path, parts: dict[str, list[Document]]) -> None:
    """Write the text to fuse on, shuffled, and one held-out file for each domain."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = list(parts["corpus"])
    random.Random(SEED).shuffle(corpus)
    _write_jsonl(folder / "train.jsonl", corpus)
    for domain in DOMAINS:
        held_out = [document for document in parts["held-out"] if document.domain == domain]
        _write_jsonl(folder / f"heldout_{domain}.jsonl", held_out)


def _write_jsonl(path: Path, documents: Sequence[Document]) -> None:
    rows = ({"id": document.name, "domain": document.domain, "text": document.text} for document in documents)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")


def make_model(recipe: Recipe, parts: dict[str, list[Document]], folder: Path) -> list[str]:
    """Train one tokenizer and model, store both, and measure the stored model.

    Returns:
        Lines for the log.
    """
    begin = time.process_time()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(recipe.seed)
    documents = parts[recipe.part]
    sample = [text for text, _ in itertools.islice(passages(recipe, documents), TOKENIZER_PASSAGES)]
    tokenizer = make_tokenizer(recipe, sample)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    config = recipe.config(vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    losses, num_tokens = train(model, recipe, batches(recipe, documents, tokenizer))
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seconds = time.process_time() - begin
    size = (folder / "model.safetensors").stat().st_size
    return [
        f"{recipe.name}: {model.num_parameters():,} parameters, {size:,} bytes, {len(tokenizer)} tokens, "
        f"{'BOS first' if recipe.starts_with_bos else 'no BOS'}",
        f"  trained on {num_tokens:,} tokens in {recipe.steps} steps, {seconds:.0f} CPU seconds",
        "  loss in nats a token, mean of each tenth: " + " ".join(f"{loss:.3f}" for loss in losses),
        *(f"  held-out {domain}: {bits:.3f} bits per byte" for domain, bits in measure(folder, parts["held-out"])),
    ]


def passages(recipe: Recipe, documents: Sequence[Document]) -> Iterator[tuple[str, bool]]:
    """Endless training passages in the recipe's mixture of domains, and whether each ends its document."""
    choices = random.Random(recipe.seed)
    streams = {domain: _passages_of(domain, documents, recipe.seed) for domain in recipe.shares}
    while True:
        [domain] = choices.choices(list(recipe.shares), list(recipe.shares.values()))
        yield next(streams[domain])


def _passages_of(domain: str, documents: Sequence[Document], seed: int) -> Iterator[tuple[str, bool]]:
    """Endless passages of one domain: each round in a new order and cut at new places."""
    choices = random.Random(f"{seed}/{domain}")
    sizes = iter(lambda: choices.randint(*PASSAGE_CHARACTERS), None)
    texts = [document.text for document in documents if document.domain == domain]
    while True:
        found = []
        for text in texts:
            pieces = list(cut(text, sizes))
            found += [(piece, number == len(pieces)) for number, piece in enumerate(pieces, start=1)]
        choices.shuffle(found)
        yield from found


def batches(
    recipe: Recipe, documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ``(ids [B, T], labels [B, T])``, padded on the right; padding has the label -100."""
    choices = random.Random(recipe.seed)
    stream = passages(recipe, documents)
    while True:
        pool = list(itertools.islice(stream, BATCH * SORTED_BATCHES))
        encoded = tokenizer([text for text, _ in pool])["input_ids"]
        ended = [ids + [tokenizer.eos_token_id] * is_end for ids, (_, is_end) in zip(encoded, pool, strict=True)]
        ended = sorted((ids[:PASSAGE_TOKENS] for ids in ended), key=len)
        starts = list(range(0, len(ended), BATCH))
        choices.shuffle(starts)
        yield from (_padded(ended[start : start + BATCH], tokenizer.pad_token_id) for start in starts)


def _padded(rows: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (length - len(row)) for row in rows])
    return ids, labels


def train(
    model: PreTrainedModel, recipe: Recipe, data: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[list[float], int]:
    """Train on the causal LM loss; returns the mean loss of every tenth of the steps, and the learned tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, recipe.steps))
    losses, num_tokens = [], 0
    model.train()
    for ids, labels in itertools.islice(data, recipe.steps):
        # No attention mask: padding is on the right, which causal attention never sees.
        logits = model(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        num_tokens += int((labels >= 0).sum())
    tenths = [
        losses[len(losses) * n // LOSSES_SHOWN : len(losses) * (n + 1) // LOSSES_SHOWN] for n in range(LOSSES_SHOWN)
    ]
    return [sum(tenth) / len(tenth) for tenth in tenths], num_tokens


def _learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warmup = min(WARMUP_STEPS, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / (steps - warmup))


def measure(folder: Path, documents: Sequence[Document]) -> Iterator[tuple[str, float]]:
    """Bits per byte of a stored model on each domain; the first bytes, which a model without BOS cannot predict, do not
    count."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for domain in DOMAINS:
        texts = [document.text for document in documents if document.domain == domain]
        pieces = [piece for text in texts for piece in cut(text, itertools.repeat(EVALUATION_CHARACTERS))]
        scores = [_bits(model, tokenizer, piece) for piece in pieces]
        yield domain, sum(bits for bits, _ in scores) / sum(num_bytes for _, num_bytes in scores)


@torch.no_grad()
def _bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[float, int]:
    """The model's bits for a passage, and the number of bytes that they describe."""
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    ids = encoded["input_ids"][0]
    unpredicted = text[: encoded["offset_mapping"][0, 0, 1]]  # empty if the first token is BOS
    logits = model(ids[None]).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
    return nats / math.log(2), len(text.encode("utf8")) - len(unpredicted.encode("utf8"))


if __name__ == "__main__":
    build(FOLDER, RECIPES)
