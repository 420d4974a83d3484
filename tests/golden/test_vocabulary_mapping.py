"""The authors' nearest strings, and what they and we make of a distribution whose tokens meet."""

import numpy as np
import pytest

from engine.method.edit_distance import nearest
from engine.method.fusion import fuse
from engine.method.rows import SourceRows, TargetRows
from engine.spec import FusionRuleSpec

TARGETS = [
    "<unk>",
    "<s>",
    "</s>",
    "<0x0A>",
    "<0xE2>",
    "▁",
    "▁the",
    "▁cat",
    "▁car",
    "▁cats",
    "cat",
    "s",
    "2",
    "0",
    "é",
    "▁©",
]

#: Source string to the nearest target string; ties go to the one that comes first.
NEAREST = {
    "Ġcat": "▁cat", "Ġcatz": "▁cat", "Ġbat": "▁cat", "cat": "cat", "Ġ": "▁", "Ċ": "▁", "Ã©": "▁©", "Ġ2024": "▁",
    "<|endoftext|>": "<unk>", "ĠCat": "▁cat", "Ġdog": "▁",
}  # fmt: skip


def test_the_nearest_string_with_ties_to_the_first():
    found, _ = nearest([source.replace("Ġ", "▁") for source in NEAREST], TARGETS)
    assert [TARGETS[index] for index in found] == list(NEAREST.values())


#: Source tokens cat, puppy, pup, kitten with their logits; target tokens cat, dog, kit.
LOGITS = np.array([5.0, 4.0, 3.5, 1.0])
MAPPED = {"exact strings": [0, -1, -1, -1], "nearest strings": [0, 1, 1, 2]}


@pytest.mark.parametrize(
    ("mapping", "arithmetic", "expected"),
    [
        ("exact strings", "fusellm", {0: 5.0}),
        ("nearest strings", "fusellm", {0: 5.0, 1: 4.0, 2: 1.0}),  # pup's mass is lost
        ("nearest strings", "exact", {0: 5.0, 1: np.logaddexp(4.0, 3.5), 2: 1.0}),
    ],
)
def test_a_distribution_of_four(mapping, arithmetic, expected):
    logprobs = LOGITS - np.logaddexp.reduce(LOGITS)
    source = SourceRows(
        np.array([0, 1]), np.zeros(1, np.int32), np.zeros(1, np.int32), np.arange(4, dtype=np.int32)[None],
        logprobs[None].astype(np.float16), np.array([-1.0], np.float32), np.array(MAPPED[mapping], np.int32),
        np.array([0, -1], np.int32),
    )  # fmt: skip
    target = TargetRows(
        np.array([0, 1], np.int32), np.array([0, 3], np.int32), np.array([0, 2]), np.array([3], np.int32),
        np.zeros(1, np.int32), np.ones(1, bool),
    )  # fmt: skip
    fused = fuse(target, [source], FusionRuleSpec(top_k=4, arithmetic=arithmetic), vocabulary=3)
    logits = np.array(list(expected.values()))
    kept = np.logaddexp.reduce(LOGITS if arithmetic == "exact" else logits)
    probs = dict(zip(fused.ids[0].tolist(), fused.probs[0].tolist(), strict=True))
    assert {token: probs[token] for token in expected} == pytest.approx(
        dict(zip(expected, np.exp(logits - kept).tolist(), strict=True)), rel=3e-3
    )
    assert fused.ids[0].tolist().count(-1) == 4 - len(expected)
