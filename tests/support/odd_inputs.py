"""Tokenizers, corpora, specs and folders as people have them, odd but often sound, each with what must come of it.

``odd_inputs`` writes them below one folder, beside ``broken_inputs``, whose checkpoints have one thing wrong.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.broken_inputs import BrokenInput, Workshop
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import SENTENCES, byte_level_with_bos, sentencepiece_like

TEXT = "Return the number of items in a container. The cat sat on the mat, and the dog lay in the sun.\n"

#: A file's bytes, or what writes it at a path.
Content = bytes | Callable[[Path], Any]


def odd_inputs(base: Path) -> list[BrokenInput]:
    """Write all of them below ``base``."""
    workshop = Workshop(base)
    return [*_tokenizers(workshop), *_corpora(workshop), *_specs(workshop), *_folders(workshop)]


def _tokenizers(workshop: Workshop) -> Iterator[BrokenInput]:
    """Each as the target's and as a source's, of random models."""
    corpus = workshop.folder() / "corpus.jsonl"
    texts = [TEXT, "a <left> b <right>  c, in the sun.", "  a dog and a <mask> of dogs\n\n    <left>", "x = '<unk>'"]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def model(
        name: str,
        tokenizer: PreTrainedTokenizerFast,
        edit: Callable[[Path], None] | None = None,
        refused: bool | None = False,
        words: tuple[str, ...] = ("tokenizer",),
    ) -> BrokenInput:
        folder = workshop.folder()
        tokenizer.save_pretrained(folder / "tokenizer")
        checkpoint = tiny_checkpoint(folder / "model", "llama", folder / "tokenizer")
        if edit:
            edit(Path(checkpoint))
        changes = {"target_model__checkpoint": checkpoint, "source_models__0__checkpoint": checkpoint}
        changes |= {"source_models__0__probe": "off", "corpus__paths": [str(corpus)]}
        return workshop.made("tokenizer", name, words, refused, **changes)

    yield model("with added tokens that take spaces", with_added_tokens(byte_level_with_bos()))
    yield model("of markers, with added tokens that take spaces", with_added_tokens(sentencepiece_like()))
    yield model("with gaps in its ids", byte_level_with_bos(), _move_ids, refused=True, words=("ids", "rows"))
    yield model("with special_tokens_map.json alone", byte_level_with_bos(), _leave_the_map)
    yield model("of Unigram with bytes", unigram(byte_fallback=True))
    yield model(
        "of Unigram without an unknown token", unigram(byte_fallback=False, unknown=None), None, True, ("be tokenized",)
    )
    yield model("of WordPiece", word_piece())
    yield model("of WordPiece with an empty piece", word_piece(), _add_empty_piece)
    yield model("of characters that lacks an a", characters(), refused=None)


def with_added_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Tokens that take the space before or after them, that are normalized, and that stand alone."""
    tokens = [
        AddedToken("<left>", lstrip=True),
        AddedToken("<right>", rstrip=True),
        AddedToken("cat", normalized=True),
        AddedToken("dog", single_word=True, normalized=False),
        AddedToken("the sun", lstrip=True, rstrip=True, normalized=True),
    ]
    tokenizer.add_tokens(tokens)
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=True)], special_tokens=True)
    return tokenizer


def unigram(byte_fallback: bool, unknown: str | None = "<unk>") -> PreTrainedTokenizerFast:
    """A Unigram model with markers for spaces, as T5's and Gemma's SentencePiece write it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    layout = json.loads(tokenizer.to_str())
    if byte_fallback:
        layout["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
        layout["model"]["byte_fallback"] = True
        parts = [decoders.ByteFallback(), decoders.Metaspace()]
        layout["decoder"] = {"type": "Sequence", "decoders": [json.loads(part.__getstate__()) for part in parts]}
    if unknown is None:
        layout["model"]["unk_id"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(layout)), bos_token="<s>", eos_token="</s>", unk_token=unknown
    )


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind, lower case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        SENTENCES * 4, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]")


def characters() -> PreTrainedTokenizerFast:
    """Bytes as tokens, of which one is missing."""
    vocabulary = {piece: number for number, piece in enumerate(["<s>", "</s>", *"bcdefghijklmnopqrstuvwxyz.,Ġ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text(encoding="utf8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf8")


def _move_ids(folder: Path) -> None:
    """The last hundred tokens have ids further up, beyond the embedding's rows."""

    def move(layout: dict[str, Any]) -> None:
        vocabulary = layout["model"]["vocab"]
        for piece in sorted(vocabulary, key=vocabulary.get)[-100:]:
            vocabulary[piece] += 50

    _edit(folder / "tokenizer.json", move)


def _leave_the_map(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    roles = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))


