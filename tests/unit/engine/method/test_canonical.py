"""Canonical pairs: what tokenizers write is possible, and what they never write is not."""

import itertools
import random

import numpy as np
import pytest

from engine.method.canonical import IMPOSSIBLE, POSSIBLE, CanonicalPairs, may_follow
from engine.method.compiled import njit
from engine.text.tokenization import PassageTokenizer
from tests.benchmarks.passages import QUICKSTART, documents
from tests.support import fuzzing, real_tokenizers
from tests.support.tiny_tokenizers import SENTENCES, byte_level_with_bos, sentencepiece_like

pytestmark = pytest.mark.timeout(120)

BYTE_PAIRS = ["Mistral SentencePiece", "SmolLM2", "byte-level", "byte-level with NFC", "Mistral Tekken"]


@njit
def answers_of(ids, tokens, splits, lasts, firsts, merges, partners):
    found = np.empty(ids.size - 1, np.int64)
    for place in range(ids.size - 1):
        found[place] = may_follow(ids[place], ids[place + 1], tokens, splits, lasts, firsts, merges, partners)
    return found


def answers(canonical: CanonicalPairs, ids: np.ndarray) -> np.ndarray:
    """``may_follow`` for each token of a text and the one before it."""
    answers_of(ids, *canonical.pairs[:6])
    canonical.answer()
    return answers_of(ids, *canonical.pairs[:6])


@pytest.mark.parametrize("name", BYTE_PAIRS)
def test_whatever_a_tokenizer_writes_is_possible(name):
    tokenizer = real_tokenizers.load(name)
    canonical = CanonicalPairs(tokenizer)
    for text in [*documents(QUICKSTART)[:60], *SENTENCES]:
        ids, _ = tokenizer.encode(text)
        if len(ids) > 1:
            found = answers(canonical, ids)
            assert (found == POSSIBLE).all(), [tokenizer.token_bytes[token] for token in ids[found.argmin() :][:2]]


@pytest.mark.parametrize("name", BYTE_PAIRS)
def test_hardly_anything_that_a_tokenizer_writes_of_random_characters_is_impossible(name):
    """Pre-tokenizers see more of a text than two tokens; characters that a vocabulary lacks are not seen at all."""
    tokenizer = real_tokenizers.load(name)
    canonical = CanonicalPairs(tokenizer)
    kept = [tokenizer.encode(text)[0] for text in itertools.islice(fuzzing.texts(0), 1000)]
    found = np.concatenate([answers(canonical, ids) for ids in kept if len(ids) > 1])
    assert (found != POSSIBLE).mean() < 1e-4


@pytest.mark.parametrize("make", [byte_level_with_bos, sentencepiece_like])
def test_a_pair_within_one_word_is_possible_exactly_if_the_tokenizer_writes_it(make):
    tokenizer = PassageTokenizer(make(), make.__name__)
    canonical = CanonicalPairs(tokenizer)
    letters = [
        token
        for token, data in enumerate(tokenizer.token_bytes)
        if data
        and not tokenizer.is_byte_piece(token)
        and data.decode("utf8", errors="replace").isalpha()
        and data.isascii()
    ]
    draw, seen = random.Random(0), set()
    for _ in range(3000):
        pair = np.array(draw.choices(letters, k=2), np.int32)
        data = b"".join(tokenizer.token_bytes[token] for token in pair)
        expected = POSSIBLE if tokenizer.tokens_within(data) == pair.tolist() else IMPOSSIBLE
        assert answers(canonical, pair).tolist() == [expected], data
        seen.add(expected)
    assert seen == {POSSIBLE, IMPOSSIBLE}


def test_special_tokens_stand_beside_any_other():
    tokenizer = PassageTokenizer(byte_level_with_bos(), "byte-level")
    canonical = CanonicalPairs(tokenizer)
    for token in range(tokenizer.vocab_size):
        pairs = np.array([tokenizer.bos_id, token, tokenizer.eos_id], np.int32)
        assert (answers(canonical, pairs) == POSSIBLE).all()


@pytest.mark.parametrize("name", ["Unigram", "WordPiece"])
def test_of_other_models_every_pair_is_taken_for_possible(name):
    canonical = CanonicalPairs(real_tokenizers.load(name))
    assert not canonical.is_known
    assert not canonical.answer()
    assert canonical.pairs.tokens.size == 0
