"""Token alignment: which source row describes the same situation as a target row.

``match_end_bytes`` is right by construction: a target row and a source row have the same past exactly when both have
consumed the same UTF-8 bytes of one passage. ``match_by_edits`` is the dynamic programming over token strings of
FuseLLM (section 3.2, MinED) and FuseChat, for comparison: slow, and it ignores where tokens lie in the text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from engine.method import byte_matching, continuations, kernels
from engine.method.edit_distance import align_by_edits
from engine.method.rows import NEXT_TOKEN, NO_ROW, ScoredRows, SourceRows, TargetRows, TokenRows
from engine.method.token_trie import NO_TRIE, trie_of
from engine.method.vocabulary import load_or_build, load_or_build_cuts, same_pieces, with_turn_end
from engine.spec import AlignmentSpec
from engine.text.token_bytes import SPACE_MARKER
from engine.text.tokenization import NO_ROLE, PassageTokenizer


class Matcher(ABC):
    """Finds the source row that describes the same situation as a target row.

    Args:
        source, target: the two tokenizers.
    """

    def __init__(self, source: PassageTokenizer, target: PassageTokenizer):
        self._source = source
        self._target = target

    @abstractmethod
    def __call__(self, texts: Sequence[str], target: TokenRows, source: TokenRows) -> np.ndarray:
        """The source row of each target row, int32 [sum T], counted within its passage, or ``NO_ROW``.

        Args:
            texts: the passages, B of them.
            target: the target's tokens.
            source: the tokens that the source's rows follow.
        """


class ByteMatcher(Matcher):
    """Aligns plain passages by byte offsets; see ``match_end_bytes``."""

    def __call__(self, texts: Sequence[str], target: TokenRows, source: TokenRows) -> np.ndarray:
        alike = self.begins_alike(texts, target, source)
        return match_end_bytes(target.end_bytes, target.offsets, source.end_bytes, source.offsets, alike)

    def begins_alike(self, texts: Sequence[str], target: TokenRows, source: TokenRows) -> np.ndarray:
        """Whether both sides put the same in front of a passage's first byte, bool [B]."""
        alike = [self._source.has_dummy_prefix(text) == self._target.has_dummy_prefix(text) for text in texts]
        return np.array(alike, bool)


class AnswerMatcher(ByteMatcher):
    """Aligns the answers of conversations by byte offsets; each of them counts as a passage."""

    def begins_alike(self, texts: Sequence[str], target: TokenRows, source: TokenRows) -> np.ndarray:
        own = beginnings_beyond(self._target, target.token_ids, target.end_bytes, target.offsets)
        others = beginnings_beyond(self._source, source.token_ids, source.end_bytes, source.offsets)
        return np.array([one == other for one, other in zip(own, others, strict=True)], bool)


class EditMatcher(Matcher):
    """Aligns plain passages by dynamic programming over token strings; see ``match_by_edits``.

    It gives ``NEXT_TOKEN`` where a passage was scored but no source token is accepted.

    Args:
        accept: see ``match_by_edits``.
        mapping: int32 [V of the source], the target token that confirms a source token.
    """

    def __init__(
        self,
        source: PassageTokenizer,
        target: PassageTokenizer,
        accept: Literal["mapped", "suffix"],
        mapping: np.ndarray,
    ):
        super().__init__(source, target)
        self._accept = accept
        self._mapping = mapping

    def __call__(self, texts: Sequence[str], target: TokenRows, source: TokenRows) -> np.ndarray:
        match = np.full(len(target.token_ids), NO_ROW, np.int32)
        for passage in range(len(texts)):
            scored = source.token_ids[source.offsets[passage] : source.offsets[passage + 1]]
            if len(scored):
                start, end = target.offsets[passage], target.offsets[passage + 1]
                match[start:end] = self._match_passage(target.token_ids[start:end], scored)
                match[end - 1] = NO_ROW  # nothing follows it
        return match

    def _match_passage(self, target_ids: np.ndarray, source_ids: np.ndarray) -> np.ndarray:
        """Align BOS by role and the tokens of the text by edits."""
        match = np.full(len(target_ids), NEXT_TOKEN, np.int32)
        target_begin, target_end = _text_range(self._target, target_ids)
        source_begin, source_end = _text_range(self._source, source_ids)
        if target_begin and source_begin:
            match[0] = 0
        found = match_by_edits(
            _run(self._target, target_ids[target_begin:target_end]),
            _run(self._source, source_ids[source_begin:source_end]),
            self._accept,
            self._mapping,
        )
        match[target_begin:target_end] = np.where(found >= 0, found + source_begin, found)
        return match


def matcher(source: PassageTokenizer, target: PassageTokenizer, tokens: str, mapping: np.ndarray) -> Matcher:
    """The matcher for one source's rows on plain passages.

    Args:
        tokens: the spec's ``alignment.tokens``.
        mapping: the vocabulary mapping, which confirms pairs under ``min_edit``.
    """
    if tokens in ("bytes", "byte_offset"):
        return ByteMatcher(source, target)
    if tokens == "exact":
        return EditMatcher(source, target, "mapped", same_pieces(source, target))
    return EditMatcher(source, target, "mapped" if tokens == "min_edit" else "suffix", mapping)


