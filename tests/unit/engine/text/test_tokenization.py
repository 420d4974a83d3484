"""Tokenization: byte offsets that always add up, whatever the text and the kind of tokenizer."""

import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.errors import TokenizerError
from engine.text.token_bytes import check_token_bytes
from engine.text.tokenization import NO_ROLE, PassageTokenizer
from tests.support.odd_inputs import characters, unigram, with_added_tokens, word_piece
from tests.support.tiny_tokenizers import SENTENCES, byte_level_with_bos, byte_level_without_bos, sentencepiece_like


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """The SentencePiece-like one as newer files write it: a pre-tokenizer puts the prefix, not a normalizer."""
    inner = sentencepiece_like().backend_tokenizer
    layout = json.loads(inner.to_str()) | {"normalizer": None}
    inner = Tokenizer.from_str(json.dumps(layout))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


MAKERS = {
    "byte-level with BOS": byte_level_with_bos,
    "byte-level without BOS": byte_level_without_bos,
    "SentencePiece-like": sentencepiece_like,
    "Metaspace, always": functools.partial(metaspace, "always"),
    "Metaspace, first": functools.partial(metaspace, "first"),
    "Metaspace, never": functools.partial(metaspace, "never"),
}

#: All planes, combining marks, emoji, line ends, NUL, tabs, runs of spaces; no surrogates, which UTF-8 does not know.
ALPHABET = st.characters(exclude_categories=["Cs"])
PIECES = st.sampled_from(
    [" ", "   ", "\t", "\r\n", "\n\n", "\x00", "e\u0301", "👩‍👩‍👧", "🇩🇪", "the", " the", "</s>", "<s>"]
)
ANY_TEXT = st.lists(st.one_of(ALPHABET, PIECES), max_size=60).map("".join)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PassageTokenizer]:
    return {name: PassageTokenizer(make(), name) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
@example(text="")
@example(text=" ")
@example(text="  leading")
@example(text="\u2581 is the marker itself")
@example(text="a\u0301🙂\r\n\t\x00</s><|endoftext|><unk>")
def test_offsets_add_up_to_the_bytes(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids, end_bytes = tokenizer.encode(text)
    data = text.encode("utf8")
    assert len(ids) == len(end_bytes)
    assert (end_bytes[-1] if len(ids) else 0) == len(data)
    assert all(earlier <= later for earlier, later in itertools.pairwise(end_bytes))
    start = 0
    for token, end in zip(ids, end_bytes, strict=True):
        piece = tokenizer.token_bytes[token]
        assert piece is not None
        # SentencePiece writes its marker's own character as a space.
        assert piece.endswith(data[start:end].replace("\u2581".encode(), b" ")) or "\u2581" in text
        start = end
    assert (
        not text
        or "\u2581" in text
        or tokenizer.has_dummy_prefix(text) == (sum(len(tokenizer.token_bytes[token]) for token in ids) > len(data))
    )


@pytest.mark.parametrize("name", MAKERS)
def test_special_strings_inside_text_are_text(tokenizers, name):
    tokenizer = tokenizers[name]
    ids, _ = tokenizer.encode("a </s> b <s> c <|endoftext|> d <eos> e <bos> f <pad>")
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())


def test_roles_and_habits_are_the_tokenizers_own(tokenizers):
    first, second, third, *_ = tokenizers.values()
    assert (first.adds_bos, second.adds_bos, third.adds_bos) == (True, False, True)
    assert first.token_bytes[first.bos_id] is None
    assert second.bos_id == second.eos_id
    ids, ends = first.encode_with_roles("cat", add_bos=True, ends_document=True)
    assert (ids[0], ids[-1]) == (first.bos_id, first.eos_id)
    assert (ends[0], ends[-1]) == (0, 3)
    ids, ends = third.encode_with_roles("cat", add_bos=False, ends_document=False)
    assert ends[-1] == 3
    assert third.bos_id not in ids


def test_a_split_emoji_ends_between_characters_only_where_its_last_byte_is(tokenizers):
    ids, ends = tokenizers["byte-level without BOS"].encode("a🦋b")
    assert len(ids) > 3, "the butterfly is no token of this vocabulary"
    assert ends.tolist()[0] == 1
    assert ends.tolist()[-2:] == [5, 6]
    assert set(ends.tolist()[1:-2]) <= {2, 3, 4}


def test_a_dummy_prefix_is_known_by_what_the_tokenizer_does(tokenizers):
    found = {name: [tokenizer.has_dummy_prefix(text) for text in ("a", " a")] for name, tokenizer in tokenizers.items()}
    assert found["byte-level with BOS"] == [False, False]
    assert found["SentencePiece-like"] == [True, True]
    assert found["Metaspace, always"] == [True, False]
    assert found["Metaspace, never"] == [False, False]


def test_bytes_that_are_two_tokens_belong_to_the_one_in_use(tokenizers):
    tokenizer = tokenizers["SentencePiece-like"]
    full_stop = tokenizer.encode("a.")[0][-1]
    assert [token for token, data in enumerate(tokenizer.token_bytes) if data == b"."] != [full_stop]
    assert tokenizer.id_of_bytes[b"."] == full_stop


def test_a_missing_role_is_said_to_be_missing():
    tokenizer = PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=byte_level_with_bos().backend_tokenizer), "x")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (NO_ROLE, NO_ROLE, False)
    assert tokenizer.encode_with_roles("a", True, True)[0].tolist() == tokenizer.encode("a")[0].tolist()


