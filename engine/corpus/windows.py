"""Windows: the number of text tokens of a passage that a model can take at once."""

from __future__ import annotations

from dataclasses import replace

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import context_limit, load_configuration
from engine.text.tokenization import PassageTokenizer

#: Every passage may have BOS before it and EOS after it.
SPECIAL_TOKENS = 2
SMALLEST_WINDOW = 8


def scoring_window(checkpoint: Checkpoint, limit: int) -> int:
    """Text tokens of a passage that a model can score in one forward pass, at most ``limit`` with BOS and EOS.

    Raises:
        OSError, ValueError: the checkpoint cannot be loaded, or takes too few tokens.
    """
    return text_window(checkpoint, context_limit(load_configuration(checkpoint), limit, generated_tokens=0))


def text_window(checkpoint: Checkpoint, limit: int) -> int:
    """Text tokens of a passage under a limit that counts BOS and EOS.

    The tokenizer is tried on the way, without a chat template: a template that is missing is another fault.
    """
    PassageTokenizer.load(replace(checkpoint, chat_template=""))
    if limit - SPECIAL_TOKENS < SMALLEST_WINDOW:
        raise ValueError(f"{checkpoint} takes {limit} tokens; a passage needs {SMALLEST_WINDOW + SPECIAL_TOKENS}")
    return limit - SPECIAL_TOKENS
