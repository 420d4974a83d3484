"""Gemma, Qwen and DeepSeek: the bytes of all their ids, and indentation, which each writes in another way."""

import functools
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.model_files.checkpoint import Checkpoint
from engine.text.token_bytes import check_token_bytes
from engine.text.tokenization import PassageTokenizer
from tests.support import real_tokenizers

pytestmark = pytest.mark.timeout(240)

CODE = "def count(items):\n    if items:\n        return   len(items)\n\n\treturn 0  # 日本 🙂\n"


@functools.cache
def large(name: str) -> PassageTokenizer:
    return PassageTokenizer({"gemma": real_tokenizers.gemma, "qwen": real_tokenizers.qwen}[name](), name)


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory) -> PassageTokenizer:
    folder = tmp_path_factory.mktemp("deepseek")
    return PassageTokenizer.load(Checkpoint(real_tokenizers.deepseek_checkpoint(folder)))


@pytest.mark.parametrize("name", ["gemma", "qwen"])
def test_the_bytes_of_all_ids_are_what_they_decode_to(name):
    tokenizer = large(name)
    assert tokenizer.vocab_size > 150_000
    check_token_bytes(tokenizer.token_bytes, tokenizer._kind, tokenizer.backend, name, most=tokenizer.vocab_size)


@pytest.mark.parametrize(("name", "after"), [("gemma", "\n"), ("qwen", " y")])
def test_indentation_is_spaces(name, after):
    tokenizer = large(name)
    ids, ends = tokenizer.encode(CODE)
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == CODE.encode()
    assert ends[-1] == len(CODE.encode())
    for spaces in (2, 4, 8, 16):
        assert tokenizer.token_bytes[tokenizer.id_of_bytes[b" " * spaces]] == b" " * spaces
        assert tokenizer.id_of_bytes[b" " * spaces] in tokenizer.encode("x:\n" + " " * spaces + after)[0]


def test_deepseek_is_read_as_its_file_stands(deepseek):
    file = Tokenizer.from_file(str(Path(deepseek.name) / "tokenizer.json"))
    assert deepseek.encode(CODE)[0].tolist() == file.encode(CODE, add_special_tokens=False).ids
    check_token_bytes(deepseek.token_bytes, "byte_level", deepseek.backend, "deepseek", most=deepseek.vocab_size)
