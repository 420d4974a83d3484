"""From fsspec paths to documents or conversations: Parquet, JSONL and plain text, compressed or not, at any fsspec URL.

A corpus is read in units, a file, a row group of a Parquet file or a part of a JSONL file, so that many readers can
share one big file. Reading may begin after any row of a unit (``CorpusUnit.after``). Bad input is never lost: a row or
file whose content cannot be read becomes an ``Unreadable`` that names file, row and reason. A store that does not give
a file is no fault of its content: it is asked again, and then a ``StoreError`` says so (``engine.store``).
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, BinaryIO

import pyarrow.parquet

from engine.corpus.files import CorpusUnit, kind_of_file
from engine.errors import RecordError, StoreError, printable
from engine.store import opened
from engine.text.chat import ASSISTANT, CALLS, REASONING, Message, is_answer

#: Keys of a message that a chat template may read besides role and content.
_RENDERED_KEYS = (*CALLS, *REASONING, "name", "tool_call_id")
_READ_KEYS = {"role", "content", "weight", *_RENDERED_KEYS}

#: How files begin that are no UTF-8 text, and what they are.
_MARKS = {
    b"\x1f\x8b": "gzip does, whose files end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd does, whose files end in .zst",
    b"PAR1": "Parquet does, whose files end in .parquet",
    b"\xff\xfe": "UTF-16 does; save it as UTF-8",
    b"\xfe\xff": "UTF-16 does; save it as UTF-8",
}


@dataclass(frozen=True)
class Document:
    """One document: where it stands in the corpus, and its text.

    Attributes:
        path: file or URL, and where the part of the file begins that ``row`` counts from.
        offset: bytes of its unit before its row, where reading can begin there; 0 elsewhere.
    """

    path: str
    row: int
    text: str
    offset: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Conversation:
    """One conversation: where it stands in the corpus, and its messages, without space around their contents.

    At least one message is an answer that is learned, and no such answer is empty.

    Attributes:
        unread_keys: keys of its messages that no model reads.
        offset: as of a document.
    """

    path: str
    row: int
    messages: tuple[Message, ...]
    unread_keys: tuple[str, ...] = ()
    offset: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        """All contents, a line each."""
        return "\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True)
class Unreadable:
    """A file (row 0) or row that cannot be used, and why; the reason is printable whatever the row holds."""

    path: str
    row: int
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.reason}" if self.row else f"{self.path}: {self.reason}"


def read_documents(unit: CorpusUnit, text_column: str) -> Iterator[Document | Unreadable]:
    """The documents of one unit, in order, each checked: a non-empty string that is valid UTF-8."""
    return _read(unit, text_column, _document)


def read_conversations(unit: CorpusUnit, messages_column: str) -> Iterator[Conversation | Unreadable]:
    """The conversations of one unit, in order, each checked: messages of role and content, an answer among them."""
    return _read(unit, messages_column, _conversation)


def read(unit: CorpusUnit, text_column: str, messages_column: str) -> Iterator[Document | Conversation | Unreadable]:
    """The conversations of one unit, or where ``messages_column`` is empty its documents.

    Raises:
        StoreError: the file's store has failed again and again; whatever was read before has been yielded.
        RecordError: the file has changed since the place in it was found.
    """
    return read_conversations(unit, messages_column) if messages_column else read_documents(unit, text_column)


def _read(unit: CorpusUnit, column: str, checked: Callable[[str, int, Any], Any]) -> Iterator[Any]:
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows, ".txt": _text_rows}
    try:
        for row, offset, value in readers[kind_of_file(unit.path)](unit, column):
            bad = isinstance(value, _BadRow)
            found = Unreadable(unit.name, row, str(value)) if bad else checked(unit.name, row, value)
            yield found if isinstance(found, Unreadable) or not offset else replace(found, offset=offset)
    except (RecordError, StoreError):
        raise
    except Exception as error:  # every codec and format has its own errors, and all mean the same here
        yield Unreadable(unit.name, 0, f"the file cannot be read: {type(error).__name__}: {error}")


class _BadRow(str):
    """Why a row has no text; travels in the place of the text."""


def _document(path: str, row: int, value: Any) -> Document | Unreadable:
    if not isinstance(value, str):
        return Unreadable(path, row, f"the text is {_kind(value)}, not a string")
    if not value:
        return Unreadable(path, row, "the document is empty")
    reason = _not_utf8(value)
    return Unreadable(path, row, reason) if reason else Document(path, row, value)


def _kind(value: Any) -> str:
    """What a value is, in a word."""
    return "null" if value is None else type(value).__name__


def _not_utf8(text: str) -> str:
    try:
        text.encode("utf8")
    except UnicodeEncodeError as error:
        return f"character {error.start} is half of a surrogate pair, which UTF-8 cannot hold"
    return ""


def _conversation(path: str, row: int, value: Any) -> Conversation | Unreadable:
    if not isinstance(value, list):
        return Unreadable(path, row, f"the messages are {_kind(value)}, not a list of {{role, content}}")
    messages: list[Message] = []
    unread: set[str] = set()
    for number, message in enumerate(value, start=1):
        reason = _message_fault(message)
        if reason:
            return Unreadable(path, row, f"message {number} {reason}")
        messages.append(_message(message))
        unread |= {key for key in message if key not in _READ_KEYS and message[key] is not None}
        if is_answer(messages[-1]) and not messages[-1]["content"]:
            return Unreadable(path, row, f"message {number}, an answer, is empty")
    if not any(map(is_answer, messages)):
        none = f"no message has the role {ASSISTANT!r}"
        if any(message["role"] == ASSISTANT for message in messages):
            none = f"all messages with the role {ASSISTANT!r} are context, by weight 0 or tool calls"
        return Unreadable(path, row, f"{none}, so there is no answer to learn")
    return Conversation(path, row, tuple(messages), tuple(sorted(printable(str(key)) for key in unread)))


def _message(message: Mapping[str, Any]) -> Message:
    """A sound message as ``engine.text.chat`` takes it."""
    found: Message = {"role": message["role"], "content": (message.get("content") or "").strip()}
    if message["role"] == ASSISTANT and (message.get("weight") == 0 or any(message.get(key) for key in CALLS)):
        found["weight"] = 0
    more = {key: message[key] for key in _RENDERED_KEYS if message.get(key)}
    return found | ({"more": json.dumps(more, ensure_ascii=False)} if more else {})


def _message_fault(message: Any) -> str:
    if not isinstance(message, dict):
        return f"is {_kind(message)}, not {{role, content}}"
    may_be_empty = message.get("content") is None and any(message.get(key) for key in CALLS)
    for key in ("role",) if may_be_empty else ("role", "content"):
        if not isinstance(message.get(key), str):
            seen = f"has a {key} that is {_kind(message[key])}, not a string" if key in message else f"has no {key}"
            return f"{seen}; it has {', '.join(map(str, message)) or 'none'}"
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        return f"has weight {weight!r}; 0, which makes an answer context, and 1 are possible"
    if weight and message["role"] != ASSISTANT:
        return f"has weight {weight!r}, but only messages with the role {ASSISTANT!r} are learned"
    return next((reason for key in ("role", "content", *_RENDERED_KEYS) if (reason := _value_fault(message, key))), "")


def _value_fault(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    try:
        fault = _not_utf8(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        return f"has a {key} that JSON cannot hold: {error}"
    return f"has a {key} where {fault}" if fault else ""


def _parquet_rows(unit: CorpusUnit, text_column: str) -> Iterator[tuple[int, int, Any]]:
    first_row = unit.first_row + unit.skipped_rows
    with opened(unit.path) as file:
        parquet = pyarrow.parquet.ParquetFile(file)
        if text_column not in parquet.schema_arrow.names:
            reason = f"has no column {text_column!r}; it has {', '.join(parquet.schema_arrow.names) or 'none'}"
            yield first_row, 0, _BadRow(reason)
            return
        column = parquet.read_row_group(unit.row_group, columns=[text_column]).column(0).slice(unit.skipped_rows)
    for row, scalar in enumerate(column, start=first_row):
        try:
            yield row, 0, scalar.as_py()
        except UnicodeDecodeError as error:
            yield row, 0, _BadRow(f"invalid UTF-8 at byte {error.start}")
        except Exception as error:  # a value that Arrow holds and Python does not; the rows after it are fine
            yield row, 0, _BadRow(f"cannot be read: {type(error).__name__}: {error}")


def _json_rows(unit: CorpusUnit, text_column: str) -> Iterator[tuple[int, int, Any]]:
    for row, offset, line in _lines(unit):
        if line.strip():
            yield row, offset, _json_text(line, text_column)


def _lines(unit: CorpusUnit) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset in the unit and content of each line that is not skipped; offsets only where a file can be split.

    Raises:
        RecordError: no line begins after the bytes to skip.
    """
    if not unit.can_be_split:
        with _open(unit.path) as file:
            lines = enumerate(file, start=unit.first_row)
            yield from ((row, 0, line) for row, line in islice(lines, unit.skipped_rows, None))
        return
    with _open(unit.path) as file:
        position = unit.first_byte + unit.skipped_bytes
        if position:
            file.seek(position - 1)
            rest = file.readline()  # of a line that begins before this part
            if unit.skipped_bytes and rest != b"\n":
                changed = f"no line begins at byte {position}, as at the last checkpoint: the file has changed"
                raise RecordError(f"{unit.path}: {changed}; bring it back, or choose another run.output_dir")
            position += len(rest) - 1
        row = unit.first_row + unit.skipped_rows
        while unit.end_byte < 0 or position < unit.end_byte:
            line = file.readline()
            if not line:
                return
            yield row, position - unit.first_byte, line
            position += len(line)
            row += 1


