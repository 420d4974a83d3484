"""Slow, obvious twins of the kernels, and the whole fused passage in plain Python.

Nothing here calls the code it checks: alignment walks over bytes with its own loops, fusion adds up dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from engine.records import NO_TOKEN


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


def match_bytes(
    target_ends: Sequence[int],
    source_ends: Sequence[int],
    source_tokens: Sequence[int],
    token_bytes: Sequence[bytes | None],
    begins_alike: bool,
    text: bytes,
) -> list[tuple[int, int]]:
    """The source row of each target row of one passage, or -1, and the bytes of its next token that are read already.

    As ``match_end_bytes``; inside a source token the row before it, if the token has the bytes of its place in the
    text, or more before them at the beginning of a passage, or a space before them, or more after them at its end.
    """
    found = []
    for row, match in enumerate(match_end_bytes(target_ends, source_ends, begins_alike)):
        end, before = target_ends[row], [index for index, other in enumerate(source_ends) if other <= target_ends[row]]
        is_last_of_its_end = row + 1 < len(target_ends) and end not in target_ends[row + 1 : -1]
        cut = 0
        if is_last_of_its_end and before and end not in source_ends and before[-1] + 1 < len(source_ends):
            begin, stop = source_ends[before[-1]], source_ends[before[-1] + 1]
            data, consumed = token_bytes[source_tokens[before[-1] + 1]] or b"", text[begin:stop]
            if data == consumed or (data.endswith(consumed) and begin == 0) or data == b" " + consumed:
                match, cut = before[-1], end - begin + len(data) - len(consumed)
            elif data.startswith(consumed) and stop == len(text):
                match, cut = before[-1], end - begin
        found.append((match, cut))
    return found


def continued_row(
    source: dict, row: int, cut: int, label: int = -1, label_ends: tuple[int, int] | None = None
) -> tuple[list[tuple[int, float]], float]:
    """What one source says about the bytes after a target row: (target id, probability), and its least kept share.

    Args:
        source: as for ``source_distribution``, with ``token_bytes``; ``cuts``: the target token of a source token
            without its first bytes, or -1; and ``longest``: see ``longest_token``.
        row, cut: of ``match_bytes``.
        label, label_ends: given where the mass of the text's own next source token is dealt out by two tokens.
    """
    tokens, token_bytes = source["token_ids"], source["token_bytes"]
    ends = source["end_bytes"]
    covers = [(row, b"", 1.0)]
    is_beyond = row > 0 and ends[row] == ends[-1] and len(token_bytes[tokens[row]] or b"") > ends[row] - ends[row - 1]
    if row > 0 and token_bytes[tokens[row]] and not is_beyond:
        path = math.exp(source["token_logprobs"][row - 1])
        covers = [(row, b"", path), (row - 1, token_bytes[tokens[row]], 1.0)]
    found, total, certain, unknown = [], 0.0, 0.0, 0.0
    share = _share_of_label(source, row, *label_ends) if label_ends else 0.0
    for at, residual, weight in covers:
        if cut:
            residual += token_bytes[tokens[row + 1]][:cut]
        entries = [
            (int(token), math.exp(float(logprob)))
            for token, logprob in zip(source["topk_ids"][at], source["topk_logprobs"][at], strict=True)
        ]
        kept = sum(prob for _, prob in entries)
        rest = max(1.0 - kept, 0.0)
        known = [(token, prob) for token, prob in entries if 0 <= token < len(token_bytes)]
        mass, own = kept, 0.0
        if residual:
            known = [item for item in known if _goes_on(token_bytes[item[0]], residual)]
            mass = sum(prob for _, prob in known)
            if at == row and tokens[row + 1] not in [token for token, _ in known]:
                own = min(math.exp(source["token_logprobs"][at]), rest)
            if not own and not any(_goes_on(data, residual) for data in token_bytes):
                continue
        estimate = (rest - own) * mass / kept if kept else 0.0
        total += weight * (mass + own + estimate)
        certain += weight * (mass + own)
        unknown += weight * (rest - own)
        if own:
            known = [*known, (tokens[row + 1], own)]
        if at == row and label_ends and row + 1 < len(tokens):
            of_following = dict(known).get(tokens[row + 1], 0.0)
            known = [(token, prob) for token, prob in known if token != tokens[row + 1]]
            if not of_following:
                found.append((label, weight * share * min(math.exp(source["token_logprobs"][at]), rest)))
            parts = _by_two_tokens(source, row, len(residual), of_following, label, label_ends, share)
            found += [(target, weight * prob) for target, prob in parts if target >= 0 and prob > 0]
        pairs = [(source["cuts"](token, len(residual)), weight * prob) for token, prob in known]
        found += [(target, prob) for target, prob in pairs if target >= 0 and prob > 0]
    share = certain / (certain + unknown) if certain else 0.0
    return [(target, prob / total) for target, prob in found], share


def _by_two_tokens(
    source: dict, row: int, length: int, mass: float, label: int, label_ends: tuple[int, int], share: float
) -> list[tuple[int, float]]:
    """The mass of the text's own next source token, less its first ``length`` bytes, dealt out by the token after it.

    Args:
        share: of the label, see ``_share_of_label``.
    """
    tokens, ends, token_bytes = source["token_ids"], source["end_bytes"], source["token_bytes"]
    begin, stop = label_ends
    first, left = (token_bytes[tokens[row + 1]] or b"")[length:], mass * (1 - share)
    following = tokens[row + 2] if row + 2 < len(tokens) else -1
    is_within = stop > begin and row + 2 < len(ends) and ends[row + 2] >= stop
    parts = [(label, mass * share)]
    for token, logprob in zip(source["topk_ids"][row + 1], source["topk_logprobs"][row + 1], strict=True):
        more = token_bytes[token] if 0 <= token < len(token_bytes) else None
        if not more:
            continue
        target, part = source["longest"](first, more, length) if first else -1, mass * math.exp(float(logprob))
        if token == following:
            target, part = label if is_within else target, max(part - mass * share, 0.0)
        if target >= 0:
            parts.append((target, min(part, left)))
            left -= min(part, left)
    return [*parts, (source["cuts"](tokens[row + 1], length), left)]


def longest_token(target, source_bytes: Sequence[bytes | None]) -> Callable[[bytes, bytes, int], int]:
    """The longest target token that begins two runs of bytes and reaches into the second one, or -1.

    The third argument says how many bytes are cut off before them. If there are none, and the source has this token, it
    is -1.

    Args:
        source_bytes: the bytes of the source's tokens.
    """

    shared = set(source_bytes)

    def longest(first: bytes, more: bytes, length: int) -> int:
        data = first + more
        sizes = range(len(data), len(first), -1)
        found = next((data[:size] for size in sizes if data[:size] in target.id_of_bytes), None)
        return -1 if found is None or (found in shared and not length) else target.id_of_bytes[found]

    return longest


def _share_of_label(source: dict, row: int, begin: int, stop: int) -> float:
    """Probability of the source's own tokens of a label after the first one, if they end where it does; else 0."""
    ends = source["end_bytes"]
    reaching = [index for index in range(row + 1, len(ends)) if ends[index] >= stop]
    if stop == begin or not reaching or reaching[0] == row + 1 or ends[reaching[0]] != stop:
        return 0.0
    return math.exp(sum(float(logprob) for logprob in source["token_logprobs"][row + 1 : reaching[0]]))


