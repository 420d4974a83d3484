"""Slow, obvious twins of the kernels, and the whole fused passage in plain Python.

Nothing here calls the code it checks: alignment walks over bytes with its own loops, fusion adds up dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.records import NO_TOKEN, NO_WINNER


def match_end_bytes(target_ends: Sequence[int], source_ends: Sequence[int], begins_alike: bool) -> list[int]:
    """The source row of each target row of one passage: the last with the same end, if the target row is the last.

    None at byte 0 unless both sides begin alike: with or without dummy prefix, and with as many rows there.
    """
    matches = []
    labelled = list(target_ends)[:-1]
    alike = begins_alike and labelled.count(0) == list(source_ends).count(0)
    for row, end in enumerate(target_ends):
        same = [index for index, other in enumerate(source_ends) if other == end]
        is_last_of_its_end = row < len(labelled) and end not in labelled[row + 1 :]
        may_match = is_last_of_its_end and (alike or end > 0)
        matches.append(same[-1] if same and may_match else -1)
    return matches


def nats_per_byte(
    source_ends: Sequence[int], token_logprobs: Sequence[float], num_bytes: int, first_byte: int
) -> float:
    """Cross-entropy over the bytes from the first row at or behind ``first_byte``."""
    rows = [row for row, end in enumerate(source_ends) if first_byte <= end < num_bytes]
    if not rows:
        return math.nan
    return -sum(float(token_logprobs[row]) for row in rows) / (num_bytes - source_ends[rows[0]])


def common_beginning(source_ends: Sequence[Sequence[int]], num_bytes: int) -> int:
    """Where the last of the sources begins to score; one that scores no byte has no say."""
    return max((ends[0] for ends in source_ends if ends and ends[0] < num_bytes), default=0)


def weights(cross_entropy: Sequence[float], rule: str) -> tuple[list[float], int]:
    """Weight of each source, and the winner under min_ce."""
    present = [index for index, value in enumerate(cross_entropy) if math.isfinite(value)]
    if not present:
        return [0.0] * len(cross_entropy), NO_WINNER
    if rule == "min_ce":
        winner = min(present, key=lambda index: (cross_entropy[index], index))
        return [float(index == winner) for index in range(len(cross_entropy))], winner
    raw = [math.exp(-value) if math.isfinite(value) else 0.0 for value in cross_entropy]
    return [value / sum(raw) for value in raw], NO_WINNER


def fused_row(
    parts: Sequence[tuple[float, Sequence[int], Sequence[float], Sequence[int]]], top_k: int
) -> list[tuple[int, float]]:
    """One fused row from (weight, ids, log-probabilities, mapping) of each source with a row here.

    Returns:
        (target id, probability) of at most ``top_k`` entries, likeliest first, ties by id.
    """
    total = sum(weight for weight, *_ in parts)
    masses: dict[int, float] = {}
    for weight, ids, logprobs, mapping in parts:
        for token, logprob in zip(ids, logprobs, strict=True):
            target = mapping[token] if 0 <= token < len(mapping) else -1
            if target >= 0 and weight > 0:
                masses[target] = masses.get(target, 0.0) + weight / total * math.exp(float(logprob))
    likeliest = sorted(masses.items(), key=lambda item: (-item[1], item[0]))[:top_k]
    scale = max(1.0, sum(masses.values()))
    return [(target, mass / scale) for target, mass in likeliest]


def mapping(source, target, method: str) -> list[int]:
    """The target token of each source token, by comparing bytes with every target token."""
    by_bytes: dict[bytes, int] = {}
    for token, data in enumerate(target.token_bytes):
        if data and (data not in by_bytes or _is_byte_piece(target, by_bytes[data])):
            by_bytes[data] = token
    found = []
    for token, data in enumerate(source.token_bytes):
        if token == source.bos_id != -1 and token != source.eos_id:
            found.append(target.bos_id)
        elif token == source.eos_id != -1:
            found.append(target.eos_id)
        elif not data:
            found.append(-1)
        elif data in by_bytes:
            found.append(by_bytes[data])
        elif method == "exact":
            found.append(-1)
        else:
            first = target.tokens_within(data)[:1]
            begins = (
                bool(first) and bool(target.token_bytes[first[0]]) and data.startswith(target.token_bytes[first[0]])
            )
            found.append(first[0] if begins else -1)
    return found


def _is_byte_piece(tokenizer, token: int) -> bool:
    """Whether a token is written like ``<0x2E>``: it stands for a byte where there is no better piece."""
    piece = tokenizer._tokenizer.id_to_token(token)
    return piece.startswith("<0x") and len(piece) == 6 and len(tokenizer.token_bytes[token]) == 1


def walk_over_bytes(tokenizer, text: str, add_bos: bool, ends_document: bool) -> tuple[list[int], list[int], bool]:
    """Ids, bytes consumed after each, and whether a dummy prefix was there that is not in the text."""
    tokens = tokenizer.encode(text)[0].tolist()
    num_bytes = len(text.encode("utf8"))
    too_many = sum(len(tokenizer.token_bytes[token]) for token in tokens) - num_bytes
    consumed, ends = -too_many, []
    for token in tokens:
        consumed += len(tokenizer.token_bytes[token])
        ends.append(consumed)
    if add_bos and tokenizer.bos_id >= 0:
        tokens, ends = [tokenizer.bos_id, *tokens], [0, *ends]
    if ends_document and tokenizer.eos_id >= 0:
        tokens, ends = [*tokens, tokenizer.eos_id], [*ends, num_bytes]
    return tokens, ends, too_many > 0


def fused_passage(
    text: str,
    ends_document: bool,
    target,
    sources: Sequence,
    distributions: Sequence[dict[str, np.ndarray]],
    fusion,
    method: str,
) -> dict[str, np.ndarray | int]:
    """The expected ``records.FUSED_PASSAGE`` values of one passage.

    Args:
        target, sources: ``PassageTokenizer`` objects.
        distributions: of each source: ``end_bytes`` [S], ``topk_ids`` [S*K], ``topk_logprobs`` [S*K] float16,
            ``token_logprobs`` [S].
        fusion: the spec's section. method: of the vocabulary mapping.
    """
    top_k, num_bytes = fusion.top_k, len(text.encode("utf8"))
    token_ids, ends, has_dummy = walk_over_bytes(target, text, target.adds_bos, ends_document)
    first_byte = common_beginning([rows["end_bytes"].tolist() for rows in distributions], num_bytes)
    cross_entropy = [
        nats_per_byte(rows["end_bytes"].tolist(), rows["token_logprobs"], num_bytes, first_byte)
        for rows in distributions
    ]
    weight, winner = weights(cross_entropy, fusion.rule)
    matches = [
        match_end_bytes(ends, rows["end_bytes"].tolist(), has_dummy == walk_over_bytes(source, text, False, False)[2])
        for source, rows in zip(sources, distributions, strict=True)
    ]
    tables = [mapping(source, target, method) for source in sources]
    ids = np.full((len(ends), top_k), NO_TOKEN, np.int32)
    probs = np.zeros((len(ends), top_k), np.float32)
    is_fused = np.zeros(len(ends), bool)
    for row in range(len(ends)):
        parts = []
        for index, rows in enumerate(distributions):
            source_row = matches[index][row]
            if source_row >= 0 and weight[index] > 0:
                where = slice(source_row * top_k, (source_row + 1) * top_k)
                parts.append((weight[index], rows["topk_ids"][where], rows["topk_logprobs"][where], tables[index]))
        for entry, (token, prob) in enumerate(fused_row(parts, top_k) if parts else []):
            ids[row, entry], probs[row, entry], is_fused[row] = token, prob, True
    return {
        "token_ids": np.array(token_ids, np.int32),
        "fused_ids": ids,
        "fused_probs": probs,
        "is_fused": is_fused,
        "winner": winner,
        "cross_entropy": np.array(cross_entropy),
        "covered_rows": np.array([sum(match >= 0 for match in row) for row in matches]),
    }