def _json_text(line: bytes, text_column: str) -> Any:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _not_text(line, error)
    except json.JSONDecodeError as error:
        return _BadRow(f"is not JSON: {error}")
    except (ValueError, RecursionError) as error:  # JSON all the same: an integer too long, or nesting too deep
        return _BadRow(f"holds JSON that Python cannot read: {type(error).__name__}: {error}")
    if not isinstance(record, dict):
        return _BadRow(f"is {_kind(record)}, not an object with the key {text_column!r}")
    if text_column not in record:
        return _BadRow(f"has no key {text_column!r}; it has {', '.join(record) or 'none'}")
    return record[text_column]


def _text_rows(unit: CorpusUnit, text_column: str) -> Iterator[tuple[int, int, Any]]:
    if unit.skipped_rows:
        return
    with _open(unit.path) as file:
        data = file.read()
    try:
        yield unit.first_row, 0, data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        yield unit.first_row, 0, _not_text(data, error)


def _not_text(data: bytes, error: UnicodeDecodeError) -> _BadRow:
    """Why bytes are no text; names what they are instead, where their beginning shows it."""
    other = next((f": it begins as {kind}" for mark, kind in _MARKS.items() if data.startswith(mark)), "")
    return _BadRow(f"invalid UTF-8 at byte {error.start}{other}")


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed as its suffix says."""
    with opened(path) as file:
        if path.endswith(".gz"):
            yield gzip.GzipFile(fileobj=file)
        elif path.endswith(".zst"):
            # Arrow's reads across frames, of which such files often have several, and refuses one that is cut short.
            yield io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "rb"), "zstd"))
        else:
            yield file
