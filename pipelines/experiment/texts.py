"""Write the experiment's texts as files that a run can read.

Setting A continues the quickstart: its source models, its corpus and its held-out text are files of this repository. A
tenth of that corpus becomes the validation text for learning rates. Setting B has its own domains and models; see
``pipelines.experiment.domains``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

from pipelines.experiment.domains import default_domains, folder_domains
from pipelines.quickstart.build import FOLDER, QUOTAS, SEED
from pipelines.quickstart.texts import Document, split_documents

HELD_OUT, VALIDATION, CORPUS, BASE, EXPERT = "held-out", "validation", "corpus", "base", "expert"

#: Bytes of each domain in each part of setting B, as far as there is text.
EXPERT_QUOTAS = {HELD_OUT: 36_000, VALIDATION: 15_000, CORPUS: 66_000, BASE: 60_000, EXPERT: 1_200_000}

VALIDATION_SHARE = 10
"""One document in ten of the quickstart's corpus is validation text."""


def quickstart_parts() -> tuple[list[Document], list[Document]]:
    """The training text of setting A's targets and larger source: no module of the stored files, in any Python."""
    parts = split_documents(QUOTAS, rest="sources", seed=SEED)
    files = [FOLDER / "corpus" / "train.jsonl", *_held_out_files()]
    stored = {_module(row["id"]) for path in files for row in _rows(path)}
    target, sources = (
        [document for document in parts[part] if _module(document.name) not in stored] for part in ("target", "sources")
    )
    return target, sources


def _held_out_files() -> list[Path]:
    return sorted((FOLDER / "corpus").glob("heldout_*.jsonl"))


def expert_parts(corpora: Path | None) -> dict[str, list[Document]]:
    """The parts of setting B, domain after domain; from a folder of corpora if one is given."""
    domains = folder_domains(corpora, EXPERT_QUOTAS, SEED) if corpora else default_domains(EXPERT_QUOTAS, SEED)
    return {part: list(itertools.chain(*(found[part] for found in domains.values()))) for part in EXPERT_QUOTAS}


def domains_of(documents: Iterable[Document]) -> tuple[str, ...]:
    """The domains of some documents, in order."""
    return tuple(dict.fromkeys(document.domain for document in documents))


def write_texts(folder: Path, experts: dict[str, list[Document]]) -> None:
    """Write ``a/`` and ``b/``, each with ``corpus.jsonl``, ``validation_DOMAIN.jsonl``, ``held-out_DOMAIN.jsonl``."""
    rows = _rows(FOLDER / "corpus" / "train.jsonl")
    validation = [row for row in rows if _is_for_validation(row["id"])]
    _write(folder / "a" / "corpus.jsonl", [row for row in rows if row not in validation])
    for path in _held_out_files():
        domain = path.stem.removeprefix("heldout_")
        _write(folder / "a" / f"{HELD_OUT}_{domain}.jsonl", _rows(path))
        _write(folder / "a" / f"{VALIDATION}_{domain}.jsonl", [row for row in validation if row["domain"] == domain])
    for part in (HELD_OUT, VALIDATION):
        for domain in domains_of(experts[part]):
            chosen = [document for document in experts[part] if document.domain == domain]
            write_documents(folder / "b" / f"{part}_{domain}.jsonl", chosen)
    corpus = list(experts[CORPUS])
    random.Random(SEED).shuffle(corpus)
    write_documents(folder / "b" / "corpus.jsonl", corpus)


def read_texts(folder: Path, part: str) -> dict[str, list[str]]:
    """Domain to documents of one part, from the files of ``write_texts``."""
    paths = sorted(folder.glob(f"{part}_*.jsonl"))
    return {path.stem.removeprefix(f"{part}_"): [row["text"] for row in _rows(path)] for path in paths}


def _module(name: str) -> str:
    """The module in a document's name, ``DOMAIN/MODULE/NUMBER``."""
    return name.partition("/")[2].rpartition("/")[0]


def _is_for_validation(name: str) -> bool:
    """Whether a document is validation text, by a hash of its name: the choice is the same on all machines."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as JSON lines with ``id``, ``domain`` and ``text``."""
    _write(path, ({"id": found.name, "domain": found.domain, "text": found.text} for found in documents))


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
