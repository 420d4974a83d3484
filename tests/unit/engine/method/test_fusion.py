"""Fusion: masses add up, the rule decides, and kernels equal their twins."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.method.fusion import cross_entropies, fuse, label_nats, own_token_cross_entropies, source_weights
from engine.method.rows import SourceRows, TargetRows
from engine.records import NO_TOKEN
from engine.spec import FusionRuleSpec
from tests import oracles

VOCABULARY, TOP_K = 12, 4


def random_source(random: np.random.Generator, targets: list[list[int]], ends: list[list[int]]) -> SourceRows:
    """A source with the given end offsets, a mapping that has collisions and gaps, and rows matched by bytes.

    Some matched rows teach the label instead, as alignment by edits has them.
    """
    rows = sum(map(len, ends))
    size = 10
    logits = random.normal(0, 2, (rows, size))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logprobs, axis=-1)[:, :TOP_K]
    alike = random.random() < 0.7
    match = [row for pair in zip(targets, ends, strict=True) for row in oracles.match_end_bytes(*pair, alike)]
    taught = [-2 if found >= 0 and random.random() < 0.1 else found for found in match]
    return SourceRows(
        offsets=np.cumsum([0, *map(len, ends)], dtype=np.int64),
        token_ids=random.integers(0, size, rows).astype(np.int32),
        end_bytes=np.array([end for row in ends for end in row], np.int32),
        topk_ids=order.astype(np.int32),
        topk_logprobs=np.take_along_axis(logprobs, order, -1).astype(np.float16),
        token_logprobs=random.normal(-2, 1, rows).astype(np.float32),
        mapping=random.integers(-1, VOCABULARY, size).astype(np.int32),
        match=np.array(taught, np.int32),
    )


def random_ends(random: np.random.Generator, num_bytes: int, with_bos: bool) -> list[int]:
    inner = sorted(random.choice(np.arange(1, num_bytes), random.integers(0, num_bytes - 1), replace=False).tolist())
    return [0] * with_bos + inner + [num_bytes]


def with_tokens_of_no_bytes(random: np.random.Generator, ends: list[int]) -> list[int]:
    """Some ends several times, as those of the tokens of one character are."""
    return [end for end in ends for _ in range(random.choice([1, 1, 1, 2, 3]))]


def target_rows(
    targets: list[list[int]],
    num_bytes: list[int],
    token_ids: list[int],
    first_bytes: list[int] | None = None,
    ends_document: bool = True,
) -> TargetRows:
    return TargetRows(
        token_ids=np.array(token_ids, np.int32),
        end_bytes=np.array([end for row in targets for end in row], np.int32),
        offsets=np.cumsum([0, *map(len, targets)], dtype=np.int64),
        num_bytes=np.array(num_bytes, np.int32),
        first_bytes=np.array(first_bytes or [0] * len(num_bytes), np.int32),
        ends_document=np.full(len(num_bytes), ends_document),
    )


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(1, 3),
    rule=st.sampled_from(["min_ce", "avg_ce", "uniform", "single"]),
    granularity=st.sampled_from(["passage", "token"]),
    temperature=st.sampled_from([0.3, 1.0]),
    one_is_missing=st.booleans(),
    product=st.booleans(),
    some_have_no_bytes=st.booleans(),
)
def test_fusion_equals_the_slow_twin(
    seed, num_sources, rule, granularity, temperature, one_is_missing, product, some_have_no_bytes
):
    random = np.random.default_rng(seed)
    num_bytes = random.integers(2, 12, 3).tolist()
    context_bytes = [int(random.integers(0, n)) for n in num_bytes]
    targets = [[*random_ends(random, n, True), n] for n in num_bytes]
    source_ends = [[random_ends(random, n, random.random() < 0.6) for n in num_bytes] for _ in range(num_sources)]
    if some_have_no_bytes:
        targets = [with_tokens_of_no_bytes(random, ends) for ends in targets]
        source_ends = [[with_tokens_of_no_bytes(random, ends) for ends in rows] for rows in source_ends]
    if one_is_missing:
        source_ends[0][1] = []
    sources = [random_source(random, targets, ends) for ends in source_ends]
    names = [str(index) for index in range(num_sources)]
    fusion = FusionRuleSpec(
        rule=rule, granularity=granularity, temperature=temperature, top_k=TOP_K,
        single_source=names[-1] if rule == "single" else "",
    )  # fmt: skip
    labels = random.integers(0, VOCABULARY, sum(map(len, targets))).tolist()
    target = target_rows(targets, num_bytes, labels, context_bytes)
    fused = fuse(target, sources, fusion, VOCABULARY, names, product)
    for passage in range(3):
        check_passage(fused, target, sources, passage, fusion, product)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["min_ce", "avg_ce"]))
def test_the_authors_arithmetic_equals_the_slow_twin(seed, rule):
    random = np.random.default_rng(seed)
    targets, num_bytes = [[0, 2, 3, 7, 7]], [7]
    sources = [random_source(random, targets, [random_ends(random, 7, True)]) for _ in range(2)]
    target = target_rows(targets, num_bytes, random.integers(0, VOCABULARY, 5).tolist())
    fusion = FusionRuleSpec(rule=rule, top_k=TOP_K, arithmetic="fusellm")
    fused = fuse(target, sources, fusion, VOCABULARY)
    own = [-float(source.token_logprobs.mean()) for source in sources]
    np.testing.assert_allclose(fused.cross_entropy[0], own, rtol=1e-6)
    weights = source_weights(np.array([own]), fusion)[0].tolist()
    plain = [oracle_source(source, 0) for source in sources]
    matches = [source.match.tolist() for source in sources]
    # The twin gets weights that these rules make of it: the formulas of the authors are tested by their own figures.
    by_weight = FusionRuleSpec(rule="avg_ce", temperature=1.0, top_k=TOP_K, arithmetic="fusellm")
    logs = [-math.log(weight) if weight else math.inf for weight in weights]
    rows, _ = oracles.fused_rows(target.token_ids, targets[0], 7, plain, matches, by_weight, cross_entropy=logs)
    check_rows(fused, 0, rows)
    kept = [row for row in range(5) if fused.is_fused[row] and fused.probs[row, -1] == 0]
    np.testing.assert_allclose(fused.probs[kept].astype(float).sum(-1), 1.0, rtol=2e-3)


def oracle_source(source: SourceRows, passage: int) -> dict:
    where = slice(source.offsets[passage], source.offsets[passage + 1])
    names = ("token_ids", "end_bytes", "token_logprobs", "topk_ids", "topk_logprobs")
    return {name: getattr(source, name)[where].tolist() for name in names} | {"mapping": source.mapping.tolist()}


def check_passage(fused, target: TargetRows, sources: list[SourceRows], passage: int, fusion, product: bool) -> None:
    where = slice(target.offsets[passage], target.offsets[passage + 1])
    matches = [source.match[where].tolist() for source in sources]
    rows, cross_entropy = oracles.fused_rows(
        target.token_ids[where].tolist(),
        target.end_bytes[where].tolist(),
        int(target.num_bytes[passage]),
        [oracle_source(source, passage) for source in sources],
        matches,
        fusion,
        len(sources) - 1,
        product,
        context_bytes=int(target.first_bytes[passage]),
    )
    np.testing.assert_allclose(fused.cross_entropy[passage], cross_entropy, rtol=1e-6)
    assert fused.covered_rows[passage].tolist() == [sum(found >= 0 for found in match) for match in matches]
    check_rows(fused, where.start, rows)
    if fusion.rule == "min_ce" and fusion.granularity == "passage":
        winners = [
            best_with_row(cross_entropy, [match[row] for match in matches]) for row in fused_rows_of(fused, where)
        ]
        expected = [winners.count(index) / max(len(winners), 1) for index in range(len(sources))]
        np.testing.assert_allclose(fused.win_share[passage], expected, rtol=1e-6)
    won = fused.win_share[passage].sum()
    assert 0 <= won <= 1 + 1e-6
    assert fusion.rule == "min_ce" or won == 0


def fused_rows_of(fused, where: slice) -> list[int]:
    return np.flatnonzero(fused.is_fused[where]).tolist()


def best_with_row(cross_entropy: list[float], matches: list[int]) -> int:
    """The source with the lowest cross-entropy among those that have a row."""
    present = [index for index, match in enumerate(matches) if match != -1 and math.isfinite(cross_entropy[index])]
    return min(present, key=lambda index: (cross_entropy[index], index))


def check_rows(fused, start: int, rows: list[list[tuple[int, float]]]) -> None:
    for row, expected in enumerate(rows):
        place, count = start + row, len(expected)
        assert entries(fused, place) == pytest.approx(dict(expected), rel=2e-3, abs=1e-7)
        assert (fused.ids[place, count:] == NO_TOKEN).all()
        assert fused.is_fused[place] == bool(count)
        assert fused.probs[place].astype(np.float64).sum() <= 1.0 + 2**-11


def entries(fused, row: int) -> dict[int, float]:
    """Token to probability of one row."""
    taken = fused.ids[row] != NO_TOKEN
    return dict(zip(fused.ids[row, taken].tolist(), fused.probs[row, taken].tolist(), strict=True))


def one_row(ids, probs, mapping, **other) -> SourceRows:
    """A source with one passage of two bytes: rows after 0, 1 and 2 bytes, all the same."""
    return SourceRows(
        offsets=np.array([0, 3]),
        end_bytes=np.array([0, 1, 2], np.int32),
        token_ids=np.array([0, 1, 2], np.int32),
        topk_ids=np.array([ids] * 3, np.int32),
        topk_logprobs=np.log(np.array([probs] * 3)).astype(np.float16),
        token_logprobs=np.array(other.get("token_logprobs", [-1.0, -1.0, -1.0]), np.float32),
        mapping=np.array(mapping, np.int32),
        match=np.array([0, 1, 2, -1], np.int32),
    )


def rows_without_entries(ends: list[int], token_logprobs: list[float]) -> SourceRows:
    """A source whose cross-entropy alone matters."""
    count = len(ends)
    return SourceRows(
        np.array([0, count]), np.zeros(count, np.int32), np.array(ends, np.int32), np.zeros((count, 1), np.int32),
        np.zeros((count, 1), np.float16), np.array(token_logprobs, np.float32), np.zeros(1, np.int32),
        np.array([-1], np.int32),
    )  # fmt: skip


def fuse_one(*sources: SourceRows, rule: str = "min_ce", top_k: int = 4, vocabulary: int = VOCABULARY, **options):
    target = target_rows([[0, 1, 2, 2]], [2], [3, 4, 5, 6])
    return fuse(target, sources, FusionRuleSpec(rule=rule, top_k=top_k, **options), vocabulary)


def test_masses_that_meet_are_added_and_what_maps_nowhere_is_rest():
    # cat 0.45 -> 5, puppy 0.3 -> 7, pup 0.1 -> 7, kitten 0.1 -> nowhere.
    fused = fuse_one(one_row([0, 1, 2, 3], [0.45, 0.3, 0.1, 0.1], [5, 7, 7, -1]))
    assert entries(fused, 0) == pytest.approx({5: 0.45, 7: 0.4}, rel=2e-3)
    assert fused.is_fused.tolist() == [True, True, True, False]


def test_rounded_log_probabilities_never_add_up_to_more_than_one():
    # log(1/101) rounds up in float16: 101 of them would make 1.0018.
    count = 101
    source = one_row(list(range(count)), [1 / count] * count, list(range(count)))
    assert np.exp(source.topk_logprobs[0].astype(np.float64)).sum() > 1 + 2**-11
    fused = fuse_one(source, top_k=count, vocabulary=count)
    assert abs(fused.probs[0].astype(np.float64).sum() - 1) <= 2**-11


def test_ids_beyond_the_mapping_are_rest():
    fused = fuse_one(one_row([99, 0, 1, 2], [0.5, 0.2, 0.1, 0.1], [1, 2, 3]))
    assert set(fused.ids[0].tolist()) == {1, 2, 3, NO_TOKEN}


def test_the_lowest_cross_entropy_wins_per_byte():
    worse = one_row([0, 1, 2, 3], [0.4, 0.3, 0.2, 0.05], [0, 1, 2, 3], token_logprobs=[-3, -3, -9])
    better = one_row([0, 1, 2, 3], [0.4, 0.3, 0.2, 0.05], [8, 9, 10, 11], token_logprobs=[-1, -2, -9])
    fused = fuse_one(worse, better)
    np.testing.assert_allclose(fused.cross_entropy, [[3.0, 1.5]])
    assert fused.win_share.tolist() == [[0, 1]]
    assert set(fused.ids[0].tolist()) == {8, 9, 10, 11}


def test_a_finer_tokenizer_wins_nothing_by_having_more_tokens():
    # The same text at the same bits per byte: three tokens of 1 nat against one of 3 nats.
    fine = rows_without_entries([0, 1, 2, 3], [-1, -1, -1, -5])
    coarse = rows_without_entries([0, 3], [-3, -5])
    np.testing.assert_allclose(cross_entropies(target_rows([[0]], [3], [0]), [fine, coarse]), [[1.0, 1.0]])
    np.testing.assert_allclose(own_token_cross_entropies(target_rows([[0]], [3], [0]), [fine, coarse]), [[2.0, 4.0]])


def test_without_bos_the_others_are_not_charged_for_the_first_token():
    with_bos = one_row([0], [1.0], [0], token_logprobs=[-50, -2, -9])
    without = rows_without_entries([1, 2], [-3, -9])
    np.testing.assert_allclose(cross_entropies(target_rows([[0]], [2], [0]), [with_bos, without]), [[2.0, 3.0]])


def random_costs(random: np.random.Generator, num_bytes: int) -> SourceRows:
    """A source with tokens of any length and some of no bytes, with BOS or without."""
    ends = with_tokens_of_no_bytes(random, random_ends(random, num_bytes, random.random() < 0.6))
    return rows_without_entries(ends, random.normal(-2, 1, len(ends)).tolist())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_labels_cost_what_the_sources_own_tokens_cost_over_the_same_bytes(seed):
    """Whatever a source spends on the text's bytes is in some label, once: tokens of no bytes included."""
    random = np.random.default_rng(seed)
    num_bytes = int(random.integers(2, 12))
    source = random_costs(random, num_bytes)
    begins = int(source.end_bytes[0])
    ends = [0, *{begins} - {0, num_bytes}, *random_ends(random, num_bytes, False)]
    target = with_tokens_of_no_bytes(random, sorted(ends))
    found = label_nats(target_rows([target], [num_bytes], [0] * len(target)), unmatched(source, len(target)))
    expected = oracles.label_nats(target, source.end_bytes, source.token_logprobs, num_bytes, [-1] * len(target))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    own = -source.token_logprobs[source.end_bytes < num_bytes].sum(dtype=np.float64)
    np.testing.assert_allclose(np.nansum(found), own, atol=1e-5)