def _goes_on(data: bytes | None, residual: bytes) -> bool:
    return bool(data) and len(data) > len(residual) and data.startswith(residual)


def nats_per_byte(
    source_ends: Sequence[int], token_logprobs: Sequence[float], num_bytes: int, first_byte: int
) -> float:
    """Cross-entropy over the bytes from ``first_byte`` on."""
    of_byte = nats_of_bytes(source_ends, token_logprobs, num_bytes)
    compared = range(first_byte, num_bytes)
    return sum(of_byte.get(byte, math.nan) for byte in compared) / len(compared) if compared else math.nan


def nats_of_bytes(source_ends: Sequence[int], token_logprobs: Sequence[float], num_bytes: int) -> dict[int, float]:
    """Each scored byte's share of what the source's tokens cost; a token of no bytes adds to the next that has some."""
    of_byte, cost = {}, 0.0
    for row, begin in enumerate(source_ends):
        end = source_ends[row + 1] if row + 1 < len(source_ends) else num_bytes
        cost -= float(token_logprobs[row])
        if end > begin:
            of_byte |= dict.fromkeys(range(begin, end), cost / (end - begin))
            cost = 0.0
    return of_byte


def nats_per_own_token(
    source_ends: Sequence[int], token_logprobs: Sequence[float], num_bytes: int, ends_document: bool
) -> float:
    """The authors' cross-entropy; what comes after the text counts only where the document ends."""
    costs = [-float(logprob) for logprob in token_logprobs]
    if not ends_document and list(source_ends)[-1:] == [num_bytes]:
        costs.pop()
    return sum(costs) / len(costs) if costs else math.nan


