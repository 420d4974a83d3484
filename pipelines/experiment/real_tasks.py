"""Tasks made of held-out text for the harness: which of four continuations is the text's, and what is the next word?

As in the quickstart's task (``pipelines.quickstart.continuations``), four beginnings share their four choices, so that
a model that ignores the beginning is right once in four. LAMBADA (arXiv 1606.06031) asks for words in the same way.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.model_files.checkpoint import Checkpoint
from engine.spec import EvaluationSpec
from pipelines.experiment.texts import SEED
from pipelines.quickstart.continuations import stretches
from pipelines.quickstart.texts import Document

CONTINUATIONS, NEXT_WORDS = "continuations", "next_words"

#: Metric of the harness to its heading on the page.
HEADINGS = {
    f"{CONTINUATIONS}:acc": "right continuation of four",
    f"{NEXT_WORDS}:acc": "next word right",
    f"{NEXT_WORDS}:perplexity": "perplexity of the next word",
}

#: Questions of each task; a choice costs a model as much as a question about the next word.
CHOICES, MOST_GROUPS, MOST_WORDS = 4, 12, 96

#: A continuation that begins with a whole word of at least four letters.
_WORD = re.compile(r" [^\W\d_]{4,}(?=[\s,.;:])")


def write_tasks(folder: Path, documents: Sequence[Document]) -> None:
    """Write both tasks of some documents, always with the same questions."""
    found = [stretch for document in documents for stretch in stretches(document.text)]
    random.Random(SEED).shuffle(found)
    groups = [found[start : start + CHOICES] for start in range(0, len(found) - CHOICES + 1, CHOICES)][:MOST_GROUPS]
    choices = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
    _write(folder, CONTINUATIONS, choices, ["acc"], [question for group in groups for question in _questions(group)])
    words = [{"context": text, "word": word[0]} for text, rest in found if (word := _WORD.match(rest))]
    said = {"output_type": "loglikelihood", "doc_to_target": "{{word}}"}
    _write(folder, NEXT_WORDS, said, ["acc", "perplexity"], words[:MOST_WORDS])


def scores_of_tasks(folder: Path, checkpoint: Path) -> dict[str, float]:
    """The figures of ``HEADINGS`` for one model on the tasks of a folder; called in a process of its own."""
    from pipelines.evaluation.tasks import run_tasks

    settings = EvaluationSpec(tasks=(CONTINUATIONS, NEXT_WORDS), task_folders=(str(folder),))
    scores = run_tasks(Checkpoint(str(checkpoint)), settings, "cpu").scores
    return {f"{task}:{metric}": scores[task][f"{metric},none"] for task, _, metric in map(_parts, HEADINGS)}


def _parts(figure: str) -> tuple[str, str, str]:
    return figure.partition(":")


def _questions(group: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    choices = [right for _, right in group]
    return [{"context": context, "choices": choices, "answer": answer} for answer, (context, _) in enumerate(group)]


def _write(folder: Path, task: str, kind: dict[str, str], metrics: Sequence[str], rows: Sequence[dict]) -> None:
    """Write a task's file and its data beside it."""
    data = folder / f"{task}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
    settings = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "target_delimiter": "",  # what follows begins with its own space
        "metric_list": [{"metric": metric} for metric in metrics],
        "metadata": {"version": 1.0},
    }
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(settings | kind), encoding="utf8")