def unmatched(source: SourceRows, rows: int) -> SourceRows:
    return replace(source, match=np.full(rows, -1, np.int32))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_all_sources_are_compared_over_the_same_bytes(seed, num_sources):
    random = np.random.default_rng(seed)
    num_bytes, context_bytes = int(random.integers(2, 12)), int(random.integers(0, 2))
    sources = [random_costs(random, num_bytes) for _ in range(num_sources)]
    (found,) = cross_entropies(target_rows([[0]], [num_bytes], [0], [context_bytes]), sources)
    first = oracles.common_beginning([source.end_bytes.tolist() for source in sources], num_bytes, context_bytes)
    expected = [oracles.nats_per_byte(rows.end_bytes, rows.token_logprobs, num_bytes, first) for rows in sources]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    scores = [rows.end_bytes[0] < num_bytes for rows in sources]
    assert np.isfinite(found).tolist() == scores, "a source takes part exactly if it has scored a byte"
    for rows, nats in zip(sources, found, strict=True):
        if rows.end_bytes[0] == first < num_bytes:
            own = -rows.token_logprobs[rows.end_bytes < num_bytes].sum(dtype=np.float64)
            np.testing.assert_allclose(nats * (num_bytes - first), own, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_authors_mean_over_own_tokens_equals_the_slow_twin(seed, ends_document):
    random = np.random.default_rng(seed)
    num_bytes = int(random.integers(2, 12))
    sources = [random_costs(random, num_bytes), rows_without_entries([], [])]
    sources[0] = cut_at(sources[0], len(sources[0].end_bytes) - random.integers(0, 2))  # a model without EOS
    found = own_token_cross_entropies(target_rows([[0]], [num_bytes], [0], ends_document=ends_document), sources)
    expected = [
        oracles.nats_per_own_token(rows.end_bytes, rows.token_logprobs, num_bytes, ends_document) for rows in sources
    ]
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def cut_at(source: SourceRows, rows: int) -> SourceRows:
    return rows_without_entries(source.end_bytes[:rows].tolist(), source.token_logprobs[:rows].tolist())


@pytest.mark.parametrize(
    ("rule", "cross_entropy", "weights"),
    [
        ("min_ce", [2.0, 1.0, 1.0], [0, 1, 0]),
        ("min_ce", [math.nan, 3.0, 4.0], [0, 1, 0]),
        ("min_ce", [math.nan, math.inf], [0, 0]),
        ("avg_ce", [1.0, 1.0], [0.5, 0.5]),
        ("avg_ce", [0.0, math.log(3.0), math.nan], [0.75, 0.25, 0]),
        ("avg_ce", [math.nan], [0]),
        ("avg_ce", [2000.0, 2000.0], [0.5, 0.5]),
        ("uniform", [1.0, 9.0, math.nan], [0.5, 0.5, 0]),
        ("uniform", [math.nan], [0]),
        ("single", [1.0, 9.0], [0, 1]),
        ("single", [1.0, math.nan], [0, 0]),
    ],
)
def test_weights(rule, cross_entropy, weights):
    fusion = FusionRuleSpec(rule=rule, single_source="x" if rule == "single" else "", temperature=1.0)
    np.testing.assert_allclose(source_weights(np.array([cross_entropy]), fusion, single=1)[0], weights)


def test_a_low_temperature_makes_an_average_a_choice():
    cross_entropy = np.array([[1.0, 1.2]])
    warm, cold = (
        source_weights(cross_entropy, FusionRuleSpec(rule="avg_ce", temperature=value))[0] for value in (1.0, 0.01)
    )
    assert 0.5 < warm[0] < 0.6
    assert cold[0] > 0.999


def test_avg_ce_counts_only_the_sources_that_have_a_row():
    both = one_row([0, 1], [0.6, 0.4], [0, 1])
    late = SourceRows(
        np.array([0, 1]), np.array([0], np.int32), np.array([2], np.int32), np.array([[0, 1]], np.int32),
        np.log(np.array([[0.5, 0.5]])).astype(np.float16), np.array([-1.0], np.float32), np.array([2, 3], np.int32),
        np.array([-1, -1, 0, -1], np.int32),
    )  # fmt: skip
    # The second source has a row only after all bytes, where it cannot be compared: it has no cross-entropy, no weight.
    fused = fuse_one(both, late, rule="avg_ce", top_k=2)
    assert np.isnan(fused.cross_entropy[0, 1])
    np.testing.assert_allclose(fused.probs[:3].sum(-1), 1.0, rtol=2e-3)


def test_by_token_each_row_takes_the_source_that_said_its_label_best():
    first = one_row([0, 1], [0.9, 0.1], [0, 1], token_logprobs=[-1, -5, -9])
    second = one_row([0, 1], [0.9, 0.1], [8, 9], token_logprobs=[-4, -2, -9])
    fused = fuse_one(first, second, top_k=2, granularity="token")
    best = [max(found, key=found.get) for found in (entries(fused, row) for row in range(3))]
    assert best == [0, 8, 0], "the last, EOS, is a tie and goes to the first"
    np.testing.assert_allclose(fused.win_share, [[2 / 3, 1 / 3]])


def test_a_split_label_gets_the_product_of_its_pieces_taken_from_the_first():
    # The target's label 7 covers both bytes; the source says byte 1 (its token 2) with 0.5, then byte 2 with 0.4.
    source = SourceRows(
        np.array([0, 3]), np.array([0, 2, 5], np.int32), np.array([0, 1, 2], np.int32),
        np.array([[2, 4, 5]] * 3, np.int32), np.log(np.array([[0.5, 0.3, 0.1]] * 3)).astype(np.float16),
        np.log([0.5, 0.4, 0.9]).astype(np.float32), np.array([0, 0, 2, 3, 4, 5], np.int32),
        np.array([0, 2, -1], np.int32),
    )  # fmt: skip
    target = target_rows([[0, 2, 2]], [2], [0, 7, 1])
    fusion = FusionRuleSpec(rule="min_ce", top_k=4)
    plain = fuse(target, [source], fusion, VOCABULARY)
    assert entries(plain, 0) == pytest.approx({2: 0.5, 4: 0.3, 5: 0.1}, rel=2e-3)
    split = fuse(target, [source], fusion, VOCABULARY, product=True)
    assert entries(split, 0) == pytest.approx({4: 0.3, 2: 0.3, 7: 0.2, 5: 0.1}, rel=2e-3)
    assert entries(split, 1) == entries(plain, 1), "EOS covers no byte"


def test_without_sources_nothing_is_fused():
    fused = fuse_one()
    assert not fused.is_fused.any()
    assert (fused.ids == NO_TOKEN).all()
    assert fused.cross_entropy.shape == (1, 0)
