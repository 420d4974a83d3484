"""Reading: what a passage is for one model, whether it is plain text or a conversation.

This is the one place that knows both. A plain passage is one answer: BOS precedes its first token, and EOS ends it. A
conversation has one answer for each turn of the assistant, in the model's own chat template (``engine.text.chat``).
Everything after this deals with answers alone (``engine.method.answers``).
"""

from __future__ import annotations

from functools import cached_property

from engine.corpus.passages import Passage
from engine.text.chat import ChatTemplate, Rendering
from engine.text.tokenization import PassageTokenizer


class Reading:
    """Reads passages as one model does.

    Args:
        tokenizer: of the model.
        adds_bos: whether BOS precedes plain text. A conversation begins with BOS if the chat template has it.
    """

    def __init__(self, tokenizer: PassageTokenizer, adds_bos: bool):
        self._tokenizer = tokenizer
        self._adds_bos = adds_bos

    def read(self, passage: Passage, ends_document: bool) -> Rendering:
        """The passage's tokens, their end bytes and its answers.

        Args:
            passage: plain text or a conversation.
            ends_document: whether EOS follows plain text. A turn's end follows every answer of a conversation.

        Raises:
            TokenizerError: the tokens do not add up to the text, or there is no chat template that takes the
                conversation.
        """
        if passage.messages:
            return self._template.encode(passage.messages)
        token_ids, end_bytes = self._tokenizer.encode_with_roles(passage.text, self._adds_bos, ends_document)
        return Rendering(token_ids, end_bytes, answers=((0, len(token_ids) - 1),))

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate.of(self._tokenizer)
