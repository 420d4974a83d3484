"""Canonical pairs: what tokenizers write is possible, and what they never write is not."""

import functools
import itertools
import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from engine.method.canonical import IMPOSSIBLE, POSSIBLE, CanonicalPairs, merges_allow, pieces_allow, why_unknown
from engine.method.compiled import njit
from engine.text.tokenization import PassageTokenizer
from tests import oracles
from tests.benchmarks.passages import QUICKSTART, documents
from tests.support import fuzzing, real_tokenizers
from tests.support.tiny_tokenizers import SENTENCES, byte_level_with_bos, sentencepiece_like

pytestmark = pytest.mark.timeout(120)

BYTE_PAIRS = ["Mistral SentencePiece", "SmolLM2", "byte-level", "byte-level with NFC", "Mistral Tekken"]

METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
#: Parts of a tokenizer that are put in place of those of ``Unigram`` or ``WordPiece``.
VARIANTS = {
    "Unigram": {},
    "Unigram, spaces dropped": {
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]},
    },
    "Unigram, never split": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
    },
    "Unigram, digits and bytes": {
        "normalizer": {"type": "StripAccents"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Punctuation"}, METASPACE],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, METASPACE]},
        "model": {"byte_fallback": True},
    },
    "WordPiece": {},
    "WordPiece, split at spaces": {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}},
    "WordPiece, short words": {"pre_tokenizer": {"type": "Whitespace"}, "model": {"max_input_chars_per_word": 12}},
}

#: Text may spell continuing pieces with their prefix, as words; the greatest length of a word is left out of account.
INEXACT = ["WordPiece, split at spaces", "WordPiece, short words"]


@functools.cache
def varied(name: str) -> PassageTokenizer:
    """A trained tokenizer with other parts."""
    layout = json.loads(real_tokenizers.load(name.split(",")[0]).backend.to_str())
    parts = {**VARIANTS[name]}
    layout["model"] |= parts.pop("model", {})
    if layout["model"].get("byte_fallback"):
        layout["model"]["vocab"] += [[f"<0x{byte:02X}>", 0.0] for byte in range(256)]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    backend = Tokenizer.from_str(json.dumps(layout | parts))
    return PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **special), name)


@njit
def answers_of(ids, tokens, splits, of_merges, of_pieces):
    ends, lasts, firsts, merges, partners = of_merges
    letters, spans, children, scores, unknown, is_greedy = of_pieces
    found = np.empty(ids.size - 1, np.int64)
    for place in range(ids.size - 1):
        before, token = ids[place], ids[place + 1]
        if ends.size:
            found[place] = merges_allow(before, token, tokens, splits, ends, lasts, firsts, merges, partners)
        else:
            found[place] = pieces_allow(
                before, token, tokens, splits, letters, spans, children, scores, unknown, is_greedy
            )
    return found


def answers(canonical: CanonicalPairs, ids: np.ndarray) -> np.ndarray:
    """The kernel's answer for each token of a text and the one before it."""
    answers_of(ids, *canonical.pairs[:4])
    canonical.answer()
    return answers_of(ids, *canonical.pairs[:4])


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


