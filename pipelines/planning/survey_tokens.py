"""Survey two tokenizers on a sample: the coverage of the target's rows, and the traits of each tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import numpy as np

from engine.corpus.reading import Reading
from engine.errors import TokenizerError
from engine.method.alignment import NO_ROW, beginnings_beyond, match_end_bytes
from engine.method.answers import target_answers
from engine.text.chat import ASSISTANT, ChatTemplate, Message
from engine.text.tokenization import NO_ROLE, PassageTokenizer

#: The kinds of a labelled target row, in the order of ``Coverage``; the first three have a source row.
KINDS = EXACT, ONE_TO_MANY, LAST_OF_LONGER, INTERIOR, UNALIGNED = range(5)

#: Texts that reveal a normalizer: the habit, a text, and the normalized text.
PROBES = (
    ("lower-cases", "Ab", "ab"),
    ("composes characters as NFC", "e\u0301", "\u00e9"),
    ("takes characters apart as NFD", "\u00e9", "e\u0301"),
    ("strips accents", "\u00e9", "e"),
    ("replaces compatibility characters as NFKC", "\ufb01", "fi"),
    ("collapses spaces", "a  b", "a b"),
)


@dataclass(frozen=True)
class SampledPassage:
    """A passage of the sample: its text, its length in UTF-8 bytes, and whether its document ends with it.

    A conversation has ``messages``; its text is then the assistant's answers. ``domain`` names that of the corpus.
    """

    text: str
    num_bytes: int
    ends_document: bool
    messages: tuple[Message, ...] = ()
    domain: str = ""


@dataclass(frozen=True)
class Coverage:
    """The target's labelled rows by kind, aligned with one source by byte offsets; the shares of ``rows`` sum to 1.

    Attributes:
        rows: number of labelled rows in the sample; with 0 the shares are NaN.
        exact: a source token of the same bytes ends here.
        one_to_many: the target token is several source tokens, the last of which ends here.
        last_of_longer: the target token is the end of a longer source token (the last piece of n-1).
        interior: the target token ends inside a source token (n-1) and has no source row.
        unaligned: none of these, such as BOS when the source has none.
    """

    rows: int
    exact: float
    one_to_many: float
    last_of_longer: float
    interior: float
    unaligned: float

    @property
    def used(self) -> float:
        """Share of the rows with a source row: tokens of both end at the same byte."""
        return self.exact + self.one_to_many + self.last_of_longer

    @property
    def given_bytes(self) -> float:
        """Share of the rows that can have a teacher given the bytes so far, those inside source tokens included.

        A bound: rows inside the first token of a source without BOS, and rows whose source row keeps too little that
        goes on with the bytes since (``alignment.least_kept_share``), have none.
        """
        return self.used + self.interior


@dataclass(frozen=True)
class Traits:
    """The special tokens and the normalization of a tokenizer.

    Attributes:
        adds_bos: whether BOS precedes a passage in the run. has_bos, has_eos, has_pad: whether there is such a token.
        dummy_prefix: whether the tokenizer puts a space before a text.
        system: what the chat template does with system messages; empty without a template.
        normalizer: names of the normalizer's parts, in order. habits: their effects, as ``PROBES`` names them.
    """

    adds_bos: bool
    has_bos: bool
    has_eos: bool
    has_pad: bool
    dummy_prefix: bool
    system: str
    normalizer: tuple[str, ...]
    habits: tuple[str, ...]


@dataclass(frozen=True)
class Tokenization:
    """A sample in tokens: ids and end bytes of each passage, BOS and EOS included, int32 [T] each.

    A conversation is its answers: the token before an answer takes the place of BOS, the end of its turn that of EOS.
    """

    tokenizer: PassageTokenizer
    ids: tuple[np.ndarray, ...]
    end_bytes: tuple[np.ndarray, ...]

    def counts(self) -> np.ndarray:
        """Occurrences of each id, int64 [V]."""
        return np.bincount(np.concatenate([np.empty(0, np.int32), *self.ids]), minlength=self.tokenizer.vocab_size)

    def beginnings(self) -> list[bytes]:
        """The bytes before each text in its first token; see ``alignment.beginnings_beyond``."""
        offsets = np.cumsum([0, *(len(ids) for ids in self.ids)])
        none = np.empty(0, np.int32)
        return beginnings_beyond(
            self.tokenizer, np.concatenate([none, *self.ids]), np.concatenate([none, *self.end_bytes]), offsets
        )


def tokenize(tokenizer: PassageTokenizer, passages: Sequence[SampledPassage]) -> Tokenization:
    """Tokenize a sample, with BOS as in the run, and EOS where a passage ends its document."""
    reading = Reading(tokenizer, tokenizer.adds_bos)
    renderings = [reading.read(passage, passage.ends_document) for passage in passages]
    answers = target_answers(renderings, [0] * len(passages), [passage.ends_document for passage in passages]).rows
    places = [slice(start, end) for start, end in pairwise(answers.offsets)]
    return Tokenization(
        tokenizer,
        tuple(answers.token_ids[place] for place in places),
        tuple(answers.end_bytes[place] for place in places),
    )


def coverage(target: Tokenization, source: Tokenization) -> Coverage:
    """Count the kinds of the target's labelled rows.

    Args:
        target: with BOS and EOS as in the run. source: with EOS after every passage, as sources score.
    """
    counts = np.zeros(len(KINDS), np.int64)
    beginnings = zip(target.beginnings(), source.beginnings(), strict=True)
    ends = zip(target.end_bytes, source.end_bytes, strict=True)
    for (own, other), (target_ends, source_ends) in zip(beginnings, ends, strict=True):
        counts += np.bincount(row_kinds(target_ends, source_ends, own == other), minlength=len(KINDS))
    rows = int(counts.sum())
    return Coverage(rows, *((counts / rows).tolist() if rows else [nan] * len(KINDS)))


def row_kinds(target_ends: np.ndarray, source_ends: np.ndarray, begins_alike: bool) -> np.ndarray:
    """The kind of each labelled target row of one passage: one of ``KINDS``, int64 [T-1].

    Args:
        target_ends, source_ends: int32 [T], [S+1]; the source's last token, EOS, has no row.
        begins_alike: see ``alignment.match_end_bytes``.
    """
    rows = source_ends[:-1]
    match = match_end_bytes(
        target_ends, np.array([0, len(target_ends)]), rows, np.array([0, len(rows)]), np.array([begins_alike])
    )[:-1]
    target_starts, target_run = _spans(target_ends)
    source_starts, source_run = _spans(source_ends)
    kinds = np.full(len(match), UNALIGNED)
    reached = np.searchsorted(source_ends, target_ends[:-1]).clip(max=len(source_ends) - 1)
    inside = (source_starts[reached] < target_ends[:-1]) & (target_ends[:-1] < source_ends[reached])
    kinds[inside] = INTERIOR
    aligned = np.flatnonzero(match != NO_ROW)
    found = match[aligned]
    later = source_starts[found] - target_starts[aligned]
    finer = source_run[found] - target_run[aligned]
    kinds[aligned] = np.select(
        [(later == 0) & (finer == 0), (later > 0) | ((later == 0) & (finer > 0))], [EXACT, ONE_TO_MANY], LAST_OF_LONGER
    )
    return kinds


def _spans(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The start byte of each token, and its number from 1 among the tokens with the same end.

    Tokens with the same end, such as BOS and a lone dummy prefix or the parts of a character, have the same start.
    """
    first = np.searchsorted(ends, ends)
    return np.where(first > 0, ends[first - 1], 0), np.arange(len(ends)) - first + 1