class SourceAlignment:
    """Aligns one source with the target: its rows by a matcher, its tokens by a vocabulary mapping.

    Args:
        source, target: the two tokenizers.
        alignment: the spec's section.
        sample: passages of the corpus, for a statistical vocabulary mapping.
        conversations: whether the corpus is one of conversations; their answers are aligned by byte offsets.

    Attributes:
        mapping: int32 [V of the source], target ids or ``vocabulary.UNMAPPED``.
    """

    def __init__(
        self,
        source: PassageTokenizer,
        target: PassageTokenizer,
        alignment: AlignmentSpec,
        sample: Sequence[str],
        conversations: bool,
    ):
        mapping = load_or_build(source, target, alignment.vocabulary, alignment.cache_dir, sample)
        if conversations:
            self.mapping = with_turn_end(mapping, source, target)
            self._matcher: Matcher = AnswerMatcher(source, target)
        else:
            self.mapping = mapping
            self._matcher = matcher(source, target, alignment.tokens, mapping)
        self._least_kept_share = alignment.least_kept_share
        self._continuations = None
        if alignment.tokens == "bytes":
            cuts = load_or_build_cuts(source, target, alignment.vocabulary, alignment.cache_dir)
            trie = trie_of(target, source.token_bytes) if alignment.vocabulary != "exact" else NO_TRIE
            self._continuations = continuations.build_continuations(source.token_bytes, self.mapping, cuts, trie)

    def align(self, texts: Sequence[str], target: TargetRows, scored: ScoredRows) -> SourceRows:
        """Align the source's rows with the target's; a row whose label is context is aligned with none.

        Args:
            texts: the passages, of a conversation the contents of its answers, one after the other.
        """
        if self._continuations is not None:
            return self._conditioned(texts, target, scored, self._continuations)
        match = self._matcher(texts, target, scored)
        match = np.where(target.label_is_context, NO_ROW, match)
        return SourceRows(**vars(scored), mapping=self.mapping, match=match)

    def _conditioned(
        self, texts: Sequence[str], target: TargetRows, scored: ScoredRows, tables: continuations.Continuations
    ) -> SourceRows:
        """Rows inside source tokens too, but those of which the kept entries say too little."""
        alike = self._matcher.begins_alike(texts, target, scored)
        match, cut = match_bytes(texts, target, scored, alike, tables)
        match = np.where(target.label_is_context, NO_ROW, match)
        continuations.drop_uncertain(
            self._least_kept_share, target.offsets, scored.offsets, match, cut, scored.end_bytes,
            scored.token_ids, scored.token_logprobs, scored.topk_ids, scored.topk_logprobs.view(np.uint16),
            kernels.EXP_OF_FLOAT16_BITS, *tables,
        )  # fmt: skip
        return SourceRows(**vars(scored), mapping=self.mapping, match=match, cut=cut, continuations=tables)


@dataclass(frozen=True)
class TokenRun:
    """The tokens of one passage on one side, BOS and EOS left out, as the dynamic programming compares them.

    Attributes:
        ids: int32 [n].
        pieces: strings as in the vocabulary, spaces as ``▁``.
        decoded: the same decoded one by one.
    """

    ids: np.ndarray
    pieces: Sequence[str]
    decoded: Sequence[str]


def match_end_bytes(
    target_ends: np.ndarray,
    target_offsets: np.ndarray,
    source_ends: np.ndarray,
    source_offsets: np.ndarray,
    begins_alike: np.ndarray,
) -> np.ndarray:
    """The source row with the same end offset as each target row.

    Args:
        target_ends: int32 [sum T] bytes consumed, ascending within a passage.
        target_offsets: int64 [B+1], where each passage begins in ``target_ends``.
        source_ends, source_offsets: the same for the source's rows.
        begins_alike: bool [B], whether both tokenizers put a dummy prefix before the passage, or neither does.

    Returns:
        int32 [sum T]: the row, counted from the passage's first, or ``NO_ROW``.

    Three rules beyond equal end offsets:

    - Where several rows share an end offset (a token of no bytes follows, such as a lone dummy prefix), the last one
      counts, on both sides: it alone describes the bytes that come next.
    - The last target row of a passage has no label and never matches; so the row before EOS is the one that learns EOS.
    - At byte 0 the dummy prefix is in the way: after BOS, Llama-2 says `` The`` where GPT-2 says ``The``, and each
      would be wrong for the other. The rows there match only if both sides begin alike and have as many rows there.
    """
    match = np.empty(len(target_ends), np.int32)
    kernels.match_end_bytes(target_ends, target_offsets, source_ends, source_offsets, begins_alike, match)
    return match


