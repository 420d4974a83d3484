"""Checks of a model before a run starts: its files are whole, it loads, its tokenizer is its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from engine.errors import Fault, FusionError, first_line
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration, named_roles
from engine.model_files.inspection import (
    CHECKPOINT_REMEDY,
    TOKENIZER_REMEDY,
    checkpoint_faults,
    field_of,
    quantisation,
    quantisation_faults,
)
from engine.model_files.rehearsal import loading_faults
from engine.text.tokenization import NO_ROLE, PassageTokenizer

Result = TypeVar("Result")

#: Errors whose messages are written for a person.
_WORDED = (OSError, ValueError, ImportError, FusionError)


def model_faults(where: str, checkpoint: Checkpoint) -> list[Fault]:
    """Everything wrong with the files, the configuration and the tokenizer of a model.

    Args:
        where: dotted path of the spec's section, or of its field if that is the checkpoint's path.
    """
    faults = checkpoint_faults(where, checkpoint)
    if faults:
        return faults
    field = field_of(where)
    plain = replace(checkpoint, adapter="", chat_template="")  # a template that is missing is another fault
    rows = collect(faults, field, "configuration", vocabulary_rows, plain)
    if rows is None:
        return faults
    if checkpoint.adapter:
        collect(faults, f"{where}.adapter", "adapter", load_configuration, checkpoint, "give a folder that peft saved")
    tokenizer = collect(faults, field, "tokenizer", PassageTokenizer.load, plain)
    if tokenizer is not None:
        faults += _ids_without_row(field, tokenizer, rows)
        faults += _lost_roles(field, tokenizer, named_roles(plain))
    return faults


def weight_faults(where: str, checkpoint: Checkpoint, backend: str = "transformers") -> list[Fault]:
    """Everything that keeps the weights of a sound model from being loaded as they are; imports torch, unlike the rest.

    Args:
        where: as in ``model_faults``.
        backend: of a source. vLLM has its own code for quantised weights, which transformers may lack.
    """
    folder = os.path.expanduser(checkpoint.path)
    if not os.path.isdir(folder):
        return []
    faults = quantisation_faults(where, checkpoint, backend)
    if faults or (backend == "vllm" and quantisation(folder)):
        return faults
    return loading_faults(field_of(where), folder)


def vocabulary_rows(checkpoint: Checkpoint) -> int:
    """Rows of the embedding, by the configuration."""
    return int(load_configuration(checkpoint).get_text_config().vocab_size)


def _ids_without_row(where: str, tokenizer: PassageTokenizer, rows: int) -> list[Fault]:
    """A fault if a text, its BOS or its EOS can have ids that the model's embedding has no row for."""
    texts = [token for token, data in enumerate(tokenizer.token_bytes) if data is not None]
    beyond = sorted(token for token in {*texts, tokenizer.bos_id, tokenizer.eos_id} if token >= rows)
    if not beyond:
        return []
    reason = f"the tokenizer of {tokenizer.name} has {len(beyond)} ids from {beyond[0]} on, the embedding {rows:,} rows"
    return [Fault(where, reason, TOKENIZER_REMEDY)]


def _lost_roles(where: str, tokenizer: PassageTokenizer, named: Mapping[str, set[int]]) -> list[Fault]:
    """A fault if a tokenizer has no EOS, and its model has: files are missing that say so.

    transformers takes the roles from tokenizer_config.json, else from special_tokens_map.json, and never from the ids
    in config.json, which may also name a BOS that the tokenizer does not write (Qwen).
    """
    special = {int(token["id"]): token["content"] for token in tokenizer.special_tokens}
    ends = sorted(named["eos_token_id"] & special.keys())
    if tokenizer.eos_id != NO_ROLE or not ends:
        return []
    reason = f"the tokenizer of {tokenizer.name} has no EOS, which config.json names by the id {ends[0]}"
    remedy = "fetch its tokenizer_config.json or special_tokens_map.json, or write one with eos_token and bos_token "
    return [Fault(where, reason, f"{remedy}(eos_token is {special[ends[0]]!r})")]


def collect(
    faults: list[Fault],
    where: str,
    part: str,
    read: Callable[[Checkpoint], Result],
    checkpoint: Checkpoint,
    remedy: str = CHECKPOINT_REMEDY,
) -> Result | None:
    """``read(checkpoint)``, or None and a fault that names the part if the error's message does not."""
    try:
        return read(checkpoint)
    except _WORDED as error:  # a protocol's package may not be installed
        reason = first_line(error)
        if checkpoint.path not in reason:
            reason = f"the {part} of {checkpoint} cannot be read: {reason}"
    except Exception as error:  # a damaged file can end a library anywhere
        reason = f"the {part} of {checkpoint} cannot be read: {type(error).__name__}: {first_line(error)}"
    faults.append(Fault(where, reason, remedy))
    return None