def common_beginning(source_ends: Sequence[Sequence[int]], num_bytes: int, context_bytes: int = 0) -> int:
    """Where the last of the sources begins to score, after the context; one that scores no byte has no say."""
    return max([context_bytes, *(ends[0] for ends in source_ends if ends and ends[0] < num_bytes)])


def label_nats(
    target_ends: Sequence[int],
    source_ends: Sequence[int],
    token_logprobs: Sequence[float],
    num_bytes: int,
    match: Sequence[int],
) -> list[float]:
    """What each target row's label cost a source, by giving every byte its share of the token that covers it."""
    of_byte = nats_of_bytes(source_ends, token_logprobs, num_bytes)
    costs = []
    for row, begin in enumerate(target_ends):
        if row + 1 == len(target_ends):
            costs.append(math.nan)
        elif target_ends[row + 1] == begin:
            costs.append(-float(token_logprobs[match[row]]) if match[row] >= 0 else math.nan)
        else:
            costs.append(sum(of_byte.get(byte, math.nan) for byte in range(begin, target_ends[row + 1])))
    return costs


def weights(cross_entropy: Sequence[float], fusion, single: int = 0) -> list[float]:
    """Weight of each source by the plain formulas (exact arithmetic)."""
    present = [index for index, value in enumerate(cross_entropy) if math.isfinite(value)]
    if not present:
        return [0.0] * len(cross_entropy)
    if fusion.rule in ("min_ce", "single"):
        chosen = single if fusion.rule == "single" else min(present, key=lambda index: (cross_entropy[index], index))
        return [float(index == chosen and index in present) for index in range(len(cross_entropy))]
    temperature = fusion.temperature if fusion.rule == "avg_ce" else math.inf
    raw = [math.exp(-value / temperature) if math.isfinite(value) else 0.0 for value in cross_entropy]
    return [value / sum(raw) for value in raw]