def _add_empty_piece(folder: Path) -> None:
    """In the place of the last piece."""

    def add(layout: dict[str, Any]) -> None:
        vocabulary = layout["model"]["vocab"]
        vocabulary[""] = vocabulary.pop(max(vocabulary, key=vocabulary.get))

    _edit(folder / "tokenizer.json", add)


def _corpora(workshop: Workshop) -> Iterator[BrokenInput]:
    line = json.dumps({"text": TEXT}).encode() + b"\n"
    lines = line * 4

    def corpus(name: str, file: str, content: Content, refused: bool | None, *words: str, **changes: Any):
        place = workshop.folder() / file
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            content(place)
        changes = {"corpus__paths": [str(place)]} | changes
        return workshop.made("corpus", f"{file}, {name}", words or ("corpus",), refused, **changes)

    def parquet(values: Any, column: str = "text") -> Callable[[Path], None]:
        return lambda place: pa.parquet.write_table(pa.table({column: values}), place)

    def torn(place: Path) -> None:
        place.write_bytes(gzip.compress(os.urandom(3000).hex().encode() + b"\n" + lines)[:1000])

    def beside(content: bytes | None) -> Callable[[Path], None]:
        """A link to a file beside it, or to nothing."""

        def link(place: Path) -> None:
            target = place.parent / "target.jsonl"
            if content is not None:
                target.write_bytes(content)
            place.symlink_to(target)

        return link

    texts = [TEXT] * 4
    yield corpus("a byte order mark", "a.jsonl", b"\xef\xbb\xbf" + lines, False)
    yield corpus("lines that end in CR LF", "a.jsonl", lines.replace(b"\n", b"\r\n"), False)
    yield corpus("lines that end in CR", "a.jsonl", lines.replace(b"\n", b"\r"), True, "row 1")
    yield corpus("blank lines", "a.jsonl", b"\n \n" + lines + b"\n\n", False)
    yield corpus("no end of the last line", "a.jsonl", lines[:-1], False)
    yield corpus("a list in several lines", "a.jsonl", json.dumps([{"text": TEXT}], indent=1).encode(), True, "row 1")
    yield corpus("UTF-16", "a.jsonl", lines.decode().encode("utf16"), True, "UTF-8")
    yield corpus("bytes of zero", "a.jsonl", bytes(4096), True, "row 1")
    yield corpus("gzip under another name", "a.jsonl", gzip.compress(lines), True, "gz")
    yield corpus("text under the name of gzip", "a.jsonl.gz", lines, True, "gz")
    yield corpus("gzip that is torn", "a.jsonl.gz", torn, True, "cannot be read")
    yield corpus("gzip of nothing", "a.jsonl.gz", gzip.compress(b""), True, "no row")
    yield corpus("no byte", "a.jsonl.gz", b"", True, "no row")
    yield corpus("no byte", "a.txt", b"", True, "empty")
    yield corpus("no byte", "a.parquet", b"", True, "a.parquet")
    yield corpus("no byte", "a.jsonl.zst", b"", True, "a.jsonl.zst")
    yield corpus("spaces alone", "a.txt", b" \n \n", None)
    yield corpus("a link", "a.jsonl", beside(lines), False)
    yield corpus("a link to nothing", "a.jsonl", beside(None), True, "link to nothing")
    yield corpus("a folder", "a.jsonl", Path.mkdir, True, "is a folder")
    yield corpus("a pipe", "a.jsonl", os.mkfifo, True, "pipe")
    yield corpus("texts", "a.parquet", parquet(texts), False)
    yield corpus("large strings", "a.parquet", parquet(pa.array(texts, pa.large_string())), False)
    yield corpus("strings by a dictionary", "a.parquet", parquet(pa.array(texts).dictionary_encode()), False)
    yield corpus("views of strings", "a.parquet", parquet(pa.array(texts, pa.string_view())), False)
    yield corpus("nulls among texts", "a.parquet", parquet([TEXT, None, TEXT, None]), True, "null")
    yield corpus("nulls alone", "a.parquet", parquet(pa.nulls(4)), True, "null")
    yield corpus("numbers", "a.parquet", parquet([1, 2, 3]), True, "int")
    yield corpus("bytes", "a.parquet", parquet([TEXT.encode()] * 4), True, "bytes")
    yield corpus("lists of texts", "a.parquet", parquet([texts]), True, "list")
    yield corpus("another column", "a.parquet", parquet(texts, "content"), True, "no column 'text'; it has content")
    yield corpus("no rows", "a.parquet", parquet(pa.array([], pa.string())), True, "no row")
    yield corpus("a table of nothing", "a.parquet", lambda place: pa.parquet.write_table(pa.table({}), place), True)
    yield corpus("JSON under the name of Parquet", "a.parquet", lines, True, "a.parquet")
    yield corpus("another key", "a.jsonl", b'{"content": "x"}\n', True, "no key 'text'; it has content")
    yield corpus("a key of null", "a.jsonl", b'{"text": null}\n', True, "null")
    yield corpus("one bad row of four", "a.jsonl", lines + b"{torn\n", True, "row 5")
    skip = {"corpus__on_error": "skip", "corpus__most_skipped": 0.5}
    yield corpus("one bad row of five, skipped", "a.jsonl", lines + b"{torn\n", False, **skip)
    chat = {"corpus__messages_column": "messages"}
    yield corpus("texts where messages are asked for", "a.jsonl", lines, True, "messages", **chat)
    odd_message = json.dumps({"messages": [{"role": "user", "content": None}, "hello"]}).encode()
    yield corpus("odd messages", "a.jsonl", odd_message, True, "messages", "message", **chat)