def match_bytes(
    texts: Sequence[str],
    target: TokenRows,
    source: TokenRows,
    begins_alike: np.ndarray,
    tables: continuations.Continuations,
) -> tuple[np.ndarray, np.ndarray]:
    """The source row from which each target row can be answered, and the bytes of its next token that are read already.

    As ``match_end_bytes``, and for a target row inside a source token the source row before that token, if the token
    has the text's own bytes.

    Args:
        texts: what the rows of ``target`` consume, from the first to the last.

    Returns:
        int32 [sum T]: the row, counted from the passage's first, or ``NO_ROW``; int32 [sum T]: 0 where both have
        consumed the same bytes.
    """
    match, cut = (np.empty(len(target.end_bytes), np.int32) for _ in range(2))
    data = np.frombuffer("".join(texts).encode("utf8"), np.uint8)
    ends = np.append(target.end_bytes, np.int32(0))[target.offsets[1:] - 1]
    offsets = np.append(0, np.cumsum(np.where(np.diff(target.offsets) > 0, ends, 0), dtype=np.int64))
    if offsets[-1] != len(data):
        raise ValueError(f"the target's rows consume {offsets[-1]} bytes, but the texts have {len(data)}")
    byte_matching.match_bytes(
        data, offsets, target.end_bytes, target.offsets, source.end_bytes, source.offsets, source.token_ids,
        begins_alike, tables.data, tables.starts, match, cut,
    )  # fmt: skip
    return match, cut


def beginnings_beyond(
    tokenizer: PassageTokenizer, token_ids: np.ndarray, end_bytes: np.ndarray, offsets: np.ndarray
) -> list[bytes]:
    """The bytes that each answer's first token has before the content: a space of the template's, or a dummy prefix.

    Llama-2's `` Yes`` and another's ``Yes`` consume the same bytes, but the rows that predict them differ throughout.
    """
    found = []
    for start, end in pairwise(offsets):
        first = start + int(np.searchsorted(end_bytes[start:end], 0, side="right"))
        data = tokenizer.token_bytes[token_ids[first]] if first < end else None
        found.append(data[: max(len(data) - int(end_bytes[first]), 0)] if data else b"")
    return found


def match_by_edits(
    target: TokenRun, source: TokenRun, accept: Literal["mapped", "suffix"], mapping: np.ndarray
) -> np.ndarray:
    """The source token that each target token of one passage is aligned with by the authors' dynamic programming.

    Args:
        accept: which pairs on the path count. ``mapped``: one source token, and ``mapping`` takes it to the target
            token (FuseLLM). ``suffix``: one decoded string ends with the other; of several source tokens the first such
            one, else the last if together they are the target token (FuseChat).
        mapping: int32 [V of the source] to target ids.

    Returns:
        int32 [T]: an index into ``source.ids``, or ``NEXT_TOKEN``.
    """
    if accept == "suffix":
        _, first, last = align_by_edits(target.decoded, source.decoded)
        pairs = zip(target.decoded, first, last, strict=True)
        return np.array([_by_suffix(text, source.decoded, start, end) for text, start, end in pairs], np.int32)
    _, first, last = align_by_edits(_unmarked(target.pieces), _unmarked(source.pieces))
    match = np.full(len(target.ids), NEXT_TOKEN, np.int32)
    single = (first == last) & (first >= 0)
    confirmed = single & (mapping[source.ids[np.maximum(first, 0)]] == target.ids) if len(source.ids) else single
    match[confirmed] = first[confirmed]
    if single[:1].all() and len(match) and _begins_as(target.pieces[0], source.pieces[first[0]]):
        match[0] = first[0]
    return match


def _text_range(tokenizer: PassageTokenizer, ids: np.ndarray) -> tuple[int, int]:
    """Where a passage's own tokens begin and end between BOS and EOS."""
    begin = int(tokenizer.bos_id != NO_ROLE and ids[0] == tokenizer.bos_id)
    end = len(ids) - int(tokenizer.eos_id != NO_ROLE and len(ids) > begin and ids[-1] == tokenizer.eos_id)
    return begin, end


def _run(tokenizer: PassageTokenizer, ids: np.ndarray) -> TokenRun:
    return TokenRun(ids, [tokenizer.pieces[token] for token in ids], [tokenizer.decoded[token] for token in ids])


def _begins_as(target_piece: str, source_piece: str) -> bool:
    """Whether a passage's first tokens are the same but for the dummy prefix, which the authors add to the source's."""
    return target_piece in (source_piece, SPACE_MARKER + source_piece)


def _by_suffix(target: str, sources: Sequence[str], first: int, last: int) -> int:
    """FuseChat's choice among the source tokens ``first`` to ``last`` that a target token is aligned with."""
    if first < 0:
        return NEXT_TOKEN
    for index in range(first, last + 1):
        if target.endswith(sources[index]) or sources[index].endswith(target):
            return index
    if first < last and "".join(sources[first : last + 1]) == target:
        return last
    return NEXT_TOKEN


def _unmarked(pieces: Sequence[str]) -> list[str]:
    return [piece.replace(SPACE_MARKER, "") for piece in pieces]