def source_distribution(
    source: dict, row: int, label: int, label_end: int, product: bool, first_wins: bool
) -> list[tuple[int, float]]:
    """What one source's row says about target tokens, as (target id, probability), a token possibly several times.

    Args:
        source: of one passage: ``end_bytes``, ``token_ids``, ``token_logprobs`` [S], ``topk_ids``, ``topk_logprobs``
            [S,K], and ``mapping``.
        label, label_end: the target's next token, and where it ends.
    """
    entries = [
        (int(token), math.exp(float(logprob)))
        for token, logprob in zip(source["topk_ids"][row], source["topk_logprobs"][row], strict=True)
    ]
    found = [
        (token, int(source["mapping"][token]), prob)
        for token, prob in entries
        if 0 <= token < len(source["mapping"]) and source["mapping"][token] >= 0
    ]
    if first_wins:
        found = [item for place, item in enumerate(found) if item[1] not in [other[1] for other in found[:place]]]
        kept = sum(prob for *_, prob in found)
        return [(target, prob / kept) for _, target, prob in found]
    share = _share_of_label(source, row, source["end_bytes"][row], label_end) if product else 0.0
    if not share:
        return [(target, prob) for _, target, prob in found]
    first = source["token_ids"][row + 1]
    unkept = min(math.exp(source["token_logprobs"][row]), max(1.0 - sum(prob for _, prob in entries), 0.0))
    return [(label, share * dict(entries).get(first, unkept))] + [
        (target, prob * (1 - share) if token == first else prob) for token, target, prob in found
    ]


def fused_rows(
    token_ids: Sequence[int],
    end_bytes: Sequence[int],
    num_bytes: int,
    sources: Sequence[dict],
    matches: Sequence[Sequence[int]],
    fusion,
    single: int = 0,
    product: bool = False,
    cross_entropy: Sequence[float] | None = None,
    context_bytes: int = 0,
    cuts: Sequence[Sequence[int]] | None = None,
    may_follow: Callable[[int, int], bool] | None = None,
) -> tuple[list[list[tuple[int, float]]], list[float]]:
    """One passage: the (target id, probability) entries of each row, top first, and each source's cross-entropy.

    Args:
        matches: of each source for each row: its row, -1 for none, -2 to teach the label.
        cross_entropy: given where it is not nats per byte.
        cuts: of each source for each row, see ``match_bytes``; None where rows are taken as they are.
        may_follow: whether a target token can stand after another; entries that cannot are left out, the others scaled.
    """
    first_byte = common_beginning([source["end_bytes"] for source in sources], num_bytes, context_bytes)
    by_passage = cross_entropy or [
        nats_per_byte(source["end_bytes"], source["token_logprobs"], num_bytes, first_byte) for source in sources
    ]
    of_label = [
        label_nats(end_bytes, source["end_bytes"], source["token_logprobs"], num_bytes, match)
        for source, match in zip(sources, matches, strict=True)
    ]
    rows = []
    for row, label in enumerate(token_ids[1:]):
        here = [match[row] for match in matches]
        compared = by_passage
        if fusion.granularity == "token":
            size = max(end_bytes[row + 1] - end_bytes[row], 1)
            compared = [nats[row] / size if at >= 0 else math.nan for nats, at in zip(of_label, here, strict=True)]
        elif (
            fusion.rule == "min_ce"
            and fusion.arithmetic == "exact"
            and any(at != -1 and math.isfinite(ce) for at, ce in zip(here, compared, strict=True))
        ):
            compared = [ce if at != -1 else math.nan for at, ce in zip(here, compared, strict=True)]
        weight = weights(compared, fusion, single)
        weight = [value if at != -1 else 0.0 for value, at in zip(weight, here, strict=True)]
        masses: dict[int, float] = {}
        for index, (source, at, value) in enumerate(zip(sources, here, weight, strict=True)):
            if value > 0:
                share = value / sum(weight)
                parts = [(label, 1.0)]
                if cuts is not None:
                    label_ends = (end_bytes[row], end_bytes[row + 1]) if product else None
                    parts = continued_row(source, at, cuts[index][row], label, label_ends)[0]
                elif at >= 0:
                    first_wins = fusion.arithmetic == "fusellm"
                    parts = source_distribution(source, at, label, end_bytes[row + 1], product, first_wins)
                for target, prob in parts:
                    if prob > 0:
                        masses[int(target)] = masses.get(int(target), 0.0) + share * prob
        if may_follow is not None and masses:
            before = sum(masses.values())
            masses = {
                target: mass
                for target, mass in masses.items()
                if target == label or may_follow(int(token_ids[row]), target)
            }
            masses = {target: mass * before / sum(masses.values()) for target, mass in masses.items()}
        scale = max(1.0, sum(masses.values()))
        top = sorted(masses.items(), key=lambda item: (-item[1], item[0]))[: fusion.top_k]
        rows.append([(target, mass / scale) for target, mass in top])
    return [*rows, []], list(by_passage)


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
        elif token == source.pad_id != -1 and target.pad_id != -1:
            found.append(target.pad_id)
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
    piece = tokenizer.backend.id_to_token(token)
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


