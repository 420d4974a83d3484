"""Read the files of a local checkpoint before a library loads them.

A download that stopped, a Git LFS pointer in the place of weights, a tokenizer of another model: the libraries report
these late, each in its own way, or go on with random weights. Nothing here needs torch or transformers.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from engine.errors import Fault, first_line
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.gguf_header import read_gguf_header

#: The first line of the file that Git leaves in the place of a large one that was not fetched.
LFS_BEGINNING = b"version https://git-lfs.github.com/spec/"

#: Longest file that may be such a pointer.
LFS_BYTES = 1024

GGUF_BEGINNING = b"GGUF"

#: Files of a checkpoint that must hold a JSON object where they are there.
_OBJECTS = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)

#: Forms of weights that transformers reads, in its order: each is one file, or several with an index.
_FORMS = ("model.safetensors", "pytorch_model.bin")

#: Names of parts of weights, which need an index.
_PART = re.compile(r".*-\d+-of-\d+\.(safetensors|bin)")

#: What a file begins with that torch has saved without an archive, as it did before 2020, after a byte or four.
_PICKLE_MARK = bytes.fromhex("6cfc9c46f9206aa85019")

#: Flags of tokenizer_config.json. A text such as "false" is true to Python, and ``load_tokenizer`` knows neither.
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space")

#: Ends of the names that architectures give their input embedding.
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)

CHECKPOINT_REMEDY = "give a Hugging Face folder, its URL, a hub name, or a .gguf file"

#: Packages that transformers needs to read a quantisation, as each module is imported; vLLM brings its own.
_PACKAGES = {
    "aqlm": ("aqlm",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "hqq": ("hqq",),
    "quanto": ("optimum",),
    "torchao": ("torchao",),
}

#: Ways to quantise that a library reads, by the name in config.json; transformers goes on as if any other were none.
QUANTISATIONS = {
    "transformers": (
        *("aqlm", "auto-round", "awq", "bitnet", "bitsandbytes", "compressed-tensors", "eetq", "fbgemm_fp8"),
        *("fouroversix", "fp8", "fp_quant", "gemma", "gguf", "gptq", "higgs", "hqq", "metal", "mxfp4", "mxfp8"),
        *("nvfp4", "quanto", "quark", "sinq", "spqr", "torchao", "vptq"),
    ),
    "vllm": (
        *("auto-round", "auto_awq", "auto_gptq", "awq", "awq_marlin", "compressed-tensors"),
        *("deepseek_v4_fp8", "experts_int8", "fbgemm_fp8", "fp8", "fp_quant", "gpt_oss_mxfp4", "gptq", "gptq_marlin"),
        *("humming", "inc", "modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8", "moe_wna16"),
        *("mxfp4", "mxfp8", "quark", "torchao"),
    ),
}

TOKENIZER_REMEDY = "take the model's own tokenizer, or resize its embedding (resize_token_embeddings)"

_FETCH = "fetch it again"


def is_lfs_pointer(path: str) -> bool:
    """Whether a local file is a Git LFS pointer and not the file that it stands for."""
    if os.path.getsize(path) > LFS_BYTES:
        return False
    with open(path, "rb") as file:
        return file.read(len(LFS_BEGINNING)) == LFS_BEGINNING


def checkpoint_faults(where: str, checkpoint: Checkpoint, may_be_elsewhere: bool = False) -> list[Fault]:
    """Everything that is wrong with a checkpoint's files on this machine; a URL or a name of the hub has none here.

    Args:
        where: dotted path of the spec's section, or of its field if that is the checkpoint's path.
        may_be_elsewhere: pass over paths that lead to nothing on this machine.
    """
    field = field_of(where)
    path, adapter = os.path.expanduser(checkpoint.path), os.path.expanduser(checkpoint.adapter)
    faults: list[Fault] = []
    if os.path.isdir(path):
        faults += folder_faults(field, path)
    elif os.path.isfile(path):
        faults += _file_faults(field, path)
    elif os.path.isabs(path) and not may_be_elsewhere:
        faults.append(Fault(field, f"there is no folder {path}", CHECKPOINT_REMEDY))
    if os.path.isdir(adapter):
        faults += adapter_faults(f"{where}.adapter", adapter)
    elif adapter and "://" not in adapter and not may_be_elsewhere:
        faults.append(Fault(f"{where}.adapter", f"there is no folder {adapter}", "give a folder that peft saved"))
    return faults


def field_of(where: str) -> str:
    """The dotted path of a checkpoint's path, from that of its section; of an evaluation's model it is the same."""
    return where if where.startswith("evaluation") else f"{where}.checkpoint"


def quantisation(folder: str) -> str:
    """The method by which a sound folder's weights are quantised; empty: they are not, ``unknown``: it is not named."""
    settings = _value_of(os.path.join(folder, "config.json"), "quantization_config")
    if settings is None:
        return ""
    if not isinstance(settings, Mapping):
        return "unknown"
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):  # without a method, as bitsandbytes once wrote it
        return "bitsandbytes"
    return str(settings.get("quant_method") or settings.get("quant_algo") or "unknown")


