"""Vocabulary mapping: bytes decide, roles decide for special tokens, and the cache survives everything."""

import threading

import numpy as np
import pytest

from engine.method.vocabulary import UNMAPPED, build_mapping, load_or_build
from engine.text.tokenization import PassageTokenizer
from tests import oracles
from tests.support.slow_edit_distance import distance
from tests.support.tiny_tokenizers import SENTENCES, byte_level_with_bos, byte_level_without_bos, sentencepiece_like


@pytest.fixture(scope="module")
def tokenizers() -> list[PassageTokenizer]:
    makers = (byte_level_with_bos, byte_level_without_bos, sentencepiece_like)
    return [PassageTokenizer(make(), make.__name__) for make in makers]


@pytest.mark.parametrize("method", ["exact", "prefix"])
def test_mapping_equals_the_slow_twin_for_every_pair(tokenizers, method):
    for source in tokenizers:
        for target in tokenizers:
            assert build_mapping(source, target, method).tolist() == oracles.mapping(source, target, method)


def test_what_is_mapped_begins_the_source_tokens_bytes(tokenizers):
    for source in tokenizers:
        for target in tokenizers:
            mapping = build_mapping(source, target, "prefix")
            for token, data in enumerate(source.token_bytes):
                if data and mapping[token] != UNMAPPED:
                    assert data.startswith(target.token_bytes[mapping[token]])


def test_a_tokenizer_maps_every_token_that_it_uses_onto_itself(tokenizers):
    # Not so the byte piece <0x2E>, where "." has a piece of its own.
    for tokenizer in tokenizers:
        mapping = build_mapping(tokenizer, tokenizer, "exact")
        for text in SENTENCES:
            ids, _ = tokenizer.encode(text)
            assert mapping[ids].tolist() == ids.tolist()


def test_special_tokens_map_by_role_not_by_string(tokenizers):
    first, second, third = tokenizers
    assert build_mapping(third, first, "prefix")[third.eos_id] == first.eos_id
    assert build_mapping(third, first, "prefix")[third.bos_id] == first.bos_id
    assert build_mapping(second, first, "prefix")[second.eos_id] == first.eos_id
    assert build_mapping(first, third, "prefix")[first.pad_id] == third.pad_id


def test_prefix_finds_the_first_token_of_the_middle_of_a_text(tokenizers):
    first, _, third = tokenizers
    mapping = build_mapping(first, third, "prefix")
    spaced = next(token for token, data in enumerate(first.token_bytes) if data == b" the")
    assert third.token_bytes[mapping[spaced]] in (b" the", b" t", b" th", b" ")
    tail = first.id_of_bytes[b"t"]
    assert third.token_bytes[mapping[tail]] == b"t", "no dummy prefix in front of a token"


def test_statistical_mapping_is_the_most_frequent_token_that_begins_there(tokenizers):
    for source in tokenizers:
        for target in tokenizers:
            counts: dict[tuple[int, int], int] = {}
            for text in SENTENCES:
                starts = {}
                for token, start, end in spans(target, text):
                    if end > start:
                        starts[start] = token
                for token, start, end in spans(source, text):
                    if end > start and start in starts:
                        counts[token, starts[start]] = counts.get((token, starts[start]), 0) + 1
            mapping = build_mapping(source, target, "statistical", SENTENCES)
            exact = build_mapping(source, target, "exact")
            for token in range(source.vocab_size):
                pairs = [(-count, partner) for (own, partner), count in counts.items() if own == token]
                assert mapping[token] == (min(pairs)[1] if pairs else exact[token])


def spans(tokenizer: PassageTokenizer, text: str) -> list[tuple[int, int, int]]:
    """Token, begin and end in bytes."""
    ids, ends = (values.tolist() for values in tokenizer.encode(text))
    return list(zip(ids, [0, *ends[:-1]], ends, strict=True))


def test_min_edit_takes_the_nearest_string_with_ties_to_the_lowest_id(tokenizers):
    for source in tokenizers:
        for target in tokenizers:
            mapping = build_mapping(source, target, "min_edit")
            some = [token for token, data in enumerate(source.token_bytes) if data][:: source.vocab_size // 12]
            for token in some:
                distances = [
                    (distance(source.pieces[token], piece), index)
                    for index, piece in enumerate(target.pieces)
                    if target.token_bytes[index]
                ]
                assert mapping[token] == min(distances)[1]
            assert mapping[source.eos_id] == target.eos_id


def test_the_sample_is_part_of_a_statistical_tables_name(tokenizers, tmp_path):
    source, target = tokenizers[0], tokenizers[2]
    for sample in (SENTENCES, SENTENCES[:1], SENTENCES):
        load_or_build(source, target, "statistical", str(tmp_path), sample)
    load_or_build(source, target, "exact", str(tmp_path), SENTENCES)
    load_or_build(source, target, "exact", str(tmp_path), SENTENCES[:1])
    assert len(list(tmp_path.iterdir())) == 3


def test_the_cache_is_used_rebuilt_when_broken_and_safe_for_many(tokenizers, tmp_path):
    source, target = tokenizers[0], tokenizers[2]
    expected = build_mapping(source, target, "prefix")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(load_or_build(source, target, "prefix", str(tmp_path))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"torn")
    assert np.array_equal(load_or_build(source, target, "prefix", str(tmp_path)), expected)
    np.save(cached, np.full(source.vocab_size, target.vocab_size, np.int32))
    assert np.array_equal(load_or_build(source, target, "prefix", str(tmp_path)), expected), "ids out of range"
    np.save(cached, np.zeros(source.vocab_size, np.int32))
    assert not load_or_build(source, target, "prefix", str(tmp_path)).any(), "a sound table is taken as it is"


def test_the_cache_can_lie_at_any_fsspec_path(tokenizers):
    table = load_or_build(tokenizers[1], tokenizers[0], "exact", "memory://tables")
    assert np.array_equal(table, load_or_build(tokenizers[1], tokenizers[0], "exact", "memory://tables"))
