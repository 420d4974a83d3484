"""Fusion: masses add up, the rule decides, and kernels equal their twins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fusion import SourceRows, cross_entropies, fuse, source_weights
from engine.records import NO_TOKEN, NO_WINNER
from tests import oracles

VOCABULARY, TOP_K = 12, 4


def random_source(random: np.random.Generator, ends: list[list[int]]) -> SourceRows:
    """A source with the given end offsets and a mapping that has collisions and gaps."""
    rows = sum(map(len, ends))
    size = 10
    logits = random.normal(0, 2, (rows, size))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logprobs, axis=-1)[:, :TOP_K]
    return SourceRows(
        offsets=np.cumsum([0, *map(len, ends)], dtype=np.int64),
        end_bytes=np.array([end for row in ends for end in row], np.int32),
        topk_ids=order.astype(np.int32),
        topk_logprobs=np.take_along_axis(logprobs, order, -1).astype(np.float16),
        token_logprobs=random.normal(-2, 1, rows).astype(np.float32),
        mapping=random.integers(-1, VOCABULARY, size).astype(np.int32),
        begins_alike=random.random(len(ends)) < 0.7,
    )


def random_ends(random: np.random.Generator, num_bytes: int, with_bos: bool) -> list[int]:
    inner = sorted(random.choice(np.arange(1, num_bytes), random.integers(0, num_bytes - 1), replace=False).tolist())
    return [0] * with_bos + inner + [num_bytes]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from(["min_ce", "avg_ce"]), st.booleans())
def test_fusion_equals_the_slow_twin(seed, num_sources, rule, one_is_missing):
    random = np.random.default_rng(seed)
    num_bytes = random.integers(2, 12, 3)
    targets = [[*random_ends(random, n, True), n] for n in num_bytes]
    source_ends = [[random_ends(random, n, random.random() < 0.6) for n in num_bytes] for _ in range(num_sources)]
    if one_is_missing:
        source_ends[0][1] = []
    sources = [random_source(random, ends) for ends in source_ends]
    offsets = np.cumsum([0, *map(len, targets)], dtype=np.int64)
    flat = np.array([end for row in targets for end in row], np.int32)
    fused = fuse(flat, offsets, num_bytes.astype(np.int32), sources, rule, TOP_K, VOCABULARY)
    for passage, ends in enumerate(targets):
        expected_ce, weights, winner = expected_weights(sources, passage, int(num_bytes[passage]), rule)
        np.testing.assert_allclose(fused.cross_entropy[passage], expected_ce, rtol=1e-6)
        assert fused.winner[passage] == winner
        matches = [
            oracles.match_end_bytes(ends, rows_of(source, passage)[0], source.begins_alike[passage])
            for source in sources
        ]
        assert fused.covered_rows[passage].tolist() == [sum(match >= 0 for match in row) for row in matches]
        for row in range(len(ends)):
            expected = expected_row(sources, passage, [match[row] for match in matches], weights)
            place = offsets[passage] + row
            count = len(expected)
            assert fused.ids[place].tolist() == [token for token, _ in expected] + [NO_TOKEN] * (TOP_K - count)
            np.testing.assert_allclose(fused.probs[place, :count], [prob for _, prob in expected], rtol=2e-3)
            assert fused.is_fused[place] == bool(count)
            assert fused.probs[place].astype(np.float64).sum() <= 1.0 + 2**-11


def rows_of(source: SourceRows, passage: int) -> tuple[list[int], slice]:
    where = slice(source.offsets[passage], source.offsets[passage + 1])
    return source.end_bytes[where].tolist(), where


def expected_weights(sources, passage, num_bytes, rule) -> tuple[list[float], list[float], int]:
    first_byte = oracles.common_beginning([rows_of(source, passage)[0] for source in sources], num_bytes)
    cross_entropy = []
    for source in sources:
        ends, where = rows_of(source, passage)
        cross_entropy.append(oracles.nats_per_byte(ends, source.token_logprobs[where], num_bytes, first_byte))
    weights, winner = oracles.weights(cross_entropy, rule)
    return cross_entropy, weights, winner


def expected_row(sources, passage, matches, weights) -> list[tuple[int, float]]:
    parts = []
    for source, match, weight in zip(sources, matches, weights, strict=True):
        if match >= 0 and weight > 0:
            row = source.offsets[passage] + match
            parts.append((weight, source.topk_ids[row].tolist(), source.topk_logprobs[row], source.mapping.tolist()))
    return oracles.fused_row(parts, TOP_K) if parts else []


def one_row(ids, probs, mapping, **other) -> SourceRows:
    """A source with one passage of two bytes: rows after 0, 1 and 2 bytes, all the same."""
    return SourceRows(
        offsets=np.array([0, 3]),
        end_bytes=np.array([0, 1, 2], np.int32),
        topk_ids=np.array([ids] * 3, np.int32),
        topk_logprobs=np.log(np.array([probs] * 3)).astype(np.float16),
        token_logprobs=np.array(other.get("token_logprobs", [-1.0, -1.0, -1.0]), np.float32),
        mapping=np.array(mapping, np.int32),
        begins_alike=np.array([True]),
    )


def fuse_one(*sources: SourceRows, rule: str = "min_ce", top_k: int = 4):
    ends, offsets = np.array([0, 1, 2, 2], np.int32), np.array([0, 4])
    return fuse(ends, offsets, np.array([2], np.int32), sources, rule, top_k, VOCABULARY)


def test_masses_that_meet_are_added_and_what_maps_nowhere_is_rest():
    # cat 0.45 -> 5, puppy 0.3 -> 7, pup 0.1 -> 7, kitten 0.1 -> nowhere.
    fused = fuse_one(one_row([0, 1, 2, 3], [0.45, 0.3, 0.1, 0.1], [5, 7, 7, -1]))
    assert fused.ids[0].tolist() == [5, 7, NO_TOKEN, NO_TOKEN]
    np.testing.assert_allclose(fused.probs[0], [0.45, 0.4, 0, 0], rtol=2e-3)
    assert fused.is_fused.tolist() == [True, True, True, False]


def test_rounded_log_probabilities_never_add_up_to_more_than_one():
    # log(1/101) rounds up in float16: 101 of them would make 1.0018.
    count = 101
    source = one_row(list(range(count)), [1 / count] * count, list(range(count)))
    ends, offsets = np.array([0, 1, 2, 2], np.int32), np.array([0, 4])
    assert np.exp(source.topk_logprobs[0].astype(np.float64)).sum() > 1 + 2**-11
    fused = fuse(ends, offsets, np.array([2], np.int32), [source], "min_ce", count, count)
    assert abs(fused.probs[0].astype(np.float64).sum() - 1) <= 2**-11


def test_ids_beyond_the_mapping_are_rest():
    fused = fuse_one(one_row([99, 0, 1, 2], [0.5, 0.2, 0.1, 0.1], [1, 2, 3]))
    assert set(fused.ids[0].tolist()) == {1, 2, 3, NO_TOKEN}


def test_the_lowest_cross_entropy_wins_per_byte():
    worse = one_row([0, 1, 2, 3], [0.4, 0.3, 0.2, 0.05], [0, 1, 2, 3], token_logprobs=[-3, -3, -9])
    better = one_row([0, 1, 2, 3], [0.4, 0.3, 0.2, 0.05], [8, 9, 10, 11], token_logprobs=[-1, -2, -9])
    fused = fuse_one(worse, better)
    np.testing.assert_allclose(fused.cross_entropy, [[3.0, 1.5]])
    assert fused.winner[0] == 1
    assert fused.ids[0].tolist() == [8, 9, 10, 11]


def test_a_finer_tokenizer_wins_nothing_by_having_more_tokens():
    # The same text at the same bits per byte: three tokens of 1 nat against one of 3 nats.
    fine = SourceRows(
        np.array([0, 4]), np.array([0, 1, 2, 3], np.int32), np.zeros((4, 1), np.int32), np.zeros((4, 1), np.float16),
        np.array([-1, -1, -1, -5], np.float32), np.zeros(1, np.int32), np.array([True]),
    )  # fmt: skip
    coarse = SourceRows(
        np.array([0, 2]), np.array([0, 3], np.int32), np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float16),
        np.array([-3, -5], np.float32), np.zeros(1, np.int32), np.array([True]),
    )  # fmt: skip
    np.testing.assert_allclose(cross_entropies(np.array([3], np.int32), [fine, coarse]), [[1.0, 1.0]])


def test_without_bos_the_others_are_not_charged_for_the_first_token():
    with_bos = one_row([0], [1.0], [0], token_logprobs=[-50, -2, -9])
    without = SourceRows(
        np.array([0, 2]), np.array([1, 2], np.int32), np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float16),
        np.array([-3, -9], np.float32), np.zeros(1, np.int32), np.array([True]),
    )  # fmt: skip
    np.testing.assert_allclose(cross_entropies(np.array([2], np.int32), [with_bos, without]), [[2.0, 3.0]])


@pytest.mark.parametrize(
    ("rule", "cross_entropy", "weights", "winner"),
    [
        ("min_ce", [2.0, 1.0, 1.0], [0, 1, 0], 1),
        ("min_ce", [math.nan, 3.0, 4.0], [0, 1, 0], 1),
        ("min_ce", [math.nan, math.inf], [0, 0], NO_WINNER),
        ("avg_ce", [1.0, 1.0], [0.5, 0.5], NO_WINNER),
        ("avg_ce", [0.0, math.log(3.0), math.nan], [0.75, 0.25, 0], NO_WINNER),
        ("avg_ce", [math.nan], [0], NO_WINNER),
        ("avg_ce", [2000.0, 2000.0], [0.5, 0.5], NO_WINNER),
    ],
)
def test_weights(rule, cross_entropy, weights, winner):
    found, chosen = source_weights(np.array([cross_entropy]), rule)
    np.testing.assert_allclose(found[0], weights)
    assert chosen[0] == winner


def test_avg_ce_counts_only_the_sources_that_have_a_row():
    both = one_row([0, 1], [0.6, 0.4], [0, 1])
    late = SourceRows(
        np.array([0, 1]), np.array([2], np.int32), np.array([[0, 1]], np.int32),
        np.log(np.array([[0.5, 0.5]])).astype(np.float16), np.array([-1.0], np.float32), np.array([2, 3], np.int32),
        np.array([True]),
    )  # fmt: skip
    # The second source has a row only after all bytes, where it cannot be compared: it has no cross-entropy, no weight.
    fused = fuse_one(both, late, rule="avg_ce", top_k=2)
    assert np.isnan(fused.cross_entropy[0, 1])
    np.testing.assert_allclose(fused.probs[:3].sum(-1), 1.0, rtol=2e-3)


def test_without_sources_nothing_is_fused():
    fused = fuse_one()
    assert not fused.is_fused.any()
    assert (fused.ids == NO_TOKEN).all()
    assert fused.cross_entropy.shape == (1, 0)
