"""Checkpoints, specs and paths with one thing wrong in each, made from the small good ones of the quickstart.

``broken_inputs`` writes them all below one folder, the same ones every time. A file that is not edited is a hard link
to the good one: an edit here writes a new file in its place.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

QUICKSTART = ROOT / "pipelines" / "quickstart"
MODELS = ("llama-docs", "gpt2-code", "neox-mixed", "mistral-target")
TARGET, SOURCE = "mistral-target", "llama-docs"

#: What Git leaves in the place of a large file that has not been fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 1995968\n"

#: Edits of config.json that are tried, of all pairs of a key and a value.
CONFIG_EDITS = 48

#: The corpus: enough for a plan, and little enough to cost nothing.
ROWS = 4
ROW_CHARACTERS = 160

#: A file's new content from its old one; None takes the file away.
Edit = Callable[[bytes], bytes | None]


@dataclass(frozen=True)
class BrokenInput:
    """A spec with one thing wrong, in itself or in what it names.

    Attributes:
        kind: ``config``, ``tokenizer``, ``weights``, ``spec``, ``paths`` or ``sound``.
        name: what was done.
        spec: the YAML file.
        words: what a refusal must name; one of them is enough.
        refused: True: it cannot run, and must be refused; False: it must be planned; None: both are right, since the
            libraries give some edits a meaning.
    """

    kind: str
    name: str
    spec: Path
    words: tuple[str, ...]
    refused: bool | None = None


def broken_inputs(base: Path, seed: int = 0) -> list[BrokenInput]:
    """Write all of them below ``base``."""
    workshop = Workshop(base)
    made = [workshop.sound()]
    made += _config_files(workshop, random.Random(seed))
    made += _tokenizer_files(workshop)
    made += _weight_files(workshop)
    made += _spec_texts(workshop)
    made += _spec_values(workshop)
    made += _paths(workshop)
    return made


class Workshop:
    """Writes checkpoints and specs below one folder, each in a folder of its own."""

    def __init__(self, base: Path):
        self.base = base
        self._count = 0
        self.corpus = base / "corpus.jsonl"
        lines = (QUICKSTART / "corpus" / "heldout_docs.jsonl").read_text(encoding="utf8").splitlines()[:ROWS]
        texts = [json.loads(line)["text"][:ROW_CHARACTERS] for line in lines]
        self.corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def folder(self) -> Path:
        """A new folder."""
        self._count += 1
        folder = self.base / f"{self._count:03d}"
        folder.mkdir()
        return folder

    def checkpoint(self, model: str, edits: dict[str, Edit], name: str = "model") -> Path:
        """A copy of one of the quickstart's models with some files edited; an edit of no file gets ``b""``."""
        folder = self.folder() / name
        folder.mkdir()
        for file in sorted((QUICKSTART / "models" / model).iterdir()):
            if file.name not in edits:
                _link(file, folder / file.name)
        for file_name, edit in edits.items():
            old = QUICKSTART / "models" / model / file_name
            new = edit(old.read_bytes() if old.exists() else b"")
            if new is not None:
                (folder / file_name).write_bytes(new)
        return folder

    def document(self, **changes: Any) -> dict[str, Any]:
        """A good spec of one target and one source, with the values at some dotted paths replaced."""
        models = QUICKSTART / "models"
        source = {"name": "s", "checkpoint": str(models / SOURCE), "dtype": "float32", "backend": "transformers"}
        document: dict[str, Any] = {
            "run": {"name": "broken", "output_dir": str(self.base / "output")},
            "corpus": {"paths": [str(self.corpus)]},
            "target_model": {"checkpoint": str(models / TARGET)},
            "source_models": [source],
            "alignment": {"cache_dir": str(self.base / "tables")},
            "fusion": {"top_k": 16},
            "training": {"block_length": 128, "global_batch_blocks": 2, "max_steps": 2},
        }
        for place, value in changes.items():
            _put(document, place.split("__"), value)
        return document

    def write(self, text: str | bytes) -> Path:
        """A spec file with this text."""
        file = self.folder() / "spec.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf8"))
        return file

    def made(self, kind: str, name: str, words: tuple[str, ...], refused: bool | None, **changes: Any) -> BrokenInput:
        """The good spec with some values replaced."""
        text = yaml.safe_dump(self.document(**changes), sort_keys=False, allow_unicode=True)
        return BrokenInput(kind, name, self.write(text), words, refused)

    def sound(self) -> BrokenInput:
        """The good spec as it is."""
        return self.made("sound", "nothing is wrong", (), refused=False)

    def with_checkpoint(
        self, kind: str, name: str, model: str, edits: dict[str, Edit], words: tuple[str, ...], refused: bool | None
    ) -> BrokenInput:
        """The good spec with an edited checkpoint: as the target if it is the target's, else as the source."""
        folder = str(self.checkpoint(model, edits))
        if model == TARGET:
            return self.made(kind, f"{model}, {name}", words, refused, target_model__checkpoint=folder)
        return self.made(kind, f"{model}, {name}", words, refused, source_models__0__checkpoint=folder)


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:  # another filesystem
        place.write_bytes(file.read_bytes())


