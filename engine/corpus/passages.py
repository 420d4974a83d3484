"""Passages: what the stream carries, a piece of a document's text or a conversation; and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pyarrow as pa

from engine.records import PASSAGE, schema
from engine.text.chat import Message


@dataclass(frozen=True)
class Passage:
    """One row of ``records.PASSAGE``, field by field.

    Attributes:
        passage_id: ``PASS/FILE:ROW:INDEX``, the pass over the corpus from 0, and where in it: unique and deterministic.
        text: the passage; of a conversation the contents of the assistant's answers.
        num_bytes: length of ``text`` in UTF-8 bytes.
        context_bytes: bytes at its beginning that the passage before has learned already.
        ends_document: whether the document ends with this passage, so that EOS follows.
        messages: the conversation; none for plain text.
    """

    passage_id: str
    text: str
    num_bytes: int
    context_bytes: int
    ends_document: bool
    messages: Sequence[Message] = ()


def is_repeated(passage_id: str) -> bool:
    """Whether a passage is of a further pass over the corpus."""
    return not passage_id.startswith("0/")


def table_of(passages: Sequence[Passage]) -> pa.Table:
    """Passages as a table (``records.PASSAGE``)."""
    columns = {field.name: [getattr(passage, field.name) for passage in passages] for field in fields(Passage)}
    table = schema(PASSAGE)
    return pa.table([pa.array(columns[field.name], field.type) for field in table], table)


def passages_of(table: pa.Table) -> list[Passage]:
    """The passages in a table that has the columns of ``records.PASSAGE``, and perhaps others."""
    columns = {field.name: table[field.name].to_pylist() for field in fields(Passage)}
    columns["messages"] = [[_without_nulls(message) for message in messages] for messages in columns["messages"]]
    return [Passage(*values) for values in zip(*columns.values(), strict=True)]


def _without_nulls(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}
