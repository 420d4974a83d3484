"""The experiment's text, all of it from the standard library of the running Python; see ``pipelines.quickstart.texts``.

Setting A goes on from the quickstart: its source models, its corpus and its held-out text are files of this repository.
A tenth of that corpus is taken out to choose learning rates on. Setting B needs three domains that no model has read:
code, docstrings and language topics, from modules that no other part of the experiment uses.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.quickstart.build import FOLDER, QUOTAS, SEED
from pipelines.quickstart.texts import Document, split_documents

HELD_OUT, VALIDATION, CORPUS = "held-out", "validation", "corpus"

#: Domains of setting A and of setting B.
FUSION_DOMAINS = ("docs", "code")
EXPERT_DOMAINS = ("code", "docstrings", "topics")

#: What setting B asks of the standard library, in bytes of ``docs`` and of ``code``; a fifth of the docs are topics.
EXPERT_QUOTAS = {f"expert {HELD_OUT}": 130_000, f"expert {VALIDATION}": 50_000, f"expert {CORPUS}": 400_000}

#: What setting B keeps of it for each of its domains, in bytes.
EXPERT_BYTES = {HELD_OUT: 25_000, VALIDATION: 9_000, CORPUS: 75_000}

VALIDATION_SHARE = 10
"""One document in so many of the quickstart's corpus serves to choose learning rates."""


def experiment_parts() -> dict[str, list[Document]]:
    """The quickstart's parts, then setting B's, then ``sources``: everything else. No two share a module."""
    return split_documents({**QUOTAS, **EXPERT_QUOTAS}, rest="sources", seed=SEED)


def target_documents(parts: dict[str, list[Document]]) -> list[Document]:
    """What target models are made from: nothing of the stored files, whatever Python this is."""
    stored = {row["id"] for file in sorted((FOLDER / "corpus").glob("*.jsonl")) for row in _rows(file)}
    return [document for document in parts["target"] if document.name not in stored]


def write_texts(folder: Path, parts: dict[str, list[Document]]) -> None:
    """Write ``a/`` and ``b/`` with ``corpus*.jsonl``, ``validation_DOMAIN.jsonl`` and ``held-out_DOMAIN.jsonl``."""
    rows = _rows(FOLDER / "corpus" / "train.jsonl")
    chosen = [_is_for_validation(row["id"]) for row in rows]
    _write(folder / "a" / "corpus.jsonl", (row for row, is_chosen in zip(rows, chosen, strict=True) if not is_chosen))
    for domain in FUSION_DOMAINS:
        validation = [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen and row["domain"] == domain]
        _write(folder / "a" / f"{VALIDATION}_{domain}.jsonl", validation)
        _write(folder / "a" / f"{HELD_OUT}_{domain}.jsonl", _rows(FOLDER / "corpus" / f"heldout_{domain}.jsonl"))
    mixed = []
    for part, most_bytes in EXPERT_BYTES.items():
        for domain in EXPERT_DOMAINS:
            rows = _expert_rows(parts[f"expert {part}"], domain, most_bytes)
            _write(folder / "b" / f"{part}_{domain}.jsonl", rows)
            mixed += rows if part == CORPUS else []
    random.Random(SEED).shuffle(mixed)
    _write(folder / "b" / "corpus.jsonl", mixed)


def read_texts(folder: Path, part: str, domains: Sequence[str]) -> dict[str, list[str]]:
    """Domain to documents of one part, as ``write_texts`` wrote them."""
    return {domain: [row["text"] for row in _rows(folder / f"{part}_{domain}.jsonl")] for domain in domains}


def _expert_rows(documents: Iterable[Document], domain: str, most_bytes: int) -> list[dict[str, str]]:
    """The first documents of a domain that fit."""
    rows, taken = [], 0
    for document in documents:
        if _expert_domain(document) == domain and taken + document.num_bytes <= most_bytes:
            rows.append({"id": document.name, "domain": domain, "text": document.text})
            taken += document.num_bytes
    return rows


def _expert_domain(document: Document) -> str:
    if document.domain == "code":
        return "code"
    return "topics" if document.name.startswith("docs/topic/") else "docstrings"


def _is_for_validation(name: str) -> bool:
    """By the document's name, so that the choice is the same everywhere."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
