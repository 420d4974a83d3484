"""Survey a vocabulary mapping: the shares of its kinds, and ten rows that a person can judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.method.vocabulary import UNMAPPED
from engine.text.tokenization import NO_ROLE, PassageTokenizer

NUM_EXAMPLES = 10


@dataclass(frozen=True)
class MappingExample:
    """One row of a mapping. ``print`` it.

    Attributes:
        source_id, target_id: the target id is ``UNMAPPED`` if there is none.
        source_text, target_text: quoted, control characters and stray bytes escaped; special tokens as written.
        count: occurrences of the source token in the sample.
        is_nonsense: whether the source token's bytes do not start with the target token's.
    """

    source_id: int
    target_id: int
    source_text: str
    target_text: str
    count: int
    is_nonsense: bool

    def __str__(self) -> str:
        ids = f"source id {self.source_id}"
        if self.target_id != UNMAPPED:
            ids += f" -> target id {self.target_id}"
        return f"{self.source_text} -> {self.target_text}  ({ids})"


@dataclass(frozen=True)
class MappingSurvey:
    """The mapping of a source's vocabulary to the target's; the shares of ``ids`` sum to 1.

    Attributes:
        ids: number of ids of the source's tokenizer.
        same: share mapped to a token of the same bytes or role. otherwise: to another token. nowhere: the rest.
        nonsense: number of ids mapped to a token that is not the beginning of their own bytes.
        examples: at most ten rows: nonsense first, the least similar first; then the most frequent in the sample that
            are not mapped to the same bytes; then the most frequent of all.
    """

    ids: int
    same: float
    otherwise: float
    nowhere: float
    nonsense: int
    examples: tuple[MappingExample, ...]


def survey_mapping(
    source: PassageTokenizer, target: PassageTokenizer, mapping: np.ndarray, counts: np.ndarray
) -> MappingSurvey:
    """Survey a mapping.

    Args:
        mapping: int32 [V of the source], target ids or ``UNMAPPED``.
        counts: int64 [V of the source], occurrences of each token in the sample.
    """
    same = np.array([_is_same(source, target, token, partner) for token, partner in enumerate(mapping.tolist())])
    nowhere = mapping == UNMAPPED
    likeness = {
        token: alike
        for token in np.flatnonzero(~same & ~nowhere).tolist()
        if (alike := _likeness(source.token_bytes[token], target.token_bytes[mapping[token]])) is not None
    }
    order = sorted(likeness, key=lambda token: (likeness[token], -counts[token], token))
    by_count = np.lexsort((np.arange(len(counts)), -counts, same | (counts == 0)))
    chosen = list(dict.fromkeys([*order[:NUM_EXAMPLES], *by_count.tolist()[: 2 * NUM_EXAMPLES]]))[:NUM_EXAMPLES]
    return MappingSurvey(
        ids=len(mapping),
        same=float(same.mean()),
        otherwise=float((~same & ~nowhere).mean()),
        nowhere=float(nowhere.mean()),
        nonsense=len(likeness),
        examples=tuple(
            MappingExample(
                source_id=token,
                target_id=int(mapping[token]),
                source_text=_shown(source, token),
                target_text=_shown(target, int(mapping[token])),
                count=int(counts[token]),
                is_nonsense=token in likeness,
            )
            for token in chosen
        ),
    )


def quoted(data: bytes) -> str:
    """Bytes as readable text: UTF-8 in double quotes; bytes that are not UTF-8 or not printable are escaped."""
    return '"' + "".join(_escaped(character) for character in data.decode("utf8", "surrogateescape")) + '"'


def _escaped(character: str) -> str:
    if character in '\\"':
        return "\\" + character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _shown(tokenizer: PassageTokenizer, token: int) -> str:
    if token == UNMAPPED:
        return "nowhere"
    data = tokenizer.token_bytes[token]
    return quoted(data) if data is not None else tokenizer.pieces[token] or "no token"


def _is_same(source: PassageTokenizer, target: PassageTokenizer, token: int, partner: int) -> bool:
    """Whether a token is mapped to one of the same bytes or of the same role."""
    if partner == UNMAPPED:
        return False
    if source.token_bytes[token] is not None and source.token_bytes[token] == target.token_bytes[partner]:
        return True
    roles = (
        (source.bos_id, target.bos_id),
        (source.eos_id, target.eos_id),
        (source.pad_id, target.pad_id),
        (source.turn_end_id, target.turn_end_id),
    )
    return any(token == own != NO_ROLE and partner == other for own, other in roles)


def _likeness(source: bytes | None, target: bytes | None) -> float | None:
    """Share of the longer token that both have at its two ends, in [0, 1); None if the target is a prefix."""
    if target and source and source.startswith(target):
        return None
    if not source or not target:
        return 0.0
    prefix = _common_prefix(source, target)
    suffix = _common_prefix(source[prefix:][::-1], target[prefix:][::-1])
    return (prefix + suffix) / max(len(source), len(target))


def _common_prefix(one: bytes, other: bytes) -> int:
    """Length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
