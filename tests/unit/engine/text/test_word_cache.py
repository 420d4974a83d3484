"""Words that are tokenized once: the tokens and ends are those that the tokenizer finds in the whole text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from engine.errors import TokenizerError
from engine.text import word_cache
from engine.text.tokenization import PassageTokenizer
from tests.support import real_tokenizers

CACHED = ["Mistral SentencePiece", "byte-level", "byte-level with NFC"]

PIECES = st.sampled_from(
    ["the", " The", "don't", "HTTPServer", "x", "7", "2024", " ", "  ", "\n", "\n\n    ", "\t", ".", ", ", "()", "__",
     "\u2581", "\u2581a", "</s>", "<unk>", "<0x0A>", "e\u0301", "\u0301", "\xe9", "\u65e5\u672c", "\x00", "\u0120",
     "'s"]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.characters(exclude_categories=["Cs"])), max_size=40).map("".join)


def whole(tokenizer: PassageTokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids and ends of a text that is tokenized at once."""
    tokens = tokenizer._tokens(text)
    return tokens, tokenizer.end_bytes(text, tokens).tolist()


@pytest.mark.parametrize("name", CACHED)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_tokens_and_ends_are_those_of_the_whole_text(name, text):
    tokenizer = real_tokenizers.load(name)
    assert tokenizer._words is not None
    try:
        expected = whole(tokenizer, text)
    except TokenizerError:
        with pytest.raises(TokenizerError):
            tokenizer.encode(text)
        return
    ids, ends = tokenizer.encode(text)
    assert (ids.tolist(), ends.tolist()) == expected


@pytest.mark.parametrize("name", CACHED)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, letter=st.sampled_from("aZ9"), sign=st.sampled_from(" \n.,)_'x"), after=TEXTS)
def test_a_text_that_ends_where_texts_are_split_keeps_its_tokens(name, text, letter, sign, after):
    tokenizer = real_tokenizers.load(name)
    if not tokenizer.splits((letter + sign).encode()):
        assert sign in "'x"
        return
    beginning = tokenizer._tokens(text + letter)
    assert tokenizer._tokens(text + letter + sign + after)[: len(beginning)] == beginning


def test_real_text_is_the_same_with_words_that_are_forgotten(monkeypatch):
    monkeypatch.setattr(word_cache, "MOST_WORDS", 50)
    for name in CACHED:
        tokenizer = real_tokenizers.load(name)
        for path in sorted(real_tokenizers.CORPUS.glob("heldout_*.jsonl")):
            for line in path.read_text(encoding="utf8").splitlines()[:20]:
                text = json.loads(line)["text"]
                ids, ends = tokenizer.encode(text)
                assert (ids.tolist(), ends.tolist()) == whole(tokenizer, text)
        assert 0 < len(tokenizer._words._known) < 2000


@pytest.mark.parametrize("name", ["Unigram", "WordPiece"])
def test_a_tokenizer_whose_tokens_depend_on_more_has_no_cache(name):
    assert real_tokenizers.load(name)._words is None


@pytest.mark.parametrize(
    "added",
    [
        AddedToken("a,b", normalized=False),
        AddedToken("<call>", normalized=False, lstrip=True),
        AddedToken("<call>", normalized=False, single_word=True),
    ],
)
def test_added_tokens_that_reach_across_words(added):
    """One that holds a sign after a letter costs that sign; one that looks around itself the whole cache."""
    wrapped = real_tokenizers.trained_byte_level()
    wrapped.add_tokens([added])
    tokenizer = PassageTokenizer(wrapped, "added")
    assert tokenizer._words is None or not tokenizer._words._words.fullmatch("a,b ")
    for text in ("one a,b two", "x a,b", "one <call> two", "one<call> two"):
        ids, ends = tokenizer.encode(text)
        assert (ids.tolist(), ends.tolist()) == whole(tokenizer, text)


def test_vocabulary_entries_across_words_keep_a_text_whole():
    """A merge of a letter and a full stop: no text is split before a full stop."""
    layout = json.loads(real_tokenizers.load("byte-level").backend.to_str())
    layout["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
    layout["model"]["vocab"]["a."] = max(layout["model"]["vocab"].values()) + 1
    layout["model"]["merges"].append(["a", "."])
    backend = Tokenizer.from_str(json.dumps(layout))
    cache = word_cache.word_cache(json.loads(backend.to_str()), "byte_level", backend, [b""] * 4000)
    assert cache._words.findall("a.a, a") == ["a.a", ", a", ""]
