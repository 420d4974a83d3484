"""CPU time of the text layer: byte ends by characters, and conversations in a chat template.

    python -m tests.benchmarks.texts [CONVERSATIONS]

``character_path`` is against the slow twin, on texts of a WordPiece tokenizer, which drops spaces. ``chat_template`` is
the templates' share of 100,000 conversations with Qwen's 151,643 tokens, from a sample of CONVERSATIONS (5,000), the
making of the template included: all but the time inside the library of tokenizers, which any form of the text would
take. It is against a template made for every conversation, and beside the whole, tokenization included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.text.character_offsets import end_bytes
from engine.text.chat import ChatTemplate
from engine.text.tokenization import PassageTokenizer
from tests.benchmarks.figures import best_seconds, say
from tests.support import real_tokenizers, slow_character_offsets
from tests.support.paths import ROOT

#: Characters of a passage on the character path.
PASSAGE = 2000

#: Conversations that the figure is for.
ALL = 100_000


def character_path() -> None:
    """Measure byte ends of passages of prose and code."""
    tokenizer = real_tokenizers.load("WordPiece")
    spans = []
    for text in quickstart_texts():
        text = text[:PASSAGE]
        spans.append((text, np.array(tokenizer.tokens(text, tokenizer.backend)[1], np.int64)))
    fast, slow = (
        best_seconds(lambda way=way: [way(text, offsets) for text, offsets in spans])
        for way in (end_bytes, slow_character_offsets.end_bytes)
    )
    characters = sum(len(text) for text, _ in spans)
    say(
        "character_path", characters / fast / 1e6, "million characters/s", "slow twin", slow / fast, passages=len(spans)
    )


def chat_template(sample: int) -> None:
    """Measure the rendering and tokenization of conversations of two turns."""
    wrapped = real_tokenizers.qwen()
    wrapped.chat_template = (ROOT / "pipelines/specs/chat_templates/chatml.jinja").read_text(encoding="utf8")
    wrapped.bos_token = "<|endoftext|>"
    tokenizer = PassageTokenizer(wrapped, "Qwen")
    texts = quickstart_texts()
    conversations = [
        [
            {
                "role": role,
                "content": texts[(number + turn) % len(texts)][turn * 90 : turn * 90 + length].strip() or "x",
            }
            for turn, (role, length) in enumerate([("user", 160), ("assistant", 400)] * 2)
        ]
        for number in range(sample)
    ]
    started = time.process_time()
    ChatTemplate.of(tokenizer).encode(conversations[0])
    made = time.process_time() - started
    tokenizer.ids = library = Timed(tokenizer.ids)
    started = time.process_time()
    for messages in conversations:
        ChatTemplate.of(tokenizer).encode(messages)
    each = (time.process_time() - started) / sample
    templates = each - library.seconds / sample
    minutes, alone = ((made + seconds * ALL) / 60 for seconds in (each, templates))
    say(
        "chat_template", alone, "CPU minutes of 100,000 conversations", "a template for every conversation",
        (made + each) / (made / ALL + each), sampled=sample, making_seconds=round(made, 2),
        milliseconds_each=round(1000 * each, 3), with_tokenization_minutes=round(minutes, 2),
        vocabulary=tokenizer.vocab_size,
    )  # fmt: skip


class Timed:
    """A function, and the CPU seconds spent in it."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        started = time.process_time()
        found = self._function(*arguments)
        self.seconds += time.process_time() - started
        return found


def quickstart_texts() -> list[str]:
    """Prose and code."""
    files = [real_tokenizers.CORPUS / f"heldout_{kind}.jsonl" for kind in ("docs", "code")]
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf8").splitlines()]


if __name__ == "__main__":
    character_path()
    chat_template(*[int(argument) for argument in sys.argv[1:]] or [5000])
