"""Conversations: every model reads its own chat template's rendering, and all learn from the assistant's answers alone.

What two renderings of one conversation have in common is what its messages say. So each answer of the assistant is what
a whole passage is elsewhere (``engine.method.answers``): its content is the text, the rendering before it takes the
place of BOS, and the turn's end takes the place of EOS. Byte offsets count from the answer's beginning, and everything
that holds for passages holds for answers: rows with the same offset describe the same situation, the row after the last
token of the content learns the turn's end, and a first token that begins with a space of the template's is aligned only
with one that does so too. Rows inside the template, the system's and the user's messages belong to no answer: no source
sends them, none is aligned, and no loss is taken there.

Three decisions:

- Contents are stripped of white space around them, as Llama's templates do, so that all models read the same. A
  template that changes contents otherwise is refused for the conversations where it does.
- A rendering is tokenized whole, as in use, so that tokens merge across a content's borders where the model's own do.
  Special tokens are recognised in what the template has written; the same strings in a content are text.
- A conversation is cut after an answer, before the first one that does not fit every model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from engine.errors import TokenizerError
from engine.text.tokenization import NO_ROLE, PassageTokenizer

#: Who is learned from.
ASSISTANT = "assistant"

#: A message as transformers takes it: ``role`` and ``content``.
Message = dict[str, str]

#: First of the characters of private use that stand for contents, and in another text for special tokens.
_FIRST_MARK, _LAST_MARK = 0x100000, 0x10FFFD
_MARKS = re.compile(r"([\U00100000-\U0010FFFD])")


@dataclass(frozen=True)
class Rendering:
    """A passage as one model reads it: plain text as one answer, a conversation up to the end of its last answer.

    Attributes:
        token_ids: int32 [T].
        end_bytes: int32 [T], bytes of an answer's content consumed after each of its tokens; 0 between answers.
        answers: for each answer the token whose row predicts its first token, and the token that ends its turn. Where
            the first token is the rendering's first, no row predicts it, and it takes its row's place.
    """

    token_ids: np.ndarray
    end_bytes: np.ndarray
    answers: tuple[tuple[int, int], ...]

    def rows(self) -> np.ndarray:
        """The rows that predict the answers' tokens, int64."""
        return np.concatenate([np.arange(first, last) for first, last in self.answers])

    def tokens(self) -> np.ndarray:
        """The tokens of the answers, what precedes them and their turns' ends included, int64."""
        return np.concatenate([np.arange(first, last + 1) for first, last in self.answers])


