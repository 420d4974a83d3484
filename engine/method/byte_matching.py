"""Which source row answers for a target row, where rows are conditioned on the bytes so far; kernels in numba."""

from __future__ import annotations

from engine.method.compiled import njit


@njit
def match_bytes(
    texts, text_offsets, target_ends, target_offsets, source_ends, source_offsets, source_tokens, begins_alike,
    data, starts, match, cut,
):  # fmt: skip
    """The source row for each target row, and how many bytes of its next token the target has read already.

    Args:
        texts: uint8, the bytes of all passages. text_offsets: int64 [B+1], where each begins.
        target_ends, source_ends, target_offsets, source_offsets, begins_alike: as of ``kernels.match_end_bytes``.
        source_tokens: int32 [sum S]. data, starts: of ``continuations.Continuations``.
        match: int32 [sum T], filled: the last source row that has consumed no more bytes than the target row, counted
            within the passage, or -1.
        cut: int32 [sum T], filled: the bytes of the source's next token that the target row has consumed.

    Rows at the same byte match as they do there. A row inside a source token has none if the token's own bytes are not
    those of the text, because a normalizer has changed them: then the number of bytes to cut off is unknown.
    """
    for passage in range(target_offsets.size - 1):
        text = texts[text_offsets[passage] : text_offsets[passage + 1]]
        first, end = source_offsets[passage], source_offsets[passage + 1]
        target_end = target_offsets[passage + 1] - 1
        alike = begins_alike[passage] and rows_at_zero(
            target_ends, target_offsets[passage], target_end
        ) == rows_at_zero(source_ends, first, end)
        source = first
        for row in range(target_offsets[passage], target_offsets[passage + 1]):
            match[row], cut[row] = -1, 0
            stop = target_ends[row]
            if row >= target_end or (row + 1 < target_end and target_ends[row + 1] == stop):
                continue
            while source + 1 < end and source_ends[source + 1] <= stop:
                source += 1
            if source >= end or source_ends[source] > stop:
                continue
            if source_ends[source] == stop:
                if stop > 0 or alike:
                    match[row] = source - first
            elif source + 1 < end:
                begin = source_ends[source]
                before = _bytes_before(source_tokens[source + 1], (begin, source_ends[source + 1]), text, data, starts)
                if before >= 0:
                    match[row], cut[row] = source - first, stop - begin + before


@njit
def _bytes_before(token, span, text, data, starts):
    """How many bytes of its own a source token has before those of the text in ``span``; -1 if it has not those.

    At the text's beginning there may be some, a dummy prefix or a template's space; elsewhere one space that the text
    does not have. At the text's end the token may go on into the template.
    """
    begin, stop = span
    beyond = starts[token + 1] - starts[token] - (stop - begin)
    if beyond < 0 or stop > text.size:
        return -1
    if (beyond == 0 or begin == 0 or (beyond == 1 and data[starts[token]] == 32)) and _are_same(
        data, starts[token] + beyond, text, span
    ):
        return beyond
    return 0 if stop == text.size and _are_same(data, starts[token], text, span) else -1


@njit
def _are_same(data, start, text, span):
    """Whether the bytes of ``text`` in ``span`` are those of ``data`` from ``start`` on."""
    begin, stop = span
    same = 0
    for place in range(stop - begin):
        same += data[start + place] == text[begin + place]
    return same == stop - begin


@njit
def rows_at_zero(ends, start, end):
    """How many rows of a passage, BOS and the like, have consumed no byte."""
    count = 0
    while start + count < end and ends[start + count] == 0:
        count += 1
    return count