def cut_token(source, target, method: str, token: int, cut: int) -> int:
    """The target token of a source token without its first bytes."""
    data = source.token_bytes[token][cut:]
    same = [other for other, known in enumerate(target.token_bytes) if known == data]
    pieces = [other for other in same if not _is_byte_piece(target, other)]
    if same or method == "exact":
        return min(pieces or same, default=-1)
    first = target.tokens_within(data)[:1]
    begins = bool(first) and bool(target.token_bytes[first[0]]) and data.startswith(target.token_bytes[first[0]])
    return first[0] if begins else -1


def fused_passage(
    text: str,
    ends_document: bool,
    target,
    sources: Sequence,
    distributions: Sequence[dict[str, np.ndarray]],
    fusion,
    alignment,
    may_follow: Callable[[int, int], bool] | None = None,
) -> dict[str, np.ndarray]:
    """The expected ``records.FUSED_PASSAGE`` values of one passage, aligned by bytes or byte offsets.

    Args:
        target, sources: ``PassageTokenizer`` objects.
        distributions: of each source: ``token_ids``, ``end_bytes`` [S], ``topk_ids`` [S*K], ``topk_logprobs`` [S*K]
            float16, ``token_logprobs`` [S].
        fusion, alignment: the spec's sections.
        may_follow: under ``bytes``, whether a target token can stand after another.
    """
    top_k, num_bytes, method = fusion.top_k, len(text.encode("utf8")), alignment.vocabulary
    token_ids, ends, has_dummy = walk_over_bytes(target, text, target.adds_bos, ends_document)
    plain, matches, cuts = [], [], []
    for source, rows in zip(sources, distributions, strict=True):
        scored = {name: rows[name].tolist() for name in ("token_ids", "end_bytes", "token_logprobs")}
        ranked = {name: rows[name].reshape(-1, top_k).tolist() for name in ("topk_ids", "topk_logprobs")}
        table = mapping(source, target, method)
        plain.append(scored | ranked | {"mapping": table, "token_bytes": source.token_bytes})
        begins_alike = has_dummy == walk_over_bytes(source, text, False, False)[2]
        if alignment.tokens == "byte_offset":
            matches.append(match_end_bytes(ends, scored["end_bytes"], begins_alike))
            continue
        plain[-1]["cuts"] = _cuts(source, target, method, table)
        plain[-1]["longest"] = (
            longest_token(target, source.token_bytes) if method != "exact" else lambda first, more, length: -1
        )
        data = text.encode("utf8")
        pairs = match_bytes(ends, scored["end_bytes"], scored["token_ids"], source.token_bytes, begins_alike, data)
        for row, (at, cut) in enumerate(pairs):
            if cut and continued_row(plain[-1], at, cut)[1] <= alignment.least_kept_share:
                pairs[row] = (-1, 0)
        matches.append([at for at, _ in pairs])
        cuts.append([cut for _, cut in pairs])
    entries, cross_entropy = fused_rows(
        token_ids,
        ends,
        num_bytes,
        plain,
        matches,
        fusion,
        product=alignment.split_tokens == "product",
        cuts=cuts or None,
        may_follow=may_follow,
    )
    ids = np.full((len(ends), top_k), NO_TOKEN, np.int32)
    probs = np.zeros((len(ends), top_k), np.float32)
    for row, found in enumerate(entries):
        for entry, (token, prob) in enumerate(found):
            ids[row, entry], probs[row, entry] = token, prob
    taught = [row for row, found in enumerate(entries) if found]
    return {
        "token_ids": np.array(token_ids, np.int32),
        "fused_ids": ids,
        "fused_probs": probs,
        "is_fused": np.array([bool(found) for found in entries]),
        "win_share": np.array(win_share(cross_entropy, matches, taught, fusion)),
        "cross_entropy": np.array(cross_entropy),
        "covered_rows": np.array([sum(match >= 0 for match in row) for row in matches]),
    }