def _put(node: Any, keys: list[str], value: Any) -> None:
    *before, last = [int(key) if key.isdigit() else key for key in keys]
    for key in before:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[last] = value


def _json(change: Callable[[Any], Any]) -> Edit:
    """An edit of a JSON file's value, in place or returned."""

    def edit(data: bytes) -> bytes:
        value = json.loads(data)
        changed = change(value)
        return json.dumps(value if changed is None else changed).encode("utf8")

    return edit


def _set(*keys: str | int, to: Any) -> Edit:
    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value.setdefault(key, {}) if isinstance(value, dict) else value[key]
        value[keys[-1]] = to

    return _json(change)


def _without(*keys: str) -> Edit:
    def change(value: Any) -> None:
        for key in keys:
            value.pop(key, None)

    return _json(change)


def _content(data: bytes | None) -> Edit:
    return lambda _: data


#: Content that no JSON file of a checkpoint may have, and whether it is certainly refused.
BROKEN_JSON: dict[str, Edit] = {
    "is empty": _content(b""),
    "is cut short": lambda data: data[: len(data) // 2],
    "is a list": _content(b"[]"),
    "is null": _content(b"null"),
    "is a number": _content(b"7"),
    "is a text": _content(b'"llama"'),
    "is HTML": _content(b"<!doctype html><html><body>404</body></html>"),
    "is UTF-16": lambda data: data.decode("utf8").encode("utf16"),
    "is binary": _content(bytes(range(256)) * 4),
    "is nested too deep": _content(b"[" * 200_000 + b"]" * 200_000),
    "is a Git LFS pointer": _content(LFS_POINTER),
}

CONFIG_KEYS = {
    "llama-docs": (
        *("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings", "rope_parameters"),
        *("rms_norm_eps", "hidden_act", "dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id", "auto_map"),
        *("quantization_config", "attention_bias", "transformers_version", "text_config", "torch_dtype", "id2label"),
    ),
    "gpt2-code": ("n_embd", "n_head", "n_layer", "n_positions", "activation_function", "vocab_size", "n_inner"),
    "neox-mixed": ("rotary_pct", "hidden_size", "num_attention_heads", "use_parallel_residual", "vocab_size"),
    "mistral-target": ("sliding_window", "head_dim", "num_key_value_heads", "vocab_size", "max_position_embeddings"),
}
CONFIG_VALUES: tuple[Any, ...] = (
    *(None, "many", "", -1, 0, 1, 3, 1.5, 10**9, 10**30, True, [], {}, [1, 2], {"type": "x"}, [None]),
)


def _config_files(workshop: Workshop, random_numbers: random.Random) -> Iterator[BrokenInput]:
    where = "config.json"
    words = (where, "checkpoint")

    def broken(model: str, name: str, edit: Edit, refused: bool | None = None) -> BrokenInput:
        return workshop.with_checkpoint("config", f"{where} {name}", model, {where: edit}, words, refused)

    for number, (name, edit) in enumerate(BROKEN_JSON.items()):
        yield broken(MODELS[number % 4], name, edit, True)
    yield broken(SOURCE, "is missing", _content(None), True)
    for key in ("model_type", "architectures", "vocab_size", "num_attention_heads", "hidden_size"):
        yield broken(TARGET if key == "vocab_size" else SOURCE, f"has no {key}", _without(key))
    yield broken(SOURCE, "model_type is unknown", _set("model_type", to="llamma"), True)
    yield broken(SOURCE, "architectures is another's", _set("architectures", to=["BertForMaskedLM"]))
    yield broken(SOURCE, "model_type is an encoder's", _set("model_type", to="bert"), True)
    yield broken(SOURCE, "model_type is a vision model's", _set("model_type", to="vit"), True)
    yield broken(SOURCE, "rope_type is unknown", _set("rope_parameters", "rope_type", to="spiral"), True)
    yield broken(SOURCE, "rope_type lacks its factor", _set("rope_parameters", "rope_type", to="yarn"))
    yield broken(SOURCE, "needs code of its own", _set("auto_map", to={"AutoConfig": "configuration_x.X"}))
    yield broken(
        TARGET, "has a duplicate key", lambda data: data.replace(b"{", b'{"vocab_size": 3, "vocab_size": 5,', 1)
    )
    for method in ("gptq", "awq", "bitsandbytes", "aqlm", "no-such-method", None):
        settings = {"quant_method": method, "bits": 4, "group_size": 128}
        if method == "bitsandbytes":
            settings["load_in_4bit"] = True
        refused = None if method == "aqlm" else True
        yield broken(SOURCE, f"is quantised by {method}", _set("quantization_config", to=settings), refused)
    for settings in ([], {}, 5, {"quant_method": 5}, {"quant_method": ["fp8"]}):
        yield broken(
            TARGET, f"has the quantization_config {settings!r}", _set("quantization_config", to=settings), True
        )
    yield broken(TARGET, "target is quantised by gptq", _set("quantization_config", to={"quant_method": "gptq"}), True)
    pairs = [(model, key, value) for model, keys in CONFIG_KEYS.items() for key in keys for value in CONFIG_VALUES]
    for model, key, value in random_numbers.sample(pairs, CONFIG_EDITS):
        yield broken(model, f"{key} is {value!r}", _set(key, to=value))


def _tokenizer_files(workshop: Workshop) -> Iterator[BrokenInput]:
    def broken(model: str, file: str, name: str, edit: Edit, refused: bool | None = None) -> BrokenInput:
        words = (file, "tokenizer", "checkpoint", "token")
        return workshop.with_checkpoint("tokenizer", f"{file} {name}", model, {file: edit}, words, refused)

    def more(special: bool) -> Edit:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        tokens = [{"id": 100_000 + number, "content": f"<more-{number}>", **flags} for number in range(3)]
        return _json(lambda value: value["added_tokens"].extend(tokens))

    file = "tokenizer.json"
    for number, (name, edit) in enumerate(BROKEN_JSON.items()):
        yield broken(MODELS[number % 4], file, name, edit, True)
    yield broken(SOURCE, file, "is missing", _content(None), True)
    yield broken(SOURCE, file, "has no model", _without("model"), True)
    yield broken(SOURCE, file, "has a model of no known type", _set("model", "type", to="BPEE"), True)
    yield broken(SOURCE, file, "has an empty vocabulary", _set("model", "vocab", to={}))
    yield broken(SOURCE, file, "has a vocabulary of null", _set("model", "vocab", to=None), True)
    yield broken(SOURCE, file, "has a vocabulary that is a list", _set("model", "vocab", to=["a", "b"]), True)
    yield broken(SOURCE, file, "has merges of unknown tokens", _set("model", "merges", to=[["qq", "zz"]]), True)
    yield broken(SOURCE, file, "has merges of numbers", _set("model", "merges", to=[1, 2]), True)
    yield broken(SOURCE, file, "has an unknown pre_tokenizer", _set("pre_tokenizer", to={"type": "Bites"}), True)
    yield broken(SOURCE, file, "has an unknown normalizer", _set("normalizer", to={"type": "Rot13"}), True)
    yield broken(SOURCE, file, "has an unknown decoder", _set("decoder", to={"type": "None"}))
    yield broken(SOURCE, file, "has added_tokens of null", _set("added_tokens", to=None))
    yield broken(SOURCE, file, "has added_tokens that are texts", _set("added_tokens", to=["<s>"]))
    yield broken(SOURCE, file, "has ids far beyond the embedding", more(special=False), True)
    yield broken(TARGET, file, "has ids far beyond the embedding", more(special=False), True)
    yield broken(TARGET, file, "has special ids beyond the embedding", more(special=True))
    gap = _json(lambda value: value["model"]["vocab"].update({"gap": 5_000_000}))
    yield broken(SOURCE, file, "has an id of five million", gap, True)
    yield broken(
        SOURCE, file, "has a negative id", _json(lambda value: value["model"]["vocab"].update({"a": -1})), True
    )
    lower = _set("normalizer", to={"type": "Lowercase"})
    yield broken(SOURCE, file, "loses capitals", lower)
    words = {"type": "WordLevel", "vocab": {"the": 0, "<unk>": 1}, "unk_token": "<unk>"}
    yield broken(SOURCE, file, "knows two words", _set("model", to=words))
    file = "tokenizer_config.json"
    for number, (name, edit) in enumerate(BROKEN_JSON.items()):
        yield broken(MODELS[number % 4], file, name, edit)
    for model in ("llama-docs", "neox-mixed", "mistral-target"):  # transformers gives GPT-2 an EOS of its own
        yield broken(model, file, "is missing", _content(None), True)
    for value in ("true", "false", 1, []):
        yield broken(SOURCE, file, f"has the add_bos_token {value!r}", _set("add_bos_token", to=value), True)
    yield broken(SOURCE, file, "names an unknown class", _set("tokenizer_class", to="NoSuchTokenizer"))
    yield broken(SOURCE, file, "names another class", _set("tokenizer_class", to="BertTokenizer"))
    yield broken(SOURCE, file, "has a class that is a number", _set("tokenizer_class", to=5))
    yield broken(SOURCE, file, "has a BOS that is a number", _set("bos_token", to=5))
    yield broken(SOURCE, file, "has a BOS of null", _set("bos_token", to=None))
    yield broken(SOURCE, file, "has a BOS that the vocabulary lacks", _set("bos_token", to="<new>"))
    yield broken(TARGET, file, "has an EOS that the vocabulary lacks", _set("eos_token", to="<new>"))
    yield broken(SOURCE, file, "has a torn chat template", _set("chat_template", to="{% for m in messages %}"))
    yield broken(SOURCE, file, "has a chat template that is a number", _set("chat_template", to=5))
    yield broken(SOURCE, file, "has a length that is a text", _set("model_max_length", to="long"))
    yield broken(SOURCE, file, "has tokens by no number", _set("added_tokens_decoder", to={"x": {"content": "y"}}))
    yield broken(
        SOURCE, file, "needs code of its own", _set("auto_map", to={"AutoTokenizer": ["tokenization_x.X", None]})
    )


def safetensors_file(header: dict[str, Any], data: bytes) -> bytes:
    """The bytes of a safetensors file: the header's length, the header in JSON, the tensors."""
    text = json.dumps(header).encode("utf8")
    return struct.pack("<Q", len(text)) + text + data


def _tensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _header(change: Callable[[dict[str, Any]], None]) -> Edit:
    def edit(data: bytes) -> bytes:
        header, tensors = _tensors(data)
        change(header)
        return safetensors_file(header, tensors)

    return edit


def _first_matrix(header: dict[str, Any]) -> str:
    return next(name for name in sorted(header) if name != "__metadata__" and len(header[name]["shape"]) == 2)


def _weight_files(workshop: Workshop) -> Iterator[BrokenInput]:
    file, index = "model.safetensors", "model.safetensors.index.json"

    def broken(model: str, name: str, edits: dict[str, Edit], refused: bool | None = True) -> BrokenInput:
        words = (*edits, "weights", "checkpoint", "tensor")
        return workshop.with_checkpoint("weights", name, model, edits, words, refused)

    def shard(value: Any) -> dict[str, Edit]:
        return {file: _content(None), index: _content(json.dumps(value).encode("utf8"))}

    def drop(header: dict[str, Any]) -> None:
        header.pop(_first_matrix(header))

    def turn(header: dict[str, Any]) -> None:
        header[_first_matrix(header)]["shape"].reverse()

    def rename(header: dict[str, Any]) -> None:
        header.update({f"other.{name}": header.pop(name) for name in list(header) if name != "__metadata__"})

    def halve(header: dict[str, Any]) -> None:
        header[_first_matrix(header)]["shape"][0] //= 2

    def unknown_type(header: dict[str, Any]) -> None:
        header[_first_matrix(header)]["dtype"] = "F7"

    def filled(pattern: bytes) -> Edit:
        def edit(data: bytes) -> bytes:
            header, tensors = _tensors(data)
            return safetensors_file(header, pattern * (len(tensors) // len(pattern)))

        return edit

    for model in (TARGET, SOURCE):
        yield broken(model, "no weights", {file: _content(None)})
        yield broken(model, "weights are a Git LFS pointer", {file: _content(LFS_POINTER)})
        yield broken(model, "weights are cut short", {file: lambda data: data[: len(data) // 2]})
        yield broken(
            model, "the index names shards that are not there", shard({"weight_map": {"a": "model-1.safetensors"}})
        )
        yield broken(model, "a tensor is missing", {file: _header(drop)})
        yield broken(model, "a tensor has another shape", {file: _header(turn)})
        yield broken(model, "another model's names", {file: _header(rename)})
        yield broken(model, "all weights are NaN", {file: filled(b"\xff\x7f")}, None)
    yield broken(SOURCE, "weights are empty", {file: _content(b"")})
    yield broken(SOURCE, "weights are eight bytes", {file: _content(b"\0" * 8)})
    yield broken(SOURCE, "the header is longer than the file", {file: lambda data: b"\xff" * 8 + data[8:]})
    yield broken(SOURCE, "the header is no JSON", {file: lambda data: data[:8] + b"x" * (len(data) - 8)})
    yield broken(SOURCE, "the header is cut short", {file: lambda data: data[:100]})
    yield broken(SOURCE, "a tensor is smaller than its bytes", {file: _header(halve)})
    yield broken(SOURCE, "a tensor has an unknown type", {file: _header(unknown_type)})
    yield broken(SOURCE, "bytes after the last tensor", {file: lambda data: data + b"\0" * 100})
    yield broken(SOURCE, "all weights are zero", {file: filled(b"\0\0")}, None)
    yield broken(SOURCE, "the index is no JSON", {file: _content(None), index: _content(b"{torn")})
    yield broken(SOURCE, "the index is a list", shard([]))
    yield broken(SOURCE, "the index has no weight_map", shard({"metadata": {}}))
    yield broken(SOURCE, "the weight_map is a number", shard({"weight_map": 5}))
    yield broken(SOURCE, "the weight_map names numbers", shard({"weight_map": {"a": 5}}))
    yield broken(SOURCE, "the weight_map leaves the folder", shard({"weight_map": {"a": "../../../etc/passwd"}}))
    yield broken(SOURCE, "the index is a Git LFS pointer", {file: _content(None), index: _content(LFS_POINTER)})
    yield from _pickled_weights(workshop)
    whole = (QUICKSTART / "models" / SOURCE / file).read_bytes()
    for name in ("model-00001-of-00002.safetensors", "consolidated.00.pth", "model.gguf", "training_args.bin"):
        yield broken(SOURCE, f"no weights but {name}", {file: _content(None), name: _content(whole)})
    other = (QUICKSTART / "models" / "gpt2-code" / file).read_bytes()
    yield broken(SOURCE, "another architecture's weights", {file: _content(other)})
    wider = (QUICKSTART / "models" / TARGET / file).read_bytes()
    yield broken(SOURCE, "a smaller model's weights", {file: _content(wider)})
    yield broken(TARGET, "generation_config.json is no JSON", {"generation_config.json": _content(b"{torn")}, None)
    yield broken(TARGET, "generation_config.json is a list", {"generation_config.json": _content(b"[]")}, None)


def _pickled_weights(workshop: Workshop) -> Iterator[BrokenInput]:
    file, pickle, index = "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"

    def broken(name: str, edits: dict[str, Edit]) -> BrokenInput:
        words = (file, *edits, "weights", "checkpoint", "tensor")
        return workshop.with_checkpoint("weights", name, SOURCE, {file: _content(None), **edits}, words, True)

    def parts(value: Any) -> dict[str, Edit]:
        return {index: _content(json.dumps(value).encode("utf8"))}

    yield broken("a pickle that is none", {pickle: _content(b"not a pickle")})
    yield broken("a pickle that is cut short", {pickle: _content(b"PK\3\4")})
    yield broken("a pickle that is empty", {pickle: _content(b"")})
    yield broken("a pickle that is HTML", {pickle: _content(b"<html>404")})
    named = {"metadata": {}, "weight_map": {"a": "pytorch_model-1.bin"}}
    yield broken("pickles that are not there", parts(named))
    yield broken("an index of pickles that is a list", parts([]))
    yield broken("an index of pickles without metadata", parts({"weight_map": {}}))


def _spec_texts(workshop: Workshop) -> Iterator[BrokenInput]:
    good = yaml.safe_dump(workshop.document(), sort_keys=False)
    laughs = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    texts: dict[str, str | bytes] = {
        "is empty": "",
        "is a comment": "# nothing\n",
        "is a list": "- run\n",
        "is a text": "quickstart",
        "is a number": "5",
        "is binary": bytes(range(256)),
        "is UTF-16": good.encode("utf16"),
        "is Latin-1": good.replace("broken", "größer").encode("latin-1"),
        "has a tab": good.replace("\n  ", "\n\t"),
        "is torn": good[: len(good) // 2] + "\n  - {",
        "names a section twice": good + "training: {max_steps: 5}\n",
        "names a key twice": good.replace("  max_steps: 2", "  max_steps: 2\n  max_steps: 3"),
        "names a key of a list twice": good.replace("  dtype: float32", "  dtype: float32\n  dtype: auto"),
        "has two documents": good + "---\n" + good,
        "has a Python object": good + "x: !!python/object/apply:os.getcwd []\n",
        "has an unknown tag": good.replace("name: broken", "name: !secret broken"),
        "has an unknown alias": good.replace("name: broken", "name: *nowhere"),
        "holds itself": good.replace("run:\n", "run: &run\n  more: *run\n"),
        "has laughs by the billion": good + laughs,
        "has a key that is a list": good + "[a, b]: 5\n",
        "has a key that is null": good + "null: 5\n",
        "has a key that is a number": good + "5: 5\n",
        "has a key that is a mapping": good + "{a: b}: 5\n",
        "has a section of null": good.replace("fusion:\n  top_k: 16", "fusion:"),
        "has sources that are a mapping": good.replace("source_models:\n- name", "source_models:\n  name"),
        "merges what is no mapping": good.replace("fusion:\n", "fusion:\n  <<: 5\n"),
        "has a date for a name": good.replace("name: broken", "name: 2025-01-01"),
        "has an impossible date": good.replace("name: broken", "name: 2025-99-99"),
        "has a number of 5,000 digits": good.replace("max_steps: 2", "max_steps: " + "9" * 5000),
        "is nested too deep": "a: " + "[" * 5000 + "]" * 5000,
        "has a null byte": good.replace("broken", "bro\0ken"),
        "has half of a surrogate pair": good.replace("name: broken", 'name: "\\ud800"'),
    }
    for name, text in texts.items():
        yield BrokenInput(
            "spec",
            f"the file {name}",
            workshop.write(text),
            ("spec.yaml", "run", "training", "fusion", "source_models", "a"),
            True,
        )


def _spec_values(workshop: Workshop) -> Iterator[BrokenInput]:
    values: list[tuple[str, Any]] = [
        ("run", 5),
        ("run__name", "no spaces, please"),
        ("run__output_dir", None),
        ("run__seed", 2**40),
        ("corpus__paths", []),
        ("corpus__paths", "corpus.jsonl"),
        ("corpus__on_error", "ignore"),
        ("corpus__overlap_bytes", -1),
        ("target_model", None),
        ("target_model__lora", {"rank": "high"}),
        ("source_models", None),
        ("source_models", [None]),
        ("source_models__0__name", "../../x"),
        ("source_models__0__backend", "onnx"),
        ("source_models__0__replicas", 0),
        ("source_models__0__num_gpus", float("nan")),
        ("source_models__0__temperature", 0),
        ("source_models__0__temperature", float("inf")),
        ("source_models__0__max_context_tokens", 3),
        ("alignment__vocabulary", ["prefix"]),
        ("fusion__top_k", 0),
        ("fusion__top_k", "many"),
        ("fusion__rule", {"min_ce": True}),
        ("fusion__single_source", "s"),
        ("objective__lm_loss_weight", 1.5),
        ("training__block_length", 4),
        ("training__block_lenght", 128),
        ("training__num_workers", 3),
        ("training__optimizer__betas", [0.9]),
        ("training__optimizer__learning_rate", "1e-3x"),
        ("evaluation__corpora", ["docs"]),
        ("evaluation__stride_tokens", 4096),
        ("cluster__object_store_bytes", 1),
        ("preset", "fusellm_harder"),
        ("preset", ["fusellm_hard"]),
    ]
    for place, value in values:
        words = (place.split("__")[-1],)
        yield workshop.made("spec", f"{place.replace('__', '.')} is {value!r}", words, True, **{place: value})
    yield workshop.made("spec", "training.block_length of 8 tokens", ("8 tokens",), None, training__block_length=8)


def _paths(workshop: Workshop) -> Iterator[BrokenInput]:
    yield from _corpus_paths(workshop)
    yield from _checkpoint_paths(workshop)
    yield from _output_paths(workshop)


def _corpus_paths(workshop: Workshop) -> Iterator[BrokenInput]:
    line = workshop.corpus.read_bytes()

    def corpus(name: str, paths: list[str], refused: bool | None = True) -> BrokenInput:
        return workshop.made("paths", f"corpus {name}", ("corpus.paths",), refused, corpus__paths=paths)

    folder = workshop.folder()
    (folder / "web [cleaned]").mkdir()
    brackets = folder / "web [cleaned]" / "part [1].jsonl"
    brackets.write_bytes(line)
    (folder / "x.jsonl").mkdir()
    (folder / "x.jsonl" / "inside.jsonl").write_bytes(line)
    (folder / "link.jsonl").symlink_to(workshop.corpus)
    (folder / "lost.jsonl").symlink_to(folder / "nothing.jsonl")
    (folder / "pointer.jsonl").write_bytes(LFS_POINTER)
    (folder / "pointer.parquet").write_bytes(LFS_POINTER)
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "corpus.csv").write_bytes(b"text\nhello\n")
    yield corpus("with brackets in its path", [str(brackets)], False)
    yield corpus("is a folder named x.jsonl", [str(folder / "x.jsonl")])
    yield corpus("is a folder", [str(folder)])
    yield corpus("is one file by two names, a link", [str(workshop.corpus), str(folder / "link.jsonl")])
    around = str(folder / ".." / workshop.corpus.name)
    yield corpus("is one file by two names, with ..", [str(workshop.corpus), around])
    yield corpus("is one file by its path and its URL", [str(workshop.corpus), f"file://{workshop.corpus}"])
    yield corpus("is a link to nothing", [str(folder / "lost.jsonl")])
    yield corpus("is not there", [str(folder / "nothing.jsonl")])
    yield corpus("is a glob of nothing", [str(folder / "*.parquet.gz")])
    yield corpus("is a Git LFS pointer", [str(folder / "pointer.jsonl")])
    yield corpus("is a Git LFS pointer to Parquet", [str(folder / "pointer.parquet")])
    yield corpus("is empty", [str(folder / "empty.jsonl")], None)
    yield corpus("is of another kind", [str(folder / "corpus.csv")])
    yield corpus("has an unknown protocol", ["nosuch://corpus/x.jsonl"])
    yield corpus("has a protocol without its package", ["s3://corpus/x.jsonl"])
    yield corpus("has a name too long", [str(folder / ("x" * 300 + ".jsonl"))])
    yield corpus("has a null byte in its name", [str(folder / "x\0.jsonl")])
    yield corpus("lies under a file", [str(workshop.corpus / "x.jsonl")])


def _checkpoint_paths(workshop: Workshop) -> Iterator[BrokenInput]:
    folder = workshop.folder()
    good = str(QUICKSTART / "models" / SOURCE)
    files = {
        "empty.gguf": b"",
        "pointer.gguf": LFS_POINTER,
        "short.gguf": b"GGUF\3\0\0\0" + b"\1" * 16,
        "text.gguf": b"not a model",
        "cut.gguf": b"GGUF\3\0\0\0" + b"\0" * 8 + b"\5" + b"\0" * 7,
        "model.safetensors": b"",
        "torn.jinja": b"{% for m in messages %}",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "empty").mkdir()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_bytes(b"{torn")
    (folder / "other adapter").mkdir()
    (folder / "other adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))

    def source(name: str, key: str, value: str) -> BrokenInput:
        place = f"source_models.0.{key}"
        return workshop.made("paths", f"{key} {name}", (place, value), True, **{f"source_models__0__{key}": value})

    for name in (
        "empty.gguf",
        "pointer.gguf",
        "short.gguf",
        "cut.gguf",
        "text.gguf",
        "nothing.gguf",
        "model.safetensors",
    ):
        yield source(f"is {name}", "checkpoint", str(folder / name))
    yield source("is an empty folder", "checkpoint", str(folder / "empty"))
    yield source("is a folder that is not there", "checkpoint", str(folder / "nothing"))
    yield source("is a relative folder that is not there", "checkpoint", "models/nothing/at/all")
    yield source("is a URL of an empty folder", "checkpoint", f"file://{folder / 'empty'}")
    yield source("is a URL of nothing", "checkpoint", f"file://{folder / 'nothing'}")
    yield source("has an unknown protocol", "checkpoint", "nosuch://models/llama")
    yield source("has a protocol without its package", "checkpoint", "s3://models/llama")
    yield source("is no name of the hub", "checkpoint", "no such model!")
    yield source("has a null byte", "checkpoint", f"{folder}/x\0y")
    yield source("is the target's folder of files, a corpus", "checkpoint", str(workshop.corpus))
    yield source("is torn", "adapter", str(folder / "adapter"))
    yield source("has no weights", "adapter", str(folder / "other adapter"))
    yield source("is not there", "adapter", str(folder / "nothing"))
    yield source("is a model", "adapter", good)
    yield source("is not there", "chat_template", str(folder / "nothing.jinja"))
    yield source("is a folder", "chat_template", str(folder / "empty"))
    yield workshop.made(
        *("paths", "evaluation.models.x is not there", ("evaluation.models.x",), True),
        evaluation__models={"x": str(folder / "nothing")},
    )


def _output_paths(workshop: Workshop) -> Iterator[BrokenInput]:
    folder = workshop.folder()
    (folder / "file").write_text("x")
    (folder / "my runs").mkdir()
    (folder / "holds a folder" / "spec.yaml").mkdir(parents=True)
    (folder / "holds a list").mkdir()
    (folder / "holds a list" / "spec.yaml").write_text("[]")

    def output(name: str, value: str, refused: bool | None = True) -> BrokenInput:
        return workshop.made("paths", f"output_dir {name}", ("run.output_dir",), refused, run__output_dir=value)

    yield output("is a file", str(folder / "file"))
    yield output("lies under a file", str(folder / "file" / "out"))
    yield output("cannot be made", "/proc/nothing/out")
    yield output("has a space", str(folder / "my runs" / "out"), False)
    yield output("is a URL with a space", f"file://{folder}/my runs/out")
    yield output("is a URL with an escaped space", f"file://{folder}/my%20runs/out")
    yield output("is a plain URL", f"file://{folder}/out", False)
    yield output("is in memory", "memory://out")
    yield output("is in Azure's store by another name", "az://container/out")
    yield output("has a protocol that is unknown", "nosuch://out")
    yield output("is s3a", "s3a://bucket/out")
    yield output("is a bucket with a space", "s3://bucket/my runs/out")
    yield output("is an archive", f"zip://out::{folder}/x.zip")
    yield output("has a name too long", str(folder / ("x" * 300)))
    yield output("has a null byte", str(folder) + "/x\0y")
    for odd in (" ", "s3:/bucket/out", "S3:/bucket/out", "file:", f"file:{folder}/out", "s3://", "://out", "C:/out"):
        yield output(f"is {odd!r}", odd)
    yield output("holds a folder named spec.yaml", str(folder / "holds a folder"), None)
    yield output("holds a spec that is none", str(folder / "holds a list"), None)
    yield workshop.made(
        "paths", "cache_dir lies under a file", ("cache_dir",), True, alignment__cache_dir=str(folder / "file" / "x")
    )
