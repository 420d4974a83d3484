"""Checkpoints from anywhere: each becomes a Hugging Face folder of this node, made once for all its processes.

A remote folder is copied. A GGUF file is converted: vLLM has no reader of its own, and what transformers makes of one
can be neither saved nor sharded. An adapter is merged into its base. So everything behind this module knows one form.

A folder of the cache appears by one rename, under a lock, so that it is whole or not there. Its name holds a hash of
what it was made from, so that a changed checkpoint gets a new one; nothing here deletes the old one, which a run may
still be reading.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import fsspec

CACHE_DIR = "~/.cache/knowledge-fusion-engine/checkpoints"

#: Between a checkpoint and the adapter over it, where the two are named together.
_ADAPTER = " + adapter "

#: What filesystems call the things that change when a file does.
_MARKS = ("size", "mtime", "created", "ETag", "etag", "LastModified", "last_modified", "Last-Modified", "blob_id")

#: Files that hold weights, in the forms of several libraries.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def with_adapter(checkpoint: str, adapter: str) -> str:
    """The name, for ``local_checkpoint``, of a checkpoint with a LoRA adapter over it; empty: the checkpoint alone."""
    return checkpoint + _ADAPTER + adapter if adapter else checkpoint


def local_checkpoint(checkpoint: str, weights: bool = True, cache_dir: str = CACHE_DIR) -> str:
    """A folder or hub name that transformers and vLLM can load.

    Args:
        checkpoint: Hugging Face folder or hub name; fsspec URL of such a folder; path or URL of a ``.gguf`` file; or
            one of these ``with_adapter``. A ``file://`` URL is copied like any other, a path is used where it is.
        weights: whether the model is wanted, or only its configuration and tokenizer, which spares a node that runs no
            model most of the download. An adapter leaves both as they are in its base.
        cache_dir: local folder for all that has to be made.

    Returns:
        A local folder, or a hub name as it was given.

    Raises:
        OSError: something is not there, cannot be read, or came in another size than announced.
        ValueError: transformers does not know this GGUF's architecture, or the adapter does not fit the base.
    """
    base, _, adapter = checkpoint.partition(_ADAPTER)
    cache_dir = os.path.expanduser(cache_dir)
    folder = _base_folder(base, weights, cache_dir)
    if not adapter:
        return folder
    adapter_folder = _copied(adapter, weights, cache_dir) if "://" in adapter else os.path.expanduser(adapter)
    if not os.path.isfile(os.path.join(adapter_folder, "adapter_config.json")):
        raise FileNotFoundError(
            f"{adapter} has no adapter_config.json, so it is no adapter; give a folder that peft saved"
        )
    if not weights:
        return folder
    marks = [_identity(folder), _identity(adapter_folder)]
    return _made_once(cache_dir, adapter, marks, lambda part: _merge_adapter(folder, adapter_folder, part))


def _base_folder(base: str, weights: bool, cache_dir: str) -> str:
    is_gguf = base.endswith(".gguf")
    local = _copied(base, weights, cache_dir) if "://" in base else base
    if not is_gguf:
        return local
    file = os.path.join(local, os.path.basename(base)) if "://" in base else os.path.abspath(os.path.expanduser(base))
    _, files = _listed(file, weights)
    marks = [file, *_marks_of(files), weights]
    return _made_once(cache_dir, file, marks, lambda part: _convert_gguf(file, weights, part))


def _copied(url: str, weights: bool, cache_dir: str) -> str:
    """The folder with a copy of the files at ``url``, one GGUF file or all that a checkpoint's folder holds."""
    url = url.rstrip("/")
    filesystem, files = _listed(url, weights)
    return _made_once(cache_dir, url, [url, *_marks_of(files)], lambda part: _download(filesystem, files, url, part))


def _listed(url: str, weights: bool) -> tuple[Any, list[dict[str, Any]]]:
    """The filesystem of a path or URL, and what it says about each file there.

    Folders inside are left out (other libraries' forms of the same weights lie there), and so are all weights but
    safetensors, where there are some.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        if url.endswith(".gguf"):
            return filesystem, [filesystem.info(path)]
        found = [entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file"]
        files = [filesystem.info(name) for name in sorted(found)]
    except Exception as error:  # every filesystem has errors of its own, and all of them belong to this checkpoint
        raise OSError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    unwanted = () if weights else _WEIGHTS
    if weights and any(file["name"].endswith(".safetensors") for file in files):
        unwanted = _WEIGHTS[1:]
    files = [file for file in files if not file["name"].endswith(unwanted)]
    if not files:
        raise FileNotFoundError(f"{url} holds no files; give the URL of a Hugging Face folder or of a .gguf file")
    return filesystem, files


def _marks_of(files: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[file["name"], *(f"{mark}={file[mark]}" for mark in _MARKS if mark in file)] for file in files]


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
            shutil.rmtree(part, ignore_errors=True)  # what a process that was killed has left
            try:
                os.makedirs(part)
                make(part)
                os.rename(part, place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return place


def _download(filesystem: Any, files: Sequence[dict[str, Any]], url: str, folder: str) -> None:
    places = [os.path.join(folder, os.path.basename(file["name"])) for file in files]
    try:
        filesystem.get([file["name"] for file in files], places)
    except Exception as error:  # as above
        raise OSError(f"{url} cannot be copied: {type(error).__name__}: {error}") from error
    for file, place in zip(files, places, strict=True):
        size, came = file.get("size"), os.path.getsize(place) if os.path.exists(place) else 0
        if size is not None and size != came:
            raise OSError(f"{file['name']} has {size} bytes, and {came} came; start again")


def _convert_gguf(file: str, weights: bool, folder: str) -> None:
    """Weights in bfloat16, as most models were before they were quantised; configuration; tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": os.path.dirname(file), "gguf_file": os.path.basename(file)}
    try:
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        if not weights:
            AutoConfig.from_pretrained(**where, dtype=torch.bfloat16).save_pretrained(folder)
            return
        plain = GgufConfig(dequantize=True)  # a model that counts as quantised cannot be saved
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=plain)
        model.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # a wrong file can fail anywhere in there
        raise ValueError(f"{file} cannot be converted: {type(error).__name__}: {error}") from error


def _merge_adapter(base: str, adapter: str, folder: str) -> None:
    """The base's weights with the adapter's added in float32, in the base's own type; the base's tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        dtype = model.dtype
        with warnings.catch_warnings():
            # An adapter of another model's layers would be left out with no more than this warning.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model.to(torch.float32), adapter, torch_device="cpu")
        adapted.merge_and_unload(safe_merge=True).to(dtype).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # peft refuses in many ways
        raise ValueError(f"{adapter} cannot be merged into {base}: {type(error).__name__}: {error}") from error