class ChatTemplate:
    """The chat template of one model's tokenizer.

    Raises:
        TokenizerError: there is none, or it puts no special token after an answer, so that no model could learn to
            stop.
    """

    def __init__(self, tokenizer: PassageTokenizer):
        self._tokenizer = tokenizer
        if not getattr(tokenizer.hugging_face, "chat_template", None):
            raise TokenizerError(f"{tokenizer.name}: the tokenizer has no chat template; give one as chat_template")
        if tokenizer.turn_end_id == NO_ROLE:
            raise TokenizerError(
                f"{tokenizer.name}: its chat template refuses a plain conversation, leaves out an answer, or puts no "
                f"special token after it; give another one as chat_template"
            )

    @staticmethod
    @lru_cache(maxsize=16)
    def of(tokenizer: PassageTokenizer) -> ChatTemplate:
        """The chat template of a tokenizer, one object a process: it holds a copy of the tokenizer."""
        return ChatTemplate(tokenizer)

    def encode(self, messages: Sequence[Message]) -> Rendering:
        """Render a conversation and find its answers.

        Args:
            messages: contents without white space around them, at least one of them an answer.

        Raises:
            TokenizerError: the template refuses the conversation, changes contents, or does not end an answer's turn.
        """
        text, spans = self._marked(messages)
        token_ids, ends = self._tokens(text)
        answers, end_bytes = [], np.zeros(len(ends), np.int32)
        data = text.encode("utf8")
        for begin, end in spans:
            first, last = self._answer(data, token_ids, ends, begin, end)
            if answers and first <= answers[-1][1]:
                raise TokenizerError(f"{self._tokenizer.name}: its chat template leaves no room between two answers")
            end_bytes[first : last + 1] = np.clip(ends[first : last + 1] - begin, 0, end - begin)
            answers.append((first, last))
        length = answers[-1][1] + 1
        return Rendering(token_ids[:length], end_bytes[:length], tuple(answers))

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return self._tokenizer.hugging_face.apply_chat_template(list(messages), tokenize=False)
        except Exception as error:  # a template is a program that may refuse anything
            raise TokenizerError(
                f"{self._tokenizer.name}: its chat template refuses the conversation: {error}"
            ) from error

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The rendering with marks for special tokens, and the bytes of it that each answer's content takes up."""
        marks = [chr(_FIRST_MARK + index) for index in range(len(messages))]
        parts = _MARKS.split(self._render([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]))
        contents = {mark: message["content"] for mark, message in zip(marks, messages, strict=True)}
        if "".join(contents.get(part, part) for part in parts) != self._render(messages):
            raise TokenizerError(f"{self._tokenizer.name}: its chat template changes the contents of messages")
        answers = [mark for mark, message in zip(marks, messages, strict=True) if message["role"] == ASSISTANT]
        if [part for part in parts if part in answers] != answers:
            raise TokenizerError(f"{self._tokenizer.name}: its chat template leaves out an answer, or has it twice")
        if any(_MARKS.search(content) for content in contents.values()):
            raise TokenizerError("a content has a character of private use from U+100000 on, which stand for others")
        texts = [contents[part] if part in contents else self._with_special_marks(part) for part in parts]
        ends = np.cumsum([0, *(len(text.encode("utf8")) for text in texts)]).tolist()
        return "".join(texts), [span for part, span in zip(parts, pairwise(ends), strict=True) if part in answers]

    def _with_special_marks(self, text: str) -> str:
        return self._special_strings.sub(lambda found: self._special_marks[found[0]], text)

    def _tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a marked rendering, and the bytes of it consumed after each; int32 [n] each."""
        tokens, offsets = self._tokenizer.tokens(text, self._tokenizer_of_marks)
        # In a vocabulary with gaps a mark may have got the id of another token, so the text decides.
        places = [
            place
            for place, (token, (start, end)) in enumerate(zip(tokens, offsets, strict=True))
            if token in self._special_ids and _MARKS.search(text[start:end])
        ]
        ends = np.zeros(len(tokens), np.int32)
        bytes_before = np.cumsum([0, *(len(character.encode("utf8")) for character in text)])
        begin = run_begin = 0
        for place in [*places, len(tokens)]:
            run_end = offsets[place][0] if place < len(tokens) else len(text)
            if place > begin:
                within = [(start - run_begin, end - run_begin) for start, end in offsets[begin:place]]
                run = self._tokenizer.end_bytes(text[run_begin:run_end], tokens[begin:place], within)
                ends[begin:place] = run + bytes_before[run_begin]
            if place < len(tokens):
                run_begin = offsets[place][1]
                ends[place] = bytes_before[run_begin]
            begin = place + 1
        ids = np.array(tokens, np.int32)
        ids[places] = [self._special_ids[tokens[place]] for place in places]
        return ids, ends

    def _answer(self, data: bytes, token_ids: np.ndarray, ends: np.ndarray, begin: int, end: int) -> tuple[int, int]:
        """The row that predicts the first token of the content at bytes ``begin`` to ``end``, and its turn's end."""
        reached = int(np.searchsorted(ends, begin))
        first = max(reached if ends[reached] == begin else reached - 1, 0)
        turn_ends = np.flatnonzero((token_ids == self._tokenizer.turn_end_id) & (ends > end))
        last = int(turn_ends[0]) if len(turn_ends) else 0
        if not len(turn_ends) or ends[last - 1] < end or data[end : ends[last - 1]].strip():
            turn_end = self._tokenizer.hugging_face.convert_ids_to_tokens(self._tokenizer.turn_end_id)
            raise TokenizerError(
                f"{self._tokenizer.name}: its chat template does not put {turn_end!r} after every answer, so that "
                f"where an answer ends is not learned; give another one as chat_template"
            )
        return first, last

    @cached_property
    def _special_marks(self) -> dict[str, str]:
        """A character for each special string, one that no entry of the vocabulary has."""
        taken = {character for piece in self._tokenizer.pieces for character in piece if character >= chr(_FIRST_MARK)}
        free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK + 1) if chr(code) not in taken)
        return {token["content"]: mark for token, mark in zip(self._tokenizer.special_tokens, free, strict=False)}

    @cached_property
    def _special_ids(self) -> dict[int, int]:
        """The id of each mark, in the tokenizer of marks, to the id of its special token."""
        ids = self._tokenizer_of_marks.token_to_id
        return {ids(self._special_marks[token["content"]]): token["id"] for token in self._tokenizer.special_tokens}

    @cached_property
    def _special_strings(self) -> re.Pattern[str]:
        """Any special string; of several that begin at one place the longest, as the library finds them."""
        return re.compile("|".join(map(re.escape, sorted(self._special_marks, key=len, reverse=True))))

    @cached_property
    def _tokenizer_of_marks(self) -> Any:
        """The tokenizer that takes marks as it takes special strings elsewhere, spaces around them included."""
        from tokenizers import AddedToken, Tokenizer

        backend = Tokenizer.from_str(self._tokenizer.backend.to_str())
        backend.encode_special_tokens = True
        for token in self._tokenizer.special_tokens:
            how = {flag: token[flag] for flag in ("single_word", "lstrip", "rstrip", "normalized")}
            backend.add_tokens([AddedToken(self._special_marks[token["content"]], special=False, **how)])
        return backend


def content_of(messages: Sequence[Message]) -> str:
    """The text that is learned of a conversation: the contents of its answers, one after the other."""
    return "".join(message["content"] for message in messages if message["role"] == ASSISTANT)


def beginnings(messages: Sequence[Message]) -> list[list[Message]]:
    """The beginnings of a conversation that end with an answer, the longest first."""
    ends = [index for index, message in enumerate(messages, start=1) if message["role"] == ASSISTANT]
    return [list(messages[:end]) for end in reversed(ends)]