def test_a_tokenizer_that_changes_its_input_still_has_ends_in_the_text():
    plain = byte_level_without_bos().backend_tokenizer
    plain.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer = PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=plain), "lower")
    assert tokenizer.normalizer_types == ("NFC", "Lowercase")
    text = "aCe\u0301."
    ids, ends = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == "acé.".encode()
    assert ends[0] == 1
    assert ends[-1] == len(text.encode())
    assert {3, 4} & set(ends.tolist()) == set(), "no token ends between the letter and its accent"


def test_parts_of_a_character_end_where_their_bytes_do_though_another_character_is_changed():
    plain = byte_level_without_bos().backend_tokenizer
    plain.normalizer = normalizers.NFKC()
    tokenizer = PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=plain), "nfkc")
    ids, ends = tokenizer.encode("\uff21🙂½a")
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == "A🙂1\u20442a".encode()
    assert ends.tolist()[:5] == [3, 4, 5, 6, 7], "of the emoji each byte is a token"
    assert set(ends.tolist()[5:]) == {9, 10}, "what ½ has become is no part of the text"


def test_a_tokenizer_that_loses_text_is_refused_where_it_does():
    plain = byte_level_without_bos().backend_tokenizer
    plain.normalizer = normalizers.Replace("q", "")
    tokenizer = PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=plain), "lossy")
    with pytest.raises(TokenizerError, match=r"lossy: .* the character 'q' at 3, in 'aébqu', is in no token"):
        tokenizer.encode("aébqu")
    with pytest.raises(TokenizerError, match=r"lossy: .* 'q' at 1"):
        tokenizer.encode("aq")
    with pytest.raises(TokenizerError, match="lossy: the text 'qq' has no token at all"):
        tokenizer.encode("qq")


def test_a_text_that_the_library_cannot_tokenize_is_refused():
    """The library raises a bare Exception where a Unigram model has no token for the unknown."""
    tokenizer = PassageTokenizer(unigram(byte_fallback=False, unknown=None), "unigram")
    assert tokenizer.encode("the cat")[1][-1] == len("the cat")
    with pytest.raises(TokenizerError, match=r"unigram: a text cannot be tokenized \('☃'\): .*unknown token"):
        tokenizer.encode("☃")
    assert tokenizer.tokens_within("☃".encode()) == []


def test_bos_is_no_habit_of_a_tokenizer_that_has_no_token_for_a_letter():
    assert not PassageTokenizer(characters(), "characters").adds_bos


def test_an_empty_piece_stands_for_nothing():
    layout = json.loads(word_piece().backend_tokenizer.to_str())
    layout["model"]["vocab"][""] = len(layout["model"]["vocab"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(layout)), unk_token="[UNK]")
    tokenizer = PassageTokenizer(wrapped, "empty")
    assert tokenizer.token_bytes[-1] == b""
    assert tokenizer.encode("the cat")[1][-1] == len("the cat")


@pytest.mark.parametrize("make", [byte_level_with_bos, sentencepiece_like, word_piece])
def test_added_tokens_that_take_spaces_end_where_the_spaces_do(make):
    tokenizer = PassageTokenizer(with_added_tokens(make()), "added")
    for text in ("a <left> b", "a  <left>", "<right>  a", "in the sun .", "   the sun   ", "concat dogs", " <mask> x"):
        ids, ends = tokenizer.encode(text)
        assert ends[-1] == len(text)
        assert (np.diff(ends, prepend=0) >= 0).all()
        for content in ("<left>", "<right>"):
            token = tokenizer.backend.token_to_id(content)
            if token in ids.tolist():
                assert text[: ends[ids.tolist().index(token)]].rstrip().endswith(content)


def test_a_kind_whose_tokens_are_no_bytes_is_refused():
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    with pytest.raises(TokenizerError, match="cannot be read as bytes"):
        PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"), "words")