def by_id(ids: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries of each row [T,K] in the order of their ids: fusion gives them in no order."""
    order = np.argsort(ids, axis=-1, kind="stable")
    return np.take_along_axis(ids, order, -1), np.take_along_axis(probs, order, -1)


def win_share(
    cross_entropy: Sequence[float], matches: Sequence[Sequence[int]], taught: Sequence[int], fusion
) -> list[float]:
    """The share of the taught rows that each source wins under ``min_ce``: of those with a row, the cheapest."""
    won = [0] * len(cross_entropy)
    for row in taught if fusion.rule == "min_ce" else ():
        present = [
            (value, index)
            for index, value in enumerate(cross_entropy)
            if math.isfinite(value) and matches[index][row] != -1
        ]
        won[min(present)[1]] += 1
    return [count / max(len(taught), 1) for count in won]


def _cuts(source, target, method: str, table: Sequence[int]) -> Callable[[int, int], int]:
    return lambda token, cut: cut_token(source, target, method, token, cut) if cut else table[token]


def writes_pair(tokenizer, before: int, token: int, beginnings: Sequence[str]) -> bool:
    """Whether a WordPiece or Unigram model writes two tokens, one after the other, within some word.

    It is asked for the tokens of the letters of both; if WordPiece can write the first one only inside a word, after
    each of some beginnings of words.
    """
    model, prefix = tokenizer.backend.model, getattr(tokenizer.backend.model, "continuing_subword_prefix", "")
    left, right = (tokenizer.backend.id_to_token(each) for each in (before, token))
    letters = left.removeprefix(prefix) + right.removeprefix(prefix)
    words = [beginning + letters for beginning in (beginnings if prefix and left.startswith(prefix) else [""])]
    return any([found.id for found in model.tokenize(word)][-2:] == [before, token] for word in words)


def label_gain(p: Sequence[float], fused: dict[int, float], label: int) -> float:
    """Nats by which 99 % of a fused row and 1 % of the target's beat the target ``p`` [V] in the label's bucket."""
    if label in fused:
        ratio = fused[label] / p[label]
    else:
        rest = sum(mass for token, mass in enumerate(p) if token not in fused)
        ratio = max(0.0, 1.0 - sum(fused.values())) / rest
    return math.log(0.99 * ratio + 0.01)


def passage_weight(gains: Sequence[float], full_gain: float) -> float:
    """The weight of a passage whose counted rows have these gains."""
    return min(max(sum(gains) / len(gains) / full_gain, 0.0), 1.0) if gains else 0.0


def mixture_order(sizes: Sequence[Sequence[int]], weights: Sequence[float], dealt: Sequence[int]) -> list[int]:
    """The domain of each block that a mixture deals out, until the domain whose turn it is has none left.

    Args:
        sizes: bytes of each block of each domain.
        dealt: bytes of each domain that were dealt out before.
    """
    order: list[int] = []
    while True:
        taken = [order.count(domain) for domain in range(len(sizes))]
        own = [dealt[domain] + sum(sizes[domain][: taken[domain]]) for domain in range(len(sizes))]
        whole = sum(Fraction(weight) for weight in weights)
        lacking = [Fraction(weight) / whole * sum(own) - mine for weight, mine in zip(weights, own, strict=True)]
        turn = lacking.index(max(lacking))
        if taken[turn] == len(sizes[turn]):
            return order
        order.append(turn)
