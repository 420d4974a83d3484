"""Other forms of a checkpoint made into Hugging Face folders: GGUF files converted, LoRA adapters merged.

vLLM has no reader of GGUF files, and what transformers makes of one can be neither saved nor sharded. Both of these
libraries and peft go on with a warning where something does not fit; here it is refused.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.model_files.saving import save_model

#: Largest difference between logits before and after a merge, as a share of the largest logit; both are in float32.
AGREEMENT = 1e-3

#: Tokens that a merge is tried on.
TRIED_TOKENS = 16


def convert_gguf_tokenizer(file: str, folder: str) -> None:
    """Write the configuration and the tokenizer of a GGUF file, with its chat template, and BOS as llama.cpp does it.

    Raises:
        OSError: the file cannot be read, or ``folder`` cannot be written.
        ValueError: transformers does not know this architecture or tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    with _said_of(f"{file} cannot be converted"):
        AutoTokenizer.from_pretrained(**_in_transformers(file), add_bos_token=_adds_bos(file)).save_pretrained(folder)
        AutoConfig.from_pretrained(**_in_transformers(file), dtype=torch.bfloat16).save_pretrained(folder)


def convert_gguf(file: str, tokenizer_folder: str, folder: str) -> None:
    """Write all of a GGUF file, its weights in bfloat16, as most models were before they were quantised.

    Args:
        tokenizer_folder: what ``convert_gguf_tokenizer`` has made of it.

    Raises:
        OSError, ValueError: as there; or the file lacks tensors of its architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with _said_of(f"{file} cannot be converted"):
        shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
        plain = GgufConfig(dequantize=True)  # a model that counts as quantised cannot be saved
        model, found = AutoModelForCausalLM.from_pretrained(
            **_in_transformers(file), dtype=torch.bfloat16, quantization_config=plain, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(
                f"{len(missing)} tensors are missing, such as {missing[0]}; join a file that comes in parts first "
                f"(llama-gguf-split --merge)"
            )
        model.save_pretrained(folder)


def merge_adapter(base: str, adapter: str, folder: str) -> None:
    """Write the base's weights with the adapter's added in float32, in the base's own type; the base's tokenizer.

    Args:
        base: folder or hub name. adapter: a folder that peft saved.

    Raises:
        OSError: something cannot be read or written.
        ValueError: the adapter is one of other layers or widths, or of a kind that cannot be merged.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _said_of(f"{adapter} cannot be merged into {base}"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        dtype = model.dtype
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            adapted = PeftModel.from_pretrained(model.to(torch.float32), adapter, torch_device="cpu").eval()
        _check_all_layers(adapted.load_adapter(adapter, adapted.active_adapter, torch_device="cpu"))
        expected = _logits(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
        apart = float((_logits(merged) - expected).abs().max() / expected.abs().max())
        if not apart <= AGREEMENT:
            raise ValueError(
                f"merged, it says something else (logits differ by {apart:.1%}), as where it changes an embedding "
                f"that the base shares with its head; untie these first, or leave them out of the adapter"
            )
        save_model(merged.to(dtype), folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _in_transformers(file: str) -> dict[str, str]:
    return {"pretrained_model_name_or_path": os.path.dirname(file), "gguf_file": os.path.basename(file)}


def _adds_bos(file: str) -> bool:
    """Whether BOS precedes a text, which transformers does not read from a GGUF file; llama.cpp's defaults."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    said = fields.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said.contents())
    model, kind = (
        fields[name].contents() if name in fields else "" for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
    )
    return model == "llama" or kind == "llama-bpe"  # SentencePiece's kind, and Llama 3


def _check_all_layers(loaded: Any) -> None:
    """Refuse an adapter that has layers that the model has not, or the other way round: peft leaves these as they are.

    Args:
        loaded: what peft says of its loading.
    """
    for names, fault in ((loaded.missing_keys, "lacks"), (loaded.unexpected_keys, "has, and the base has not")):
        if names:
            raise ValueError(f"it {fault}, {len(names)} tensors such as {names[0]}; it is another model's")


def _logits(model: Any) -> Any:
    """[1, TRIED_TOKENS, V], of some tokens."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.arange(TRIED_TOKENS)[None] % model.config.get_text_config().vocab_size).logits


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Let any error say what it happened to: libraries refuse in many ways, and most of them in passing."""
    try:
        yield
    except Exception as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{what}: {type(error).__name__}: {error}") from error
