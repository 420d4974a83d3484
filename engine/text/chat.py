"""Conversations: every model reads its own chat template's rendering, and all learn from the assistant's answers alone.

What two renderings of one conversation have in common is what its messages say. So each answer of the assistant is what
a whole passage is elsewhere (``engine.method.answers``): its content is the text, the rendering before it takes the
place of BOS, and the turn's end takes the place of EOS. Byte offsets count from the answer's beginning, and everything
that holds for passages holds for answers: rows with the same offset describe the same situation, the row after the last
token of the content learns the turn's end, and a first token that begins with a space of the template's is aligned only
with one that does so too. Rows inside the template, the system's and the user's messages belong to no answer: no source
sends them, none is aligned, and no loss is taken there.

Decisions:

- Contents are stripped of white space around them, as Llama's templates do, so that all models read the same. A
  template that changes contents otherwise is refused for the conversations where it does.
- A rendering is tokenized whole, as in use, so that tokens merge across a content's borders where the model's own do.
  Control strings are recognised in what the template has written; the same strings in a content are text. They are the
  special tokens and those added tokens that the template writes, such as ``<tool_call>``. An assistant's content may
  hold the ones that do not mark turns: that is how models write their reasoning and their calls.
- An answer with weight 0 is context, and so are messages with tool calls: their syntax is each model's own. Reasoning
  comes before an answer and is context, too. A template that leaves out calls or reasoning is refused for them.
- A conversation is cut after an answer, before the first one that does not fit every model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from engine.errors import TokenizerError, first_line
from engine.text.character_offsets import byte_lengths
from engine.text.tokenization import NO_ROLE, Offsets, PassageTokenizer

#: Who is learned from.
ASSISTANT = "assistant"

#: A message: ``role`` and ``content``; ``weight``, 0 where an answer is context; ``more``, JSON of the keys that a chat
#: template may read besides.
Message = dict[str, Any]

#: A conversation that every chat template should take.
_PLAIN: list[Message] = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "a"}]

#: Keys that hold what an assistant says besides its content. A template that leaves them out changes a conversation.
CALLS, REASONING = ("tool_calls", "function_call"), ("reasoning_content", "reasoning", "thinking")

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
        left_out: roles of messages that the chat template does not write.
    """

    token_ids: np.ndarray
    end_bytes: np.ndarray
    answers: tuple[tuple[int, int], ...]
    left_out: tuple[str, ...] = ()

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
            self._render(_PLAIN)  # may be refused, for a reason that the template gives
            raise TokenizerError(
                f"{tokenizer.name}: its chat template leaves out an answer, or puts no special token after it; give "
                f"another one as chat_template"
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
            TokenizerError: the template refuses the conversation, changes contents, leaves out calls or reasoning, or
                does not end an answer's turn; or a role, a call or reasoning has a control string.
        """
        marked = self._marked(messages)
        data = marked.rendering.encode("utf8")
        token_ids, ends = self._tokens(marked, data)
        answers, end_bytes = [], np.zeros(len(ends), np.int32)
        for begin, end in marked.answers:
            first, last = self._answer(data, token_ids, ends, begin, end)
            if answers and first <= answers[-1][1]:
                raise TokenizerError(f"{self._tokenizer.name}: its chat template leaves no room between two answers")
            end_bytes[first : last + 1] = np.clip(ends[first : last + 1] - begin, 0, end - begin)
            answers.append((first, last))
        length = answers[-1][1] + 1
        return Rendering(token_ids[:length], end_bytes[:length], tuple(answers), marked.left_out)

    def _render(self, messages: Sequence[Message]) -> str:
        rendered = [
            {"role": message["role"], "content": message["content"]}
            | (json.loads(message["more"]) if "more" in message else {})
            for message in messages
        ]
        try:
            return self._tokenizer.hugging_face.apply_chat_template(rendered, tokenize=False)
        except Exception as error:  # a template is a program that may refuse anything
            raise TokenizerError(
                f"{self._tokenizer.name}: its chat template refuses the conversation: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error

    def _marked(self, messages: Sequence[Message]) -> _Marked:
        """The rendering with marks for control strings, and where each answer's content stands in it."""
        self._check_keys(messages)
        marks = [chr(_FIRST_MARK + index) if message["content"] else "" for index, message in enumerate(messages)]
        parts = _MARKS.split(self._render([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]))
        by_mark = {mark: message for mark, message in zip(marks, messages, strict=True) if mark}
        originals = [by_mark[part]["content"] if part in by_mark else part for part in parts]
        rendering = "".join(originals)
        if rendering != self._render(messages):
            raise TokenizerError(f"{self._tokenizer.name}: its chat template changes the contents of messages")
        answers = [mark for mark, message in by_mark.items() if is_answer(message)]
        if [part for part in parts if part in answers] != answers:
            raise TokenizerError(f"{self._tokenizer.name}: its chat template leaves out an answer, or has it twice")
        if any(_MARKS.search(message["content"]) for message in messages):
            raise TokenizerError("a content has a character of private use from U+100000 on, which stand for others")
        texts = [self._with_marks(part, by_mark.get(part)) for part in parts]
        ends = np.cumsum([0, *(len(text.encode("utf8")) for text in originals)]).tolist()
        return _Marked(
            rendering=rendering,
            text="".join(texts),
            answers=[span for part, span in zip(parts, pairwise(ends), strict=True) if part in answers],
            left_out=tuple(message["role"] for mark, message in by_mark.items() if mark not in parts),
        )

    def _check_keys(self, messages: Sequence[Message]) -> None:
        """Refuse control strings outside contents, and calls or reasoning that the template leaves out."""
        name = self._tokenizer.name
        for place, message in enumerate(messages):
            for key in ("role", "more"):
                if found := self._control_strings.search(message.get(key) or ""):
                    raise TokenizerError(
                        f"{name}: message {place + 1} has the control string {found[0]!r} outside its content"
                    )
            more = json.loads(message["more"]) if message.get("more") else {}
            for key in more.keys() & {*CALLS, *REASONING}:
                without = {**message, "more": json.dumps({other: more[other] for other in more if other != key})}
                if self._render([*messages[:place], without, *messages[place + 1 :]]) == self._render(messages):
                    raise TokenizerError(
                        f"{name}: its chat template leaves out the {key} of message {place + 1}; remove it, or give "
                        f"another one as chat_template"
                    )

    def _with_marks(self, part: str, message: Message | None) -> str:
        """A part of a rendering with marks for its control strings.

        Args:
            part: what the template has written, or the mark of a message.
            message: whose content the part stands for; None: the template's own text.
        """
        if message is None:
            return self._control_strings.sub(lambda found: self._marks_of_strings[found[0]], part)
        if message["role"] == ASSISTANT and self._strings_of_assistants:
            strings = self._strings_of_assistants
            return strings.sub(lambda found: self._marks_of_strings[found[0]], message["content"])
        return message["content"]

    def _tokens(self, marked: _Marked, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a rendering, and the bytes of it consumed after each; int32 [n] each.

        Args:
            marked: the rendering.
            data: its bytes.
        """
        backend = self._tokenizer_of_marks
        tokens = self._tokenizer.ids(marked.text, backend)
        if not self._control_ids.isdisjoint(tokens):
            tokens, _ = self._tokenizer.tokens(marked.text, backend, self._control_ids)
        ids = np.array(tokens, np.int32)
        if b"".join([self._bytes_of_ids[token] for token in tokens]) == data:
            return self._ids_without_marks[ids], np.cumsum(self._lengths_of_ids[ids], dtype=np.int32)
        tokens, offsets = self._tokenizer.tokens(marked.text, backend, self._control_ids)
        places, ends = self._marks_and_ends(marked.text, tokens, offsets)
        ids = np.array(tokens, np.int32)
        ids[places] = self._ids_without_marks[ids[places]]
        return ids, ends

    def _marks_and_ends(self, text: str, tokens: Sequence[int], offsets: Offsets) -> tuple[list[int], np.ndarray]:
        """The places of marks among the tokens, and the end bytes where the tokens' own bytes are not the text."""
        # In a vocabulary with gaps a mark may have got the id of another token, so the text decides.
        places = [
            place
            for place, (token, (start, end)) in enumerate(zip(tokens, offsets, strict=True))
            if token in self._ids_of_marks and _MARKS.search(text[start:end])
        ]
        ends = np.zeros(len(tokens), np.int32)
        lengths = byte_lengths(text)
        for found in _MARKS.finditer(text):  # a mark takes up the bytes of its string
            lengths[found.start()] = len(self._strings_of_marks[found[0]].encode("utf8"))
        bytes_before = np.cumsum(np.append(0, lengths))
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
        return places, ends

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
    def _controls(self) -> list[Mapping[str, Any]]:
        """The control tokens: special ones, and added ones with a character that the template writes."""
        template = self._tokenizer.hugging_face.chat_template
        templates = template.values() if isinstance(template, Mapping) else [template]
        written = "\n".join([*map(str, templates), self._plain_rendering])
        return [
            token
            for token in self._tokenizer.added_tokens
            if token["special"] or (token["content"].strip(" \n\t\r▁") and token["content"] in written)
        ]

    @cached_property
    def _plain_rendering(self) -> str:
        """What the template writes around a plain conversation."""
        return self._render(_PLAIN)

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(token["id"] for token in self._controls)

    @cached_property
    def _marks_of_strings(self) -> dict[str, str]:
        """A character for each control string, one that no entry of the vocabulary has."""
        taken = {character for piece in self._tokenizer.pieces for character in piece if character >= chr(_FIRST_MARK)}
        free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK + 1) if chr(code) not in taken)
        return {token["content"]: mark for token, mark in zip(self._controls, free, strict=False)}

    @cached_property
    def _strings_of_marks(self) -> dict[str, str]:
        return {mark: text for text, mark in self._marks_of_strings.items()}

    @cached_property
    def _bytes_of_ids(self) -> list[bytes]:
        """What each id of the tokenizer of marks stands for in a rendering."""
        found = [data or b"" for data in self._tokenizer.token_bytes]
        found += [b""] * (max(self._ids_of_marks, default=0) + 1 - len(found))
        for text, mark in self._marks_of_strings.items():
            found[self._tokenizer_of_marks.token_to_id(mark)] = text.encode("utf8")
        return found

    @cached_property
    def _lengths_of_ids(self) -> np.ndarray:
        """The bytes that each id of the tokenizer of marks takes up in a rendering, int32."""
        return np.array([len(data) for data in self._bytes_of_ids], np.int32)

    @cached_property
    def _ids_without_marks(self) -> np.ndarray:
        """The model's id for each id of the tokenizer of marks, int32: a mark's is that of its control token."""
        ids = np.arange(len(self._bytes_of_ids), dtype=np.int32)
        ids[list(self._ids_of_marks)] = list(self._ids_of_marks.values())
        return ids

    @cached_property
    def _ids_of_marks(self) -> dict[int, int]:
        """The id of each mark, in the tokenizer of marks, to the id of its control token."""
        ids = self._tokenizer_of_marks.token_to_id
        return {ids(self._marks_of_strings[token["content"]]): token["id"] for token in self._controls}

    @cached_property
    def _control_strings(self) -> re.Pattern[str]:
        return _any_of(self._marks_of_strings)

    @cached_property
    def _strings_of_assistants(self) -> re.Pattern[str] | None:
        """The control strings that an assistant may write: neither special, nor around every message."""
        strings = [
            token["content"]
            for token in self._controls
            if not token["special"] and token["content"] not in self._plain_rendering
        ]
        return _any_of(strings) if strings else None

    @cached_property
    def _tokenizer_of_marks(self) -> Any:
        """The tokenizer that takes marks as it takes control strings elsewhere, spaces around them included."""
        from tokenizers import AddedToken, Tokenizer

        layout = json.loads(self._tokenizer.backend.to_str())
        for token in layout["added_tokens"]:
            token["special"] = token["id"] in self._control_ids  # not looked for in text
        backend = Tokenizer.from_str(json.dumps(layout))
        backend.encode_special_tokens = True
        for token in self._controls:
            how = {flag: token[flag] for flag in ("single_word", "lstrip", "rstrip", "normalized")}
            backend.add_tokens([AddedToken(self._marks_of_strings[token["content"]], special=False, **how)])
        return backend


class _Marked(NamedTuple):
    """A conversation in a chat template.

    Attributes:
        rendering: as the template writes it.
        text: the same with marks for control strings.
        answers: the bytes of ``rendering`` that each answer's content takes up.
        left_out: roles of messages that are not in it.
    """

    rendering: str
    text: str
    answers: list[tuple[int, int]]
    left_out: tuple[str, ...]


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Any of some strings; of several that begin at one place the longest, as the library finds them."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)")


def is_answer(message: Message) -> bool:
    """Whether a message is learned: one of the assistant that does not weigh 0."""
    return message["role"] == ASSISTANT and message.get("weight") != 0


def content_of(messages: Sequence[Message]) -> str:
    """The text that is learned of a conversation: the contents of its answers, one after the other."""
    return "".join(message["content"] for message in messages if is_answer(message))


def beginnings(messages: Sequence[Message]) -> list[list[Message]]:
    """The beginnings of a conversation that end with an answer, the longest first."""
    ends = [index for index, message in enumerate(messages, start=1) if is_answer(message)]
    return [list(messages[:end]) for end in reversed(ends)]