def test_pieces_and_decoded_tokens_are_written_alike_in_all_kinds(tokenizers):
    first, second, third, *_ = tokenizers.values()
    for tokenizer in (first, second, third):
        the = tokenizer.encode("a the")[0][-1]
        assert tokenizer.pieces[the] in ("\u2581the", "the", "he", "e")
    newline = second.id_of_bytes[b"\n"]
    assert (second.pieces[newline], second.decoded[newline]) == ("Ċ", "\n")
    assert third.pieces[third.id_of_bytes[b"\n"]] in ("<0x0A>", "\n")
    spaced = next(token for token, piece in enumerate(third.pieces) if piece.startswith("\u2581") and len(piece) > 1)
    assert third.decoded[spaced] == third.pieces[spaced][1:]
    assert second.decoded[second.id_of_bytes[b"\xf0"]] == "\ufffd"


def test_a_turns_end_is_what_the_chat_template_puts_behind_a_message():
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}<pad>\n{% endfor %}"
    wrapped = byte_level_with_bos()
    assert PassageTokenizer(wrapped, "base").turn_end_id == NO_ROLE
    wrapped.chat_template = template
    chat = PassageTokenizer(wrapped, "chat")
    assert chat.turn_end_id == chat.pad_id
    wrapped.chat_template = "{{ raise_exception('no') }}"
    assert PassageTokenizer(wrapped, "odd").turn_end_id == NO_ROLE


def gemma_like() -> Tokenizer:
    """Gemma's kind: spaces as markers, runs of them as added tokens that are not special."""
    layout = json.loads(sentencepiece_like().backend_tokenizer.to_str())
    first = len(layout["model"]["vocab"])
    layout["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    layout["decoder"]["decoders"] = layout["decoder"]["decoders"][:3]
    for index, content in enumerate(("▁▁", "▁▁▁▁", "<table>", "\n\n")):
        layout["model"]["vocab"][content] = first + index
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        layout["added_tokens"].append({"id": first + index, "content": content, **flags})
    return Tokenizer.from_str(json.dumps(layout))


def test_added_tokens_stand_for_what_they_decode_to():
    tokenizer = PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=gemma_like()), "gemma")
    found = {content: tokenizer.token_bytes[tokenizer.backend.token_to_id(content)] for content in ("▁▁", "▁▁▁▁")}
    assert found == {"▁▁": b"  ", "▁▁▁▁": b"    "}
    assert tokenizer.token_bytes[tokenizer.backend.token_to_id("<table>")] == b"<table>"
    assert tokenizer.token_bytes[tokenizer.backend.token_to_id("\n\n")] == b"\n\n"
    assert tokenizer.tokens_within(b"    ") and tokenizer.id_of_bytes[b"    "] == tokenizer.backend.token_to_id("▁▁▁▁")
    check_token_bytes(tokenizer.token_bytes, "space_marker", tokenizer.backend, "gemma", most=tokenizer.vocab_size)


def test_added_tokens_in_letters_of_the_byte_alphabet_stand_for_themselves():
    wrapped = byte_level_without_bos()
    wrapped.add_tokens(["é", "<▁hole▁>", "   "])
    tokenizer = PassageTokenizer(wrapped, "letters")
    for content in ("é", "<▁hole▁>", "   "):
        assert tokenizer.token_bytes[tokenizer.backend.token_to_id(content)] == content.encode()
    text = "a é <▁hole▁>   b"
    assert tokenizer.encode(text)[1][-1] == len(text.encode())


def test_bytes_that_decode_to_others_are_refused():
    plain = byte_level_without_bos().backend_tokenizer
    plain.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("e", "E")])
    with pytest.raises(
        TokenizerError, match=r"other: the token '.*e.*' \(\d+\) should stand for b'.*', and decodes to"
    ):
        PassageTokenizer(PreTrainedTokenizerFast(tokenizer_object=plain), "other")


TURNS = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"


@pytest.mark.parametrize("template", [TURNS, TURNS + "{{ eos_token }}"])
def test_a_turn_ends_with_the_special_token_that_follows_it(template):
    """As Gemma 3, whose configuration does not name it, and as Phi 3, which ends the conversation with EOS besides."""
    wrapped = byte_level_with_bos()
    plain = wrapped.backend_tokenizer
    plain.add_special_tokens(["<turn>", "<end>"])
    named = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")
    named.chat_template = template
    assert PassageTokenizer(named, "turns").turn_end_id == plain.token_to_id("<end>")


def test_the_fingerprint_follows_what_matters(tokenizers):
    prints = {tokenizer.fingerprint for tokenizer in tokenizers.values()}
    assert len(prints) == len(MAKERS)
    assert PassageTokenizer(byte_level_with_bos(), "again").fingerprint in prints


def test_dropout_of_merges_is_for_training_alone():
    """A tokenizer.json may carry it; a text must have the same tokens in the cutter, the source and the aligner."""
    plain = byte_level_with_bos()
    dropping = json.loads(plain.backend_tokenizer.to_str())
    dropping["model"]["dropout"] = 0.9
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(dropping)))
    for sentence in SENTENCES[:4]:
        expected = PassageTokenizer(plain, "plain").encode(sentence)[0].tolist()
        assert PassageTokenizer(wrapped, "dropping").encode(sentence)[0].tolist() == expected
