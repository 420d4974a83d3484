"""The texts of the experiment on real models.

A little text, which is read four times, in two languages that the target hardly knows and in English; and a mixture,
which is read once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.experiment.domains import deal, rows_of
from pipelines.experiment.real_tasks import write_tasks
from pipelines.experiment.texts import CORPUS, HELD_OUT, SEED, VALIDATION, write_documents


class RealCorpus(NamedTuple):
    """One corpus of the experiment.

    Attributes:
        files: that it is made of, without their ending.
        num_bytes: to learn, dealt to the files in equal shares.
        passes: over it.
        steps: of training in all passes, of one block of 512 tokens.
    """

    files: Sequence[str]
    num_bytes: int
    passes: int
    steps: int


REAL_CORPORA: Mapping[str, RealCorpus] = {
    "german": RealCorpus(("handbook_de",), 12_000, 4, 32),
    "french": RealCorpus(("handbook_fr",), 12_000, 4, 40),
    "encyclopaedia": RealCorpus(("wiki",), 12_000, 4, 24),
    "mixture": RealCorpus(("handbook_de", "handbook_fr", "handbook_en", "wiki", "drama", "speeches"), 48_000, 1, 29),
}

#: Folder of a corpus's tasks, beside its texts.
TASKS = "tasks"

#: One chapter or article gives a part at most its quota divided by this.
LARGEST_SHARE = 2

#: Bytes of the other parts, dealt likewise; chapters and articles go whole into one part.
QUOTAS = {HELD_OUT: 48_000, VALIDATION: 24_000}


def write_real_texts(folder: Path, corpora: Path) -> None:
    """Write a folder for each of ``REAL_CORPORA``, as ``pipelines.experiment.texts.write_texts`` does, and its tasks.

    Args:
        corpora: a folder with the files as Parquet, with a column ``text``.

    Raises:
        ValueError: a file is missing.
    """
    missing = sorted(
        {name for found in REAL_CORPORA.values() for name in found.files if not _file(corpora, name).exists()}
    )
    if missing:
        raise ValueError(f"{corpora} lacks {', '.join(f'{name}.parquet' for name in missing)}")
    for corpus, found in REAL_CORPORA.items():
        names, sizes = found.files, QUOTAS | {CORPUS: found.num_bytes}
        quotas = {part: size // len(names) for part, size in sizes.items()}
        parts = [deal(rows_of(_file(corpora, name)), quotas, SEED, LARGEST_SHARE) for name in names]
        for part in (HELD_OUT, VALIDATION):
            for name, of_file in zip(names, parts, strict=True):
                write_documents(folder / corpus / f"{part}_{name}.jsonl", of_file[part])
        write_tasks(folder / corpus / TASKS, [document for of_file in parts for document in of_file[HELD_OUT]])
        documents = [document for of_file in parts for document in of_file[CORPUS]]
        random.Random(SEED).shuffle(documents)
        write_documents(folder / corpus / f"{CORPUS}.jsonl", documents)


def _file(corpora: Path, name: str) -> Path:
    return corpora / f"{name}.parquet"