def leaves_eos_open(folder: str) -> bool:
    """Whether a sound folder's model has an EOS, by its id, and no file says which token that is to the tokenizer.

    transformers may then know one by itself, as for GPT-2, or go on without.
    """

    def names(role: str, *files: str) -> bool:
        return any(_value_of(os.path.join(folder, file), role) not in (None, []) for file in files)

    is_named = names("eos_token", "tokenizer_config.json", "special_tokens_map.json")
    return not is_named and names("eos_token_id", "config.json", "generation_config.json")


def _value_of(path: str, key: str) -> Any:
    """What a sound JSON object has for a key; None without the file."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf8") as file:
        return json.load(file).get(key)


def quantisation_faults(
    where: str, checkpoint: Checkpoint, backend: str, may_be_elsewhere: bool = False
) -> list[Fault]:
    """A fault if a checkpoint is quantised in a way that its backend does not read, or by a package that is missing.

    Args:
        where: as in ``checkpoint_faults``.
        checkpoint: without faults of its files.
        backend: the library that reads the weights.
        may_be_elsewhere: pass over packages: they are needed on the machine that runs the model.
    """
    folder = os.path.expanduser(checkpoint.path)
    method = quantisation(folder) if os.path.isdir(folder) else ""
    if not method:
        return []
    if method not in QUANTISATIONS[backend]:
        reason = f"quantization_config in {folder}/config.json has the quant_method {method!r}, which {backend} does "
        known = ", ".join(QUANTISATIONS[backend])
        return [Fault(field_of(where), reason + "not read", f"take another form of the model; {backend} reads {known}")]
    needed = _PACKAGES.get(method, ()) if backend == "transformers" and not may_be_elsewhere else ()
    missing = [package for package in needed if find_spec(package) is None]
    if not missing:
        return []
    reason = (
        f"{folder} is quantised by {method}, which {backend} reads by a package that is not installed: {missing[0]}"
    )
    return [Fault(field_of(where), reason, "install it, or take another form of the model")]


def folder_faults(where: str, folder: str) -> list[Fault]:
    """Everything that is wrong with the files of a checkpoint's folder.

    Args:
        where: dotted path of the spec's field.
        folder: a local folder that a spec names as a checkpoint.
    """
    files = _files_of(folder)
    if "config.json" not in files:
        return [_no_configuration(where, folder, files)]
    pointers = [name for name in files if is_lfs_pointer(os.path.join(folder, name))]
    if pointers:
        return [_pointers(where, folder, pointers)]
    values: dict[str, Any] = {}
    faults = [fault for name in _OBJECTS if name in files for fault in _read_object(where, folder, name, values)]
    shapes: dict[str, tuple[int, ...]] = {}
    faults += _weight_faults(where, folder, files, "quantization_config" in values.get("config.json", {}), shapes)
    faults += _flag_faults(where, folder, values.get("tokenizer_config.json", {}))
    rows = _embedding_rows(values.get("config.json", {}), shapes)
    if "tokenizer.json" in values:
        faults += _tokenizer_faults(where, os.path.join(folder, "tokenizer.json"))
    if rows and "tokenizer.json" in values:
        roles = _roles(values.get("tokenizer_config.json", {}))
        faults += _ids_beyond(where, folder, values["tokenizer.json"], roles, rows)
    return faults


def adapter_faults(where: str, folder: str) -> list[Fault]:
    """Everything that is wrong with the files of a LoRA adapter's local folder."""
    files = _files_of(folder)
    if "adapter_config.json" not in files:
        reason = f"{folder} has no adapter_config.json, so it is not an adapter"
        return [Fault(where, reason, "give a folder that peft saved")]
    pointers = [name for name in files if is_lfs_pointer(os.path.join(folder, name))]
    if pointers:
        return [_pointers(where, folder, pointers)]
    faults = list(_read_object(where, folder, "adapter_config.json", {}))
    if not {"adapter_model.safetensors", "adapter_model.bin"} & set(files):
        faults.append(Fault(where, f"{folder} has no weights (adapter_model.safetensors)", _FETCH))
    if "adapter_model.safetensors" in files:
        faults += _header_faults(where, os.path.join(folder, "adapter_model.safetensors"), {})
    return faults


