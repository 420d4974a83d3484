"""Character offsets to byte ends: the slow twin's numbers and its errors, for tokenizers' offsets and for any other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.character_offsets import LostTextError, byte_lengths, end_bytes
from tests.support import fuzzing, real_tokenizers, slow_character_offsets

pytestmark = pytest.mark.timeout(120)

CHARACTERS = st.sampled_from("ab é\u0301\u0300日\u1112\u1161\u11ab\uac00\uff76\uff9e🙂\ufffd\x00\t\u3099か")


def result(of, text: str, offsets: np.ndarray):
    try:
        return of(text, offsets).tolist()
    except LostTextError as lost:
        return lost.place, lost.token


@settings(max_examples=600, deadline=None)
@given(text=st.text(CHARACTERS, min_size=1, max_size=12), data=st.data())
def test_any_offsets_have_the_twins_ends_or_its_error(text, data):
    places = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(places, places).map(sorted), min_size=1, max_size=8))
    if data.draw(st.booleans()):
        spans.sort()
    offsets = np.array(spans, np.int64)
    assert result(end_bytes, text, offsets) == result(slow_character_offsets.end_bytes, text, offsets)


@pytest.mark.parametrize("name", ["WordPiece", "Unigram", "byte-level with NFC"])
def test_a_tokenizers_offsets_have_the_twins_ends(name):
    tokenizer = real_tokenizers.load(name)
    for text in itertools.islice(fuzzing.texts(seed=1), 500):
        tokens, offsets = tokenizer.tokens(text, tokenizer.backend)
        if tokens:
            spans = np.array(offsets, np.int64)
            assert result(end_bytes, text, spans) == result(slow_character_offsets.end_bytes, text, spans)


@given(text=st.text())
def test_characters_have_the_bytes_of_utf8(text):
    assert byte_lengths(text).tolist() == [len(character.encode("utf8")) for character in text]