def _specs(workshop: Workshop) -> Iterator[BrokenInput]:
    good = yaml.safe_dump(workshop.document(), sort_keys=False)

    def spec(name: str, text: str | bytes, refused: bool | None, *words: str) -> BrokenInput:
        return BrokenInput("spec", f"the file {name}", workshop.write(text), words or ("spec.yaml",), refused)

    yield spec("begins with a byte order mark", b"\xef\xbb\xbf" + good.encode(), False)
    yield spec("ends its lines in CR LF", good.replace("\n", "\r\n").encode(), False)
    yield spec("begins and ends a document", f"%YAML 1.1\n---\n{good}...\n", False)
    yield spec("has an anchor for a value", good.replace("name: broken", "name: &name broken"), False)
    yield spec("has no for a name", good.replace("name: broken", "name: no"), True, "run.name")
    yield spec("has a number for a name", good.replace("name: broken", "name: 7"), True, "run.name")
    yield spec("has a home for a folder", good.replace("name: broken", "name: ~"), True, "run.name")
    yield spec("has a number with commas", good.replace("max_steps: 2", "max_steps: 2,000"), True, "max_steps")
    yield spec("has a number by sixties", good.replace("max_steps: 2", "max_steps: 1:30"), True, "max_steps")
    yield spec("has a number by eights", good.replace("max_steps: 2", "max_steps: 010"), True, "max_steps")
    yield spec("has a text for a number", good.replace("max_steps: 2", 'max_steps: "2"'), None, "max_steps")
    yield spec("has half a step", good.replace("max_steps: 2", "max_steps: 2.5"), True, "max_steps")
    yield spec("has sections of nothing", good + "objective:\nevaluation:\n", True, "objective", "evaluation")
    yield spec("has a variable for a path", good.replace("broken", "$HOME"), True, "run.name")
    yield spec("is large", b"# " + b"x" * 3_000_000 + b"\n" + good.encode(), True)
    yield spec("is JSON", json.dumps(workshop.document()), False)
    yield spec("is JSON with a comma too many", json.dumps(workshop.document()).replace("}}", "},}"), None)
    yield spec("is a notebook", json.dumps({"cells": [], "metadata": {}, "nbformat": 4}), True, "cells", "run")
    yield spec("is Python", "import os\nprint({'a': [1,\n", True)
    folder = workshop.folder()
    (folder / "spec.yaml").symlink_to(folder / "nothing.yaml")
    yield BrokenInput("spec", "is a link to nothing", folder / "spec.yaml", ("spec.yaml",), True)
    yield BrokenInput("spec", "is a folder", folder, (str(folder),), True)
    yield BrokenInput("spec", "is a model", Path(folder, "big.safetensors"), ("big.safetensors",), True)
    with open(folder / "big.safetensors", "wb") as file:
        file.truncate(2**40)  # a hole: it takes no room


def _folders(workshop: Workshop) -> Iterator[BrokenInput]:
    folder = workshop.folder()

    def output(name: str, value: str, refused: bool | None) -> BrokenInput:
        return workshop.made("folder", f"output_dir {name}", ("run.output_dir",), refused, run__output_dir=value)

    (folder / "loop").symlink_to(folder / "loop")
    (folder / "lost").symlink_to(folder / "nothing" / "there")
    (folder / "inside").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    yield output("is a link to itself", str(folder / "loop"), True)
    yield output("lies under a link to itself", str(folder / "loop" / "out"), True)
    yield output("is a link to nothing", str(folder / "lost"), None)
    yield output("lies under a link", str(folder / "inside" / "out"), False)
    yield output("is a pipe", str(folder / "pipe"), True)
    yield output("is a device", "/dev/null", True)
    yield output("lies in a file system that cannot be written", "/sys/out", True)
    yield output("is of a user who is not there", "~nosuchuser/out", True)
    yield output("has all signs", str(folder / "a#b?c*d[1]e%20f;g:h"), None)
    yield output("has letters of all kinds", str(folder / "läufe 日本 🙂"), False)
    yield output("ends in a line", str(folder / "out\n"), None)
    yield output("has a path too long", str(folder) + "/x" * 3000, True)
    yield output("climbs", str(folder / ".." / ".." / ".." / "out"), None)
