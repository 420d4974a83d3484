"""Checkpoints from anywhere: each becomes a Hugging Face folder of this node, made once for all its processes.

A remote folder is copied; a GGUF file is converted and an adapter merged (``engine.model_files.conversion``), so that
everything else knows one form.

A folder of the cache appears by one rename, under a lock, so that it is whole or not there. Its name holds a hash of
what it was made from, so that a changed checkpoint gets a new one; the old one stays, for a run may
still be reading. What a killed process has left half made goes when the next folder is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.conversion import convert_gguf, convert_gguf_tokenizer, merge_adapter
from engine.spec.sections import Bos

CACHE_DIR = "~/.cache/knowledge-fusion-engine/checkpoints"

#: One of these makes a folder a model or an adapter. Asked for before anything is copied: it may be a whole bucket.
_CONFIGURATIONS = ("config.json", "adapter_config.json")

#: What filesystems say about a file that changes when it does, written small and without ``-`` and ``_``.
_MARKS = {
    *("size", "etag", "generation", "md5hash", "blobid", "versionid"),
    *("mtime", "modified", "lastmodified", "modificationtime", "updated", "created", "creationtime"),
}

#: Files that hold weights. Of the forms that are read, in this order, the first that a folder has is enough.
_READ = (".safetensors", ".bin", ".pt")
_WEIGHTS = (*_READ, ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def local_checkpoint(checkpoint: Checkpoint, weights: bool = True, cache_dir: str = CACHE_DIR) -> str:
    """A folder or hub name that transformers and vLLM can load.

    A change is seen by what the filesystem says of each file (size, time, ETag); a server that says no more than sizes
    hides a change that keeps them.

    Args:
        checkpoint: its path is used where it is, a URL is copied, ``file://`` like any other; its chat template is not
            looked at.
        weights: whether the model is wanted, or only its configuration and tokenizer, which spares a node that runs no
            model most of the download (a GGUF file, which is one piece, comes whole). An adapter leaves both as they
            are in its base.
        cache_dir: local folder for all that has to be made.

    Returns:
        A local folder, or a hub name as it was given.

    Raises:
        OSError: something is not there, cannot be read or written, or changed or came short while it was copied.
        ValueError: transformers does not know this GGUF's architecture, tensors are missing, or the adapter does not
            fit the base.
    """
    adapter, cache_dir = checkpoint.adapter, os.path.expanduser(cache_dir)
    folder = _base_folder(checkpoint.path, weights, cache_dir)
    if not adapter:
        return folder
    adapter_folder = _copied(adapter, weights, cache_dir) if "://" in adapter else os.path.expanduser(adapter)
    if not os.path.isfile(os.path.join(adapter_folder, "adapter_config.json")):
        raise FileNotFoundError(
            f"{adapter} has no adapter_config.json, so it is no adapter; give a folder that peft saved"
        )
    if not weights:
        return folder
    marks = [_identity(folder), _identity(adapter_folder), version("transformers"), version("peft")]
    return _made_once(cache_dir, adapter, marks, lambda part: merge_adapter(folder, adapter_folder, part))


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The Hugging Face tokenizer of a checkpoint, with the checkpoint's chat template and its choice of BOS.

    A ``tokenizer.json`` is read as it stands. transformers builds some tokenizers from the class that the configuration
    names, and where the file does otherwise, that would be another tokenizer than the model's.

    Raises:
        OSError, ValueError: there is no such checkpoint, no tokenizer in it, or no such template.
    """
    from tokenizers import Tokenizer

    folder = local_checkpoint(checkpoint, weights=False)
    file = _file_in(folder, "tokenizer.json")
    tokenizer = _tokenizer_class(folder, has_file=file is not None).from_pretrained(folder)
    if file is not None and hasattr(tokenizer, "backend_tokenizer"):
        tokenizer = _as_in_file(tokenizer, folder, Tokenizer.from_file(file))
        _set_bos(tokenizer, _settings(folder), checkpoint.bos)
    if checkpoint.chat_template:
        with fsspec.open(checkpoint.chat_template, "r", encoding="utf8") as file:
            tokenizer.chat_template = file.read()
    return tokenizer