def _file_faults(where: str, path: str) -> list[Fault]:
    """Faults of a checkpoint that is one file, which only a GGUF file can be."""
    if is_lfs_pointer(path):
        return [_pointers(where, os.path.dirname(path), [os.path.basename(path)])]
    with open(path, "rb") as file:
        is_gguf = file.read(len(GGUF_BEGINNING)) == GGUF_BEGINNING and path.endswith(".gguf")
    if not is_gguf:
        return [Fault(where, f"{path} is not a GGUF file", "give a Hugging Face folder or a .gguf file")]
    return list(_gguf_faults(where, path))


def _gguf_faults(where: str, path: str) -> Iterator[Fault]:
    """A fault if a GGUF file is not whole, or is one part of several."""
    size = os.path.getsize(path)
    try:
        header = read_gguf_header(path)
    except (OSError, ValueError) as error:
        yield Fault(where, f"{path} ({size:,} bytes) is cut short or damaged: {error}", _FETCH)
        return
    if header.parts > 1:
        yield Fault(where, f"{path} is one of {header.parts} parts", "join them (llama-gguf-split --merge)")
    elif header.num_bytes > size:
        reason = f"{path} ({size:,} bytes) is cut short or damaged: its tensors need {header.num_bytes:,}"
        yield Fault(where, reason, _FETCH)


def _files_of(folder: str) -> list[str]:
    """Names of the folder's files; a link to nothing is not one."""
    return sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))


def _no_configuration(where: str, folder: str, files: list[str]) -> Fault:
    converted = [name for name in files if name.endswith(".gguf")]
    if converted:
        return Fault(where, f"{folder} has no config.json", f"give the path of {converted[0]} in it")
    if "adapter_config.json" in files:
        return Fault(
            where, f"{folder} is a LoRA adapter, not a model", "name it as adapter, and its base as checkpoint"
        )
    return Fault(where, f"{folder} has no config.json", "give a Hugging Face folder or a .gguf file")


def _pointers(where: str, folder: str, names: list[str]) -> Fault:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    reason = f"{names[0]}{more} in {folder}: Git LFS pointers stand in the place of the files"
    return Fault(where, reason, "fetch them with `git lfs pull`")


def _read_object(where: str, folder: str, name: str, values: dict[str, Any]) -> Iterator[Fault]:
    """Read a JSON object into ``values``, or say why it cannot be."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        yield Fault(where, f"{path} is not JSON: {error or type(error).__name__}", _FETCH)
        return
    if not isinstance(value, dict):
        yield Fault(where, f"{path} holds {type(value).__name__}, not a JSON object", _FETCH)
        return
    values[name] = value


def _tokenizer_faults(where: str, path: str) -> Iterator[Fault]:
    """A fault if a file is JSON, but no tokenizer."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing else
        yield Fault(where, f"{path} is not a tokenizer: {first_line(error)}", _FETCH)


def _flag_faults(where: str, folder: str, settings: Mapping[str, Any]) -> Iterator[Fault]:
    """A fault for every flag of tokenizer_config.json that is neither true nor false."""
    for flag in _FLAGS:
        if not isinstance(value := settings.get(flag), bool | None):
            reason = f"{flag} in {os.path.join(folder, 'tokenizer_config.json')} is {value!r}"
            yield Fault(where, reason, "write true or false, without quotes")


def _weight_faults(
    where: str, folder: str, files: list[str], is_quantised: bool, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Fault]:
    """Faults of the weights; the tensors of safetensors files go into ``shapes``.

    Args:
        is_quantised: vLLM reads such weights under any name.
    """
    for name in _FORMS:
        if name in files:
            yield from _file_of_weights_faults(where, os.path.join(folder, name), shapes)
            return
        if f"{name}.index.json" in files:
            yield from _part_faults(where, folder, files, f"{name}.index.json", shapes)
            return
    if not (is_quantised and any(name.endswith(".safetensors") for name in files)):
        yield _no_weights(where, folder, files)