def traits(tokenizer: PassageTokenizer) -> Traits:
    """The traits of a tokenizer."""
    return Traits(
        adds_bos=tokenizer.adds_bos,
        has_bos=tokenizer.bos_id != NO_ROLE,
        has_eos=tokenizer.eos_id != NO_ROLE,
        has_pad=tokenizer.pad_id != NO_ROLE,
        dummy_prefix=tokenizer.has_dummy_prefix("a"),
        system=_system(tokenizer),
        normalizer=tokenizer.normalizer_types,
        habits=tuple(habit for habit, text, left in PROBES if _text_of(tokenizer, text) == left),
    )


def _system(tokenizer: PassageTokenizer) -> str:
    """What a chat template does with a system message, in words; empty if it takes no plain conversation."""
    messages = [{"role": role, "content": "a"} for role in ("system", "user", ASSISTANT)]
    try:
        template = ChatTemplate.of(tokenizer)
        template.encode(messages[1:])
    except TokenizerError:
        return ""
    try:
        return "left out" if "system" in template.encode(messages).left_out else "written"
    except TokenizerError:
        return "refused"


def _text_of(tokenizer: PassageTokenizer, text: str) -> str:
    """The text that the tokens of ``text`` decode to, without spaces around it; empty if they cannot encode it."""
    try:
        ids, _ = tokenizer.encode(text)
    except TokenizerError:
        return ""
    data = b"".join(tokenizer.token_bytes[token] or b"" for token in ids)
    return data.decode("utf8", errors="replace").strip()
