"""The model card of an export, for people and for the hub: its models, its training, its scores, its spec."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from math import nan
from typing import Any

import yaml

from engine.history.result import RunResult
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration
from engine.model_files.local import local_checkpoint
from engine.reporting.figures import short_place
from engine.spec import FusionSpec
from engine.store import located, writing

CARD_FILE = "README.md"
PAPER = "[FuseLLM](https://arxiv.org/abs/2401.10491)"
WEIGHTS = (".safetensors", ".bin", ".pt")
HASHED_AT_ONCE = 2**22


def write_model_card(spec: FusionSpec, result: RunResult) -> str:
    """Write the card beside the exported model; an older card is replaced.

    Returns:
        Its path or URL.

    Raises:
        StoreError: the card cannot be written.
    """
    filesystem, folder = located(result.export_dir)
    place = os.path.join(folder, CARD_FILE)
    card = model_card(spec, result).encode("utf8")
    with writing(result.export_dir, "the model card"):
        filesystem.pipe_file(place, card)
    return filesystem.unstrip_protocol(place)


def model_card(spec: FusionSpec, result: RunResult) -> str:
    """The card as Markdown, with the YAML head that the hub reads."""
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": [short_place(model.checkpoint) for model in (spec.target_model, *spec.source_models)],
        "tags": ["knowledge-fusion"] if spec.source_models else ["continued-training"],
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {spec.run.name}", ""]
    lines += [_sentence(spec, result), "", "## Models", "", *_table(("", "checkpoint", "revision"), _models(spec)), ""]
    lines += ["## Training", "", *_table(("", ""), _training(spec, result).items()), ""]
    if result.bits_per_byte:
        lines += ["## Held-out bits per byte (lower is better)", "", *_held_out(result.bits_per_byte), ""]
    document = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    lines += ["## Spec", "", "```yaml", document.strip(), "```"]
    return "\n".join(lines) + "\n"


def revision(checkpoint: Checkpoint) -> str:
    """The exact version of a checkpoint: the hub's commit, or the SHA-256 of its weight files."""
    folder = local_checkpoint(checkpoint)
    if not os.path.isdir(folder):
        return f"commit {load_configuration(checkpoint)._commit_hash}"
    digest = hashlib.sha256()
    for name in sorted(name for name in os.listdir(folder) if name.endswith(WEIGHTS)):
        with open(os.path.join(folder, name), "rb") as file:
            while part := file.read(HASHED_AT_ONCE):
                digest.update(part)
    return f"sha256 {digest.hexdigest()}"


def _sentence(spec: FusionSpec, result: RunResult) -> str:
    made = f"by knowledge-fusion-engine {_own_version()} in {result.steps:,} steps over {result.tokens:,} tokens"
    if not spec.source_models:
        return f"Continued training of {short_place(spec.target_model.checkpoint)}, {made}."
    names = ", ".join(source.name for source in spec.source_models)
    return f"{short_place(spec.target_model.checkpoint)} fused from {names} by the method of {PAPER}, {made}."


def _models(spec: FusionSpec) -> Iterator[tuple[str, ...]]:
    named = {"target": Checkpoint.of(spec.target_model)}
    named |= {f"source {source.name}": Checkpoint.of(source) for source in spec.source_models}
    for name, checkpoint in named.items():
        adapter = f" + adapter {short_place(checkpoint.adapter)}" if checkpoint.adapter else ""
        yield name, short_place(checkpoint.path) + adapter, revision(checkpoint)


def _training(spec: FusionSpec, result: RunResult) -> dict[str, str]:
    training, optimizer, fusion = spec.training, spec.training.optimizer, spec.fusion
    rows = {
        "data": _data(spec),
        "learned": f"{result.passages:,} passages, {result.tokens:,} target tokens, {result.bytes:,} bytes",
        **({} if result.num_skipped is None else {"left out of the corpus": f"{result.num_skipped:,} rows"}),
        "steps": f"{result.steps:,} of {training.global_batch_blocks} blocks of {training.block_length} tokens",
        "optimizer": f"AdamW, peak learning rate {optimizer.learning_rate:g}, {optimizer.schedule}, "
        f"{optimizer.warmup_steps} steps of warm-up, weight decay {optimizer.weight_decay:g}",
        "weights trained": f"adapters of rank {spec.target_model.lora.rank}, merged"
        if spec.target_model.lora.rank
        else "all",
    }
    if spec.source_models:
        rows["fusion"] = f"{fusion.rule} by {fusion.granularity}, the top {fusion.top_k} tokens of each row"
        rows["alignment"] = f"tokens {spec.alignment.tokens}, vocabulary {spec.alignment.vocabulary}"
        rows["objective"] = f"{spec.objective.lm_loss_weight:g} causal LM loss + " + (
            f"{1.0 - spec.objective.lm_loss_weight:g} fusion loss ({spec.objective.divergence})"
        )
        if spec.objective.full_gain:
            rows["objective"] += f" in passages of a gain of {spec.objective.full_gain:g} nats, less fusion loss below"
    return rows


def _data(spec: FusionSpec) -> str:
    """The files of the corpus, of a mixture by domain with the domain's weight."""
    if not spec.corpus.domains:
        return ", ".join(map(short_place, spec.corpus.paths))
    domains = ((name, spec.corpus.domains[name]) for name in spec.corpus.domain_names)
    return "; ".join(
        f"{name} (weight {domain.weight:g}): {', '.join(map(short_place, domain.paths))}" for name, domain in domains
    )


def _held_out(bits_per_byte: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    domains = list(dict.fromkeys(domain for row in bits_per_byte.values() for domain in row))
    rows = [(label, *(f"{row.get(domain, nan):.4f}" for domain in domains)) for label, row in bits_per_byte.items()]
    yield from _table(("model", *domains), rows)


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _own_version() -> str:
    try:
        return version("knowledge-fusion-engine")
    except PackageNotFoundError:  # run from its folder
        return "from a working copy"