#: Names that tokenizer_config.json has for the class that reads tokenizer.json and adds nothing of its own.
_PLAIN_CLASSES = "TokenizersBackend", "PreTrainedTokenizerFast"


def _tokenizer_class(folder: str, has_file: bool) -> Any:
    """The class that reads a tokenizer. To look it up imports torch, which takes seconds, so the plain one is named."""
    import transformers

    is_plain = has_file and _settings(folder).get("tokenizer_class") in _PLAIN_CLASSES
    return transformers.PreTrainedTokenizerFast if is_plain else transformers.AutoTokenizer


def _settings(folder: str) -> Mapping[str, Any]:
    return read_json(folder, "tokenizer_config.json")


def read_json(folder: str, name: str) -> Mapping[str, Any]:
    """The object in a JSON file of a local checkpoint or one of the hub; empty if there is none."""
    file = _file_in(folder, name)
    if file is None:
        return {}
    with open(file, encoding="utf8") as text:
        return json.load(text)


def _file_in(folder: str, name: str) -> str | None:
    from transformers.utils import cached_file

    return cached_file(folder, name, _raise_exceptions_for_missing_entries=False)


#: Parts of tokenizer.json that decide how text becomes tokens, and tokens text.
_PIPELINE = ("normalizer", "pre_tokenizer", "model", "decoder")


def _as_in_file(tokenizer: Any, folder: str, file: Any) -> Any:
    """A tokenizer if it does as its ``tokenizer.json``; else, with a warning, one that does, with the same roles.

    Args:
        file: the ``tokenizers.Tokenizer`` of the file.
    """
    from transformers import PreTrainedTokenizerFast

    written, read = (json.loads(found.to_str()) for found in (file, tokenizer.backend_tokenizer))
    differences = [part for part in _PIPELINE if written[part] != read[part]]
    if not differences:
        return tokenizer
    warnings.warn(
        f"{folder}: {type(tokenizer).__name__} would change the {' and the '.join(differences)} of its tokenizer.json; "
        f"the file is used as it stands",
        stacklevel=2,
    )
    named = {role: token for role, token in tokenizer.special_tokens_map.items() if role.endswith("_token")}
    roles = {role: token for role, token in named.items() if file.token_to_id(str(token)) is not None}
    return PreTrainedTokenizerFast.from_pretrained(folder, **roles)


def _set_bos(tokenizer: Any, settings: Mapping[str, Any], bos: Bos) -> None:
    """Put BOS before a text, or not, as the spec says, or else the tokenizer's configuration.

    transformers leaves ``add_bos_token`` aside where there is a ``tokenizer.json``, and DeepSeek V3 says it only there.
    """
    configured = {"always": True, "never": False}.get(bos, settings.get("add_bos_token"))
    if tokenizer.bos_token_id is None or not isinstance(configured, bool):
        return
    if configured != (tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]):
        tokenizer.add_bos_token = configured


def _base_folder(base: str, weights: bool, cache_dir: str) -> str:
    is_gguf = base.endswith(".gguf")
    local = _copied(base, weights, cache_dir) if "://" in base else base
    if not is_gguf:
        return local
    file = os.path.join(local, os.path.basename(base)) if "://" in base else os.path.abspath(os.path.expanduser(base))
    marks = [file, *_marks_of(_listed(file, weights)[1]), version("transformers")]
    folder = _made_once(cache_dir, file, marks, lambda part: convert_gguf_tokenizer(file, part))
    if not weights:
        return folder
    return _made_once(cache_dir, file, [*marks, "weights"], lambda part: convert_gguf(file, folder, part))


def _copied(url: str, weights: bool, cache_dir: str) -> str:
    """The folder with a copy of the files at ``url``, one GGUF file or all that a checkpoint's folder holds."""
    url = url.rstrip("/")
    _, files = _listed(url, weights)
    marks = [url, *_marks_of(files)]
    return _made_once(cache_dir, url, marks, lambda part: _download(url, weights, part))


