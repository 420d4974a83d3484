"""From conversations to passages: whole turns from the beginning, as many as fit every model."""

from __future__ import annotations

from collections.abc import Sequence

from engine.corpus.windows import SPECIAL_TOKENS
from engine.errors import RecordError
from engine.text.chat import ChatTemplate, Message, beginnings
from engine.text.tokenization import PassageTokenizer


class ConversationCutter:
    """Cuts conversations behind an answer, before the first one that does not fit every model.

    The turns behind the cut are not learned: without what was said before they would be another conversation.

    Args:
        tokenizers: of the target model and all source models.
        windows: the text tokens that each model can take; for a template there are the places of BOS and EOS besides.

    Raises:
        TokenizerError: a tokenizer has no chat template that can be learned from.
    """

    def __init__(self, tokenizers: Sequence[PassageTokenizer], windows: Sequence[int]):
        self._limits = [
            (tokenizer.name, ChatTemplate(tokenizer), window + SPECIAL_TOKENS)
            for tokenizer, window in zip(tokenizers, windows, strict=True)
        ]

    def cut(self, messages: Sequence[Message]) -> list[Message]:
        """The longest beginning that ends with an answer and fits every model.

        Raises:
            RecordError: not even the first answer fits.
            TokenizerError: a model's template refuses the conversation.
        """
        for beginning in beginnings(messages):
            too_long = self._too_long(beginning)
            if not too_long:
                return beginning
        raise RecordError(f"the conversation up to its first answer does not fit: {too_long}; raise the model's limit")

    def _too_long(self, messages: Sequence[Message]) -> str:
        for name, template, limit in self._limits:
            tokens = len(template.encode(messages).token_ids)
            if tokens > limit:
                return f"{tokens} tokens for {name}, which takes {limit}"
        return ""