@pytest.mark.parametrize("name", VARIANTS)
def test_whatever_a_model_of_pieces_writes_is_possible(name):
    tokenizer = varied(name)
    canonical = CanonicalPairs(tokenizer)
    spelled = [" ".join(tokenizer.pieces), "x <s>y </s> <0x41>b ##ing ##. a##b [MASK] \u2581\u2581c"]
    for text in [*documents(QUICKSTART)[:60], *SENTENCES, *spelled, *itertools.islice(fuzzing.texts(0), 1000)]:
        ids = np.array(tokenizer.tokens(text, tokenizer.backend)[0], np.int32)
        if len(ids) > 1:
            found = answers(canonical, ids)
            assert (found == POSSIBLE).all(), [tokenizer.pieces[token] for token in ids[found.argmax() :][:2]]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_pair_of_pieces_within_a_word_is_possible_exactly_if_the_model_writes_it(name):
    tokenizer = varied(name)
    canonical = CanonicalPairs(tokenizer)
    pairs = [pair for pair in pairs_within_words(tokenizer) if is_within_word(tokenizer, *pair)]
    letters = [piece for piece in tokenizer.backend.get_vocab() if len(piece) == 1]
    is_written = np.array([oracles.writes_pair(tokenizer, *pair, letters) for pair in pairs])
    is_possible = np.array([answers(canonical, np.array(pair, np.int32))[0] == POSSIBLE for pair in pairs])
    assert not (is_written & ~is_possible).any()
    assert is_written.sum() > 500
    assert (~is_written).sum() > 300
    if name not in INEXACT:
        assert (is_written == is_possible).all()


def pairs_within_words(tokenizer: PassageTokenizer) -> list[tuple[int, int]]:
    """Random pairs of tokens that are letters, and the two parts of pieces that can be cut into tokens."""
    vocabulary = tokenizer.backend.get_vocab()
    prefix = "##" if is_word_piece(tokenizer) else ""
    draw = random.Random(0)
    letters = [token for piece, token in vocabulary.items() if piece.strip("\u2581#").isalpha()]
    parts = [(piece[:cut], prefix + piece[cut:]) for piece in vocabulary for cut in range(1, len(piece))]
    cut = [tuple(map(vocabulary.get, pair)) for pair in parts if vocabulary.keys() >= {*pair}]
    return [*zip(draw.choices(letters, k=2000), draw.choices(letters, k=2000), strict=True), *cut]


def is_within_word(tokenizer: PassageTokenizer, before: int, token: int) -> bool:
    """Whether two tokens are letters that no pre-tokenizer of ``VARIANTS`` splits from one another."""
    left, right = (tokenizer.backend.id_to_token(each) for each in (before, token))
    continues = right.startswith("##") if is_word_piece(tokenizer) else not right.startswith("\u2581")
    return continues and left.strip("\u2581#").isalpha() and right.strip("#").isalpha()


def is_word_piece(tokenizer: PassageTokenizer) -> bool:
    return isinstance(tokenizer.backend.model, models.WordPiece)


@pytest.mark.parametrize("name", VARIANTS)
def test_special_and_unknown_tokens_stand_beside_any_piece(name):
    tokenizer = varied(name)
    canonical = CanonicalPairs(tokenizer)
    unknown = tokenizer.backend.token_to_id("<unk>")
    for token in range(tokenizer.vocab_size):
        pairs = np.array([tokenizer.bos_id, token, unknown, token, tokenizer.eos_id], np.int32)
        assert (answers(canonical, pairs) == POSSIBLE).all()


@pytest.mark.parametrize(
    ("kind", "parts", "reason"),
    [
        ("Unigram", {"pre_tokenizer": {"type": "UnicodeScripts"}}, "UnicodeScripts splits where"),
        ("Unigram", {"pre_tokenizer": {"type": "FixedLength", "length": 5}}, "FixedLength splits where"),
        ("byte-level", {"model": {"end_of_word_suffix": "</w>"}}, "its BPE marks"),
        ("WordPiece", {"model": {"continuing_subword_prefix": ""}}, "does not mark"),
    ],
)
def test_where_pairs_are_not_known_every_pair_is_taken_for_possible(kind, parts, reason):
    tokenizer = real_tokenizers.load(kind)
    layout = json.loads(tokenizer.backend.to_str())
    layout |= parts | {"model": layout["model"] | parts.get("model", {})}
    other = PassageTokenizer(tokenizer.hugging_face, kind, Tokenizer.from_str(json.dumps(layout)))
    canonical = CanonicalPairs(other)
    assert reason in canonical.unknown == why_unknown(other)
    assert not canonical.answer()
    assert canonical.pairs.tokens.size == 0
