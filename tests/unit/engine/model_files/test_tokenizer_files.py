"""A checkpoint's tokenizer.json is read as it stands, whatever class its configuration names."""

import json
import warnings
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import load_tokenizer
from engine.text.tokenization import PassageTokenizer
from tests.support.tiny_tokenizers import SENTENCES

pytestmark = pytest.mark.timeout(120)

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = ("return the number of items", "def main():\n    return 0")


def checkpoint(folder: Path, kind: str, **configuration) -> Checkpoint:
    """A byte-level tokenizer.json that splits as Llama 3's does, below the configuration of another class."""
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end).save_pretrained(folder)
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"tokenizer_class": kind} | configuration))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    return Checkpoint(str(folder))


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "GPT2Tokenizer"])
def test_another_class_does_not_change_the_tokens(tmp_path, kind):
    named = checkpoint(tmp_path / "model", kind)
    with pytest.warns(UserWarning, match="would change the pre_tokenizer .* the file is used as it stands"):
        read = PassageTokenizer.load(named)
    file = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    for text in TEXTS:
        assert read.encode(text)[0].tolist() == file.encode(text, add_special_tokens=False).ids
    assert read.bos_id == read.eos_id == file.token_to_id("<|endoftext|>")


def test_an_export_of_it_is_the_same_tokenizer_again(tmp_path):
    with pytest.warns(UserWarning, match="the file is used as it stands"):
        load_tokenizer(checkpoint(tmp_path / "model", "LlamaTokenizerFast")).save_pretrained(tmp_path / "export")
    file = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exported = PassageTokenizer.load(Checkpoint(str(tmp_path / "export")))
    for text in TEXTS:
        assert exported.encode(text)[0].tolist() == file.encode(text, add_special_tokens=False).ids


def test_its_configuration_still_says_whether_bos_comes_first(tmp_path):
    """As DeepSeek V3, whose tokenizer.json puts nothing before a text; so does its export."""
    for kind in ("LlamaTokenizerFast", "PreTrainedTokenizerFast"):
        named = checkpoint(tmp_path / kind, kind, add_bos_token=True)
        assert PassageTokenizer.load(named).adds_bos
        load_tokenizer(named).save_pretrained(tmp_path / f"{kind}-export")
        assert PassageTokenizer.load(Checkpoint(str(tmp_path / f"{kind}-export"))).adds_bos


def test_a_class_that_reads_the_file_is_left_alone(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_tokenizer(checkpoint(tmp_path / "model", "PreTrainedTokenizerFast"))
