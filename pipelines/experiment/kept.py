"""The findings of a setting in a file: the page can be written from them again, and intervals be computed from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.experiment.bootstrap import ScoredDomain, Scores
from pipelines.experiment.results import Choice, Findings, Row

#: Decimals of a document's bits in the file: the bits of a held-out text of 48,000 bytes are then right to ten digits.
DECIMALS = 3


def keep(folder: Path, findings: Findings) -> None:
    """Write the findings of a setting, in place of those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = asdict(findings)
    fields["choices"] = [
        {"arm": one.arm, "tried": [[*at, bits] for at, bits in one.tried.items()]} for one in findings.choices
    ]
    for row in (*fields["rows"], *fields["ablations"]):
        row["scores"] = [{domain: _lists(scored) for domain, scored in seed.items()} for seed in row["scores"]]
    _file(folder, findings.setting).write_text(json.dumps(fields) + "\n", encoding="utf8")


def kept(folder: Path, setting: str) -> Findings | None:
    """The findings of a setting as they were kept; None if none are there."""
    file = _file(folder, setting)
    if not file.exists():
        return None
    fields = json.loads(file.read_text(encoding="utf8"))
    return Findings(
        **fields
        | {
            "choices": [_choice(**choice) for choice in fields["choices"]],
            "rows": [_row(row) for row in fields["rows"]],
            "ablations": [_row(row) for row in fields["ablations"]],
        }
    )


def _lists(scored: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.round(values, DECIMALS).tolist() for name, values in scored.items()}


def _choice(arm: str, tried: list[tuple[float, float, float]]) -> Choice:
    """A choice, of whose pairs JSON has made lists."""
    return Choice(arm, {(rate, weight): bits for rate, weight, bits in tried})


def _row(fields: dict[str, Any]) -> Row:
    scores = [scores_of(seed) for seed in fields["scores"]]
    return Row(**fields | {"scores": scores, "overrides": tuple(fields["overrides"])})


def scores_of(fields: dict[str, dict[str, list[float]]]) -> Scores:
    """One model's scores from the lists that JSON holds of them, by domain."""
    return {
        domain: ScoredDomain(**{name: np.array(values) for name, values in lists.items()})
        for domain, lists in fields.items()
    }


def _file(folder: Path, setting: str) -> Path:
    return folder / f"{setting}.json"
