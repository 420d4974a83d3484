"""Load a checkpoint on torch's meta device: every step of transformers but reading the weights.

It finds what the library would find minutes later or not at all: a configuration that no model can be made from, a
package that a quantised checkpoint needs, tensors that are missing or of other shapes, which would stay random.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import Fault, first_line

#: In the names of tensors of a layer: those that a model has too many of are a sign of another model's configuration.
_LAYER = re.compile(r"(^|\.)(layers|layer|h|blocks)\.\d+\.")


def loading_faults(where: str, folder: str) -> list[Fault]:
    """Everything that keeps transformers from loading a checkpoint's weights as they are.

    Args:
        where: dotted path of the spec's field.
        folder: a local folder whose files are whole (``inspection.folder_faults``).
    """
    try:
        return list(_tensor_faults(where, folder, _rehearsed(folder)))
    except ImportError as error:
        return [Fault(where, f"{folder} needs a package: {first_line(error)}", "install it, or take another form")]
    except pickle.UnpicklingError:  # torch's message advises to load it all the same
        reason = f"the weights in {folder} are a pickle of more than tensors, which could run any code"
        return [Fault(where, reason, "save the model's state_dict, or take its safetensors")]
    except Exception as error:  # a configuration can be wrong in as many ways as there are architectures
        reason = f"{folder} cannot be loaded by its config.json: {type(error).__name__}: {first_line(error)}"
        return [Fault(where, reason, "check that its files are whole, and that config.json belongs to these weights")]


def _rehearsed(folder: str) -> dict[str, Any]:
    """What transformers says of the tensors that it would load."""
    from transformers import AutoModelForCausalLM

    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, found = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' log and bars: what it would warn of is a fault here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _tensor_faults(where: str, folder: str, found: dict[str, Any]) -> Iterator[Fault]:
    remedy = "take the config.json and the weights of one model"
    if left_over := sorted(name for name in found["unexpected_keys"] if _LAYER.search(name)):
        reason = f"{len(left_over)} tensors in {folder} are not in config.json's model, such as {left_over[0]}"
        yield Fault(where, reason, remedy)
    if missing := sorted(found["missing_keys"]):
        reason = f"the weights in {folder} lack {len(missing)} tensors of config.json's model, such as {missing[0]}"
        yield Fault(where, reason, remedy)
    if mismatched := sorted(found["mismatched_keys"], key=str):
        name, stored, expected = mismatched[0]
        reason = (
            f"{len(mismatched)} tensors in {folder} have another shape than config.json's model, such as {name}: "
            f"{list(stored)}, not {list(expected)}"
        )
        yield Fault(where, reason, remedy)
