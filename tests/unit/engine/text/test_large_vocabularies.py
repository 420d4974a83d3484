"""All ids and thousands of random texts of real vocabularies: bytes are what they decode to, ids are the file's own."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tokenizers import Tokenizer

from engine.errors import TokenizerError
from engine.text.token_bytes import check_token_bytes
from tests.support import fuzzing, real_tokenizers

pytestmark = pytest.mark.timeout(240)

CODE = "def count(items):\n    if items:\n        return   len(items)\n\n\treturn 0  # 日本 🙂\n"

#: Random texts for each vocabulary.
TEXTS = 3000

NAMES = [*real_tokenizers.NAMES, *real_tokenizers.LARGE_NAMES]

#: Kinds that leave out spaces, controls or bytes that their vocabulary lacks.
DROPPING = ("WordPiece", "SmolLM2")

#: Kinds whose tokens' bytes are the text's.
EXACT = ("byte-level", "Mistral Tekken", *real_tokenizers.LARGE_NAMES)


@pytest.mark.parametrize("name", real_tokenizers.LARGE_NAMES)
def test_the_bytes_of_all_ids_are_what_they_decode_to(name):
    tokenizer = real_tokenizers.load(name)
    assert tokenizer.vocab_size > 100_000
    check_token_bytes(tokenizer.token_bytes, tokenizer._kind, tokenizer.backend, name, most=tokenizer.vocab_size)


@pytest.mark.parametrize(("name", "after"), [("Gemma", "\n"), ("Qwen", " y")])
def test_indentation_is_spaces(name, after):
    tokenizer = real_tokenizers.load(name)
    ids, ends = tokenizer.encode(CODE)
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == CODE.encode()
    assert ends[-1] == len(CODE.encode())
    for spaces in (2, 4, 8, 16):
        assert tokenizer.token_bytes[tokenizer.id_of_bytes[b" " * spaces]] == b" " * spaces
        assert tokenizer.id_of_bytes[b" " * spaces] in tokenizer.encode("x:\n" + " " * spaces + after)[0]


def own_ids(name: str) -> Callable[[str], list[int]]:
    """The ids of a text by the code or the file that a vocabulary comes with, special strings in it as text."""
    encodings = {
        "Qwen": (real_tokenizers.qwen_ranks, real_tokenizers.QWEN_SPLIT),
        "cl100k": (lambda: real_tokenizers.tiktoken_ranks("cl100k"), real_tokenizers.CL100K_SPLIT),
        "o200k": (lambda: real_tokenizers.tiktoken_ranks("o200k"), real_tokenizers.O200K_SPLIT),
        "Llama 3": (lambda: real_tokenizers.tiktoken_ranks("llama3"), real_tokenizers.CL100K_SPLIT),
    }
    if name in encodings:
        ranks, split = encodings[name]
        encoding = tiktoken.Encoding(name, pat_str=split, mergeable_ranks=ranks(), special_tokens={})
        return lambda text: encoding.encode(text, disallowed_special=())
    if name == "Mistral Tekken":
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        file = real_tokenizers.package("mistral_common") / "data/tekken_240911.json"
        tekken = Tekkenizer.from_file(str(file))
        return lambda text: tekken.encode(text, bos=False, eos=False)
    if name == "DeepSeek":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(real_tokenizers.deepseek_checkpoint(Path(folder)), "tokenizer.json")
            return as_text(Tokenizer.from_file(str(file)))
    return as_text(Tokenizer.from_str(real_tokenizers.load(name).hugging_face.backend_tokenizer.to_str()))


def as_text(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
def test_random_texts_have_the_files_own_ids_and_their_ends_add_up(name):
    tokenizer, expected, refused = real_tokenizers.load(name), own_ids(name), 0
    for text in itertools.islice(fuzzing.texts(seed=len(name)), TEXTS):
        try:
            ids, ends = tokenizer.encode(text)
        except TokenizerError as error:
            assert name in DROPPING and "no token at all" in str(error)
            refused += 1
            continue
        if tokenizer._specials.isdisjoint(expected(text)):
            assert ids.tolist() == expected(text), text
        assert ends[-1] == len(text.encode("utf8"))
        assert (np.diff(ends, prepend=0) >= 0).all()
        if name in EXACT and (name != "Gemma" or "▁" not in text):  # the marker itself is read as a space
            pieces = [tokenizer.token_bytes[token] for token in ids]
            assert b"".join(pieces) == text.encode("utf8")
            assert ends.tolist() == list(itertools.accumulate(map(len, pieces)))
    assert refused < 0.1 * TEXTS