def _no_weights(where: str, folder: str, files: list[str]) -> Fault:
    """The fault of a folder without weights that transformers would read; names what there is instead."""
    reason = f"{folder} has no weights ({_FORMS[0]}, or its parts and their index)"
    parts = [name for name in files if _PART.fullmatch(name)]
    converted = [name for name in files if name.endswith(".gguf")]
    if parts:
        index = re.sub(r"-\d+-of-\d+", "", parts[0]) + ".index.json"
        return Fault(where, f"{folder} has parts of weights, such as {parts[0]}, and no {index}", "fetch the index")
    if converted:
        return Fault(where, reason, f"give the path of {converted[0]} in it")
    others = [name for name in files if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
    return Fault(where, reason + (f", but {others[0]}" if others else ""), _FETCH)


def _part_faults(
    where: str, folder: str, files: list[str], index_name: str, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Fault]:
    """Faults of weights in several files: the index, files that are missing, tensors that no file has."""
    values: dict[str, Any] = {}
    yield from _read_object(where, folder, index_name, values)
    if index_name not in values:
        return
    index, places = os.path.join(folder, index_name), values[index_name].get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        yield Fault(where, f"{index} has no weight_map from tensors to files", _FETCH)
        return
    parts = sorted(set(places.values()))
    missing = [name for name in parts if name not in files]
    if missing:
        reason = f"{len(missing)} of {len(parts)} files that {index} names are missing, such as {missing[0]}"
        yield Fault(where, reason, "fetch them")
        return
    if not isinstance(values[index_name].get("metadata"), Mapping):
        yield Fault(where, f"{index} has no metadata, an object that transformers asks for", _FETCH)
        return
    for name in parts:
        yield from _file_of_weights_faults(where, os.path.join(folder, name), shapes)


def _file_of_weights_faults(where: str, path: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[Fault]:
    """Faults of one file of weights, in either form."""
    return _header_faults(where, path, shapes) if path.endswith(".safetensors") else _pickle_faults(where, path)


def _pickle_faults(where: str, path: str) -> Iterator[Fault]:
    """A fault if a file is not whole, or not one that torch has saved; only what describes its tensors is read."""
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            description = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            damaged = not description or archive.read(description[0]) == b""
    except (zipfile.BadZipFile, EOFError, zlib.error):
        with open(path, "rb") as file:
            damaged = _PICKLE_MARK not in file.read(16)
    if damaged:
        yield Fault(where, f"{path} ({size:,} bytes) is cut short or damaged: torch has not saved it so", _FETCH)


def _header_faults(where: str, path: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[Fault]:
    """Read the header of a safetensors file, which says what its bytes are, into ``shapes``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        yield Fault(where, f"{path} ({os.path.getsize(path):,} bytes) is cut short or damaged: {reason}", _FETCH)


def _embedding_rows(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Rows of the input embedding, as its tensor has them, else as the configuration says; 0: neither does."""
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(_EMBEDDINGS) and len(shape) == 2]
    if rows:
        return max(rows)
    text_config = config.get("text_config")
    said = (text_config if isinstance(text_config, Mapping) else config).get("vocab_size")
    return said if isinstance(said, int) else 0


def _roles(config: Mapping[str, Any]) -> set[str]:
    """The texts of the tokens that begin and end a text."""
    found = [config.get(role) for role in ("bos_token", "eos_token")]
    return {str(token.get("content")) if isinstance(token, Mapping) else str(token) for token in found if token}


def _ids_beyond(where: str, folder: str, tokenizer: Mapping[str, Any], roles: set[str], rows: int) -> Iterator[Fault]:
    """A fault if a text can have ids that the embedding has no row for.

    Special tokens are left out: as text they are taken apart. Gemma 3's text models have one for images, and no row.
    """
    ids = _ids_of_texts(tokenizer, roles)
    beyond = {piece: token for piece, token in ids.items() if token >= rows}
    if beyond:
        piece = min(beyond, key=lambda text: beyond[text])
        reason = (
            f"the tokenizer of {folder} has {len(beyond)} ids beyond the {rows:,} rows of the embedding, such as "
            f"{beyond[piece]} for {piece!r}"
        )
        yield Fault(where, reason, TOKENIZER_REMEDY)


def _ids_of_texts(tokenizer: Mapping[str, Any], roles: set[str]) -> dict[str, int]:
    """Token to id, without special tokens that have no role; what is not of this form is the library's to refuse."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, Mapping):
        ids = {piece: token for piece, token in vocabulary.items() if isinstance(token, int)}
    elif isinstance(vocabulary, list):  # Unigram: pairs of a piece and its score, the id is the place
        ids = {str(entry[0]): place for place, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if not isinstance(token, Mapping) or not isinstance(token.get("id"), int):
            continue
        content = str(token.get("content"))
        if token.get("special") and content not in roles:
            ids.pop(content, None)
        else:
            ids[content] = token["id"]
    return ids