def _listed(url: str, weights: bool) -> tuple[Any, list[dict[str, Any]]]:
    """The filesystem of a path or URL, and what it says about each file there that is wanted.

    Folders inside are left out: other libraries' forms of the same weights lie there.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        if url.endswith(".gguf"):
            return filesystem, [filesystem.info(path)]
        found = sorted(entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file")
        _check_configuration(url, found)
        return filesystem, [filesystem.info(name) for name in _wanted(found, weights)]
    except Exception as error:  # every filesystem has errors of its own, and all of them belong to this checkpoint
        raise OSError(f"{url} cannot be read: {type(error).__name__}: {error}") from error


def _check_configuration(url: str, names: Sequence[str]) -> None:
    if not any(os.path.basename(name) in _CONFIGURATIONS for name in names):
        files = [os.path.basename(name) for name in names if name.endswith(".gguf")]
        choice = f"one of its .gguf files: {', '.join(files)}" if files else "a Hugging Face folder or a .gguf file"
        raise FileNotFoundError(f"there is no config.json in it; give the URL of {choice}")


def _wanted(names: Sequence[str], weights: bool) -> list[str]:
    """The files of a checkpoint's folder without those that hold weights, or with one form of these."""
    forms = [form for form in _READ if any(name.endswith(form) for name in names)] if weights else []
    return [name for name in names if not name.endswith(_WEIGHTS) or name.endswith(tuple(forms[:1]))]


def _marks_of(files: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For each file its name and what changes when it does."""
    return [
        [file["name"], *(f"{key}={file[key]}" for key in sorted(file) if re.sub("[-_]", "", key).lower() in _MARKS)]
        for file in files
    ]


def _identity(folder: str) -> list:
    """What changes when a local folder does; of a hub name, the path of its configuration, which holds the commit."""
    if os.path.isdir(folder):
        return _marks_of(_listed(os.path.abspath(folder), weights=True)[1])
    from transformers.utils import cached_file

    return [cached_file(folder, "config.json")]


def _made_once(cache_dir: str, origin: str, marks: Sequence[Any], make: Callable[[str], None]) -> str:
    """The folder of the cache for ``marks``; if it is not there, ``make`` fills it, in one process of the node."""
    name = re.sub(r"[^\w.-]", "_", os.path.basename(origin.rstrip("/")).removesuffix(".gguf"))[:64]
    key = hashlib.sha256(json.dumps(marks).encode("utf8")).hexdigest()[:16]
    place = os.path.join(cache_dir, f"{name}-{key}")
    if os.path.isdir(place):
        return place
    os.makedirs(cache_dir, exist_ok=True)
    with open(place + ".lock", "a") as lock:  # the kernel gives it back when its holder dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(place):
            part = place + ".part"
            shutil.rmtree(part, ignore_errors=True)
            _sweep(cache_dir)
            try:
                os.makedirs(part)
                make(part)
                os.rename(part, place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return place


def _sweep(cache_dir: str) -> None:
    """Delete the half-made folders that no process is at work on: those that made them were killed."""
    for part in Path(cache_dir).glob("*.part"):
        with open(part.with_suffix(".lock"), "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(part, ignore_errors=True)


def _download(url: str, weights: bool, folder: str) -> None:
    filesystem, files = _listed(url, weights)
    places = [os.path.join(folder, os.path.basename(file["name"])) for file in files]
    try:
        filesystem.get([file["name"] for file in files], places)
    except Exception as error:  # as above
        raise OSError(f"{url} cannot be copied: {type(error).__name__}: {error}") from error
    for file, place in zip(files, places, strict=True):
        size, came = file.get("size"), os.path.getsize(place) if os.path.exists(place) else 0
        if size is not None and size != came:
            raise OSError(f"{file['name']} has {size} bytes, and {came} came; start again")
    if _marks_of(_listed(url, weights)[1]) != _marks_of(files):
        raise OSError(f"{url} changed while it was copied; start again when it is complete")
