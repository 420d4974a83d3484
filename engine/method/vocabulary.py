"""Vocabulary mapping: which target token stands for a source token.

``exact``: the same bytes. ``prefix``: the same bytes, else the first target token of the source token's own bytes,
which is what the target model would have to say first on the way to that token. ``min_edit``: the nearest vocabulary
string (FuseLLM, section 3.2). ``statistical``: the target token that begins most often where the source token begins,
counted on a sample (FuseChat's idea), the same bytes where the sample has none. Special tokens map by role, never by
string. What maps nowhere goes to the rest bucket.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Sequence

import fsspec
import numpy as np

from engine.method.edit_distance import nearest
from engine.text.tokenization import NO_ROLE, PassageTokenizer

#: Marks a source token that has no target token.
UNMAPPED = -1

#: Part of the cache key; rises when tables are built differently.
FORMAT_VERSION = 3


def build_mapping(
    source: PassageTokenizer, target: PassageTokenizer, method: str, sample: Sequence[str] = ()
) -> np.ndarray:
    """The target token of each source token.

    Args:
        method: ``exact``, ``prefix``, ``min_edit`` or ``statistical``.
        sample: passages that ``statistical`` counts on.

    Returns:
        int32 [V of the source]: a target id or ``UNMAPPED``. Of several target tokens with the same bytes the one that
        the target's tokenizer would use (``PassageTokenizer.id_of_bytes``).
    """
    mapping = _nearest_pieces(source, target) if method == "min_edit" else _same_bytes(source, target)
    if method == "prefix":
        for token, data in enumerate(source.token_bytes):
            if data and mapping[token] == UNMAPPED:
                mapping[token] = _first_token(target, data)
    elif method == "statistical":
        tokens, partners = most_frequent(*count_beginnings(source, target, sample))
        mapping[tokens] = partners
    return _with_roles(mapping, source, target)


def same_pieces(source: PassageTokenizer, target: PassageTokenizer) -> np.ndarray:
    """The target token that is written with the same string, int32 [V of the source] or ``UNMAPPED``."""
    target_ids = {piece: token for token, piece in reversed(list(enumerate(target.pieces))) if piece}
    return np.array([target_ids.get(piece, UNMAPPED) for piece in source.pieces], np.int32)


def count_beginnings(
    source: PassageTokenizer, target: PassageTokenizer, passages: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often a source token and a target token begin at the same byte of a passage.

    Returns:
        source ids, target ids and counts, int64 [number of pairs]: only pairs that occur, in ascending order.
    """
    keys = [np.empty(0, np.int64)]
    for passage in passages:
        source_ids, source_starts = _beginnings(source, passage)
        target_ids, target_starts = _beginnings(target, passage)
        _, at_source, at_target = np.intersect1d(source_starts, target_starts, return_indices=True)
        keys.append(source_ids[at_source].astype(np.int64) * target.vocab_size + target_ids[at_target])
    pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
    return pairs // target.vocab_size, pairs % target.vocab_size, counts


def most_frequent(tokens: np.ndarray, partners: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each token that occurs, and its most frequent partner, ties to the lowest id; see ``count_beginnings``."""
    order = np.lexsort((partners, -counts, tokens))
    tokens, first = np.unique(tokens[order], return_index=True)
    return tokens, partners[order][first]


def load_or_build(
    source: PassageTokenizer, target: PassageTokenizer, method: str, cache_dir: str, sample: Sequence[str] = ()
) -> np.ndarray:
    """``build_mapping``, cached at an fsspec path under a hash of both tokenizers (and of the sample, if it counts)."""
    key = hashlib.sha256(f"{FORMAT_VERSION} {method} {source.fingerprint} {target.fingerprint}".encode())
    for passage in sample if method == "statistical" else ():
        key.update(hashlib.sha256(passage.encode("utf8")).digest())
    return _load_or_build(
        cache_dir,
        f"mapping-{key.hexdigest()[:32]}.npy",
        lambda: build_mapping(source, target, method, sample),
        lambda table: _is_mapping(table, source.vocab_size, target.vocab_size),
    )


def cut_starts(source: PassageTokenizer) -> np.ndarray:
    """Where the target tokens of each source token begin in ``build_cuts``, int64 [V+1]: one for each of its bytes."""
    return np.cumsum([0, *(max(len(data or b""), 1) for data in source.token_bytes)], dtype=np.int64)


def build_cuts(source: PassageTokenizer, target: PassageTokenizer, method: str) -> np.ndarray:
    """The target token of what is left of each source token when bytes are cut off its beginning.

    Args:
        method: ``exact`` takes the target token of the same bytes; the others that, or else the first token that the
            target's tokenizer makes of these bytes.

    Returns:
        int32 [sum of bytes of the source's tokens]: a target id or ``UNMAPPED``; see ``cut_starts``. The places where
        nothing is cut off are ``UNMAPPED`` too: there the vocabulary mapping counts.
    """
    known: dict[bytes, int] = {}
    starts = cut_starts(source)
    found = np.full(starts[-1], UNMAPPED, np.int32)
    for token, data in enumerate(source.token_bytes):
        for cut in range(1, len(data or b"")):
            left = data[cut:]
            if left not in known:
                same = target.id_of_bytes.get(left, UNMAPPED)
                known[left] = same if same != UNMAPPED or method == "exact" else _first_token(target, left)
            found[starts[token] + cut] = known[left]
    return found


def load_or_build_cuts(source: PassageTokenizer, target: PassageTokenizer, method: str, cache_dir: str) -> np.ndarray:
    """``build_cuts``, cached as ``load_or_build`` does."""
    kind = "exact" if method == "exact" else "prefix"
    key = hashlib.sha256(f"{FORMAT_VERSION} cuts {kind} {source.fingerprint} {target.fingerprint}".encode())
    size = int(cut_starts(source)[-1])
    return _load_or_build(
        cache_dir,
        f"cuts-{key.hexdigest()[:32]}.npy",
        lambda: build_cuts(source, target, kind),
        lambda table: _is_mapping(table, size, target.vocab_size),
    )


def _load_or_build(
    cache_dir: str, name: str, build: Callable[[], np.ndarray], is_right: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """A table from the cache, or built and put there.

    Several processes may build the same table at once: each writes a file of its own and moves it into place.
    A cached file that cannot be read, or holds what cannot be such a table, is built again.
    """
    filesystem, folder = fsspec.core.url_to_fs(cache_dir)
    path = os.path.join(folder, name)
    cached = _read(filesystem, path)
    if cached is not None and is_right(cached):
        return cached
    table = build()
    buffer = io.BytesIO()
    np.save(buffer, table)
    filesystem.makedirs(folder, exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}"
    filesystem.pipe_file(temporary, buffer.getvalue())
    filesystem.mv(temporary, path)
    return table


def with_turn_end(mapping: np.ndarray, source: PassageTokenizer, target: PassageTokenizer) -> np.ndarray:
    """The mapping for conversations: the token that ends a turn means the turn's end, even if it is also EOS."""
    if NO_ROLE in (source.turn_end_id, target.turn_end_id):
        return mapping
    mapping = mapping.copy()
    mapping[source.turn_end_id] = target.turn_end_id
    return mapping


def _same_bytes(source: PassageTokenizer, target: PassageTokenizer) -> np.ndarray:
    found = [target.id_of_bytes.get(data, UNMAPPED) if data else UNMAPPED for data in source.token_bytes]
    return np.array(found, np.int32)


def _nearest_pieces(source: PassageTokenizer, target: PassageTokenizer) -> np.ndarray:
    """The nearest target string of each source token that stands for text; ties to the lowest id."""
    mapping = np.full(source.vocab_size, UNMAPPED, np.int32)
    tokens = [token for token, data in enumerate(source.token_bytes) if data]
    candidates = np.array([token for token, data in enumerate(target.token_bytes) if data], np.int32)
    indices, _ = nearest(
        [source.pieces[token] for token in tokens], [target.pieces[token] for token in candidates], os.cpu_count() or 1
    )
    mapping[tokens] = candidates[indices]
    return mapping


def _beginnings(tokenizer: PassageTokenizer, passage: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the tokens that stand for bytes of a passage, and where each begins."""
    ids, ends = tokenizer.encode(passage)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return ids[ends > starts], starts[ends > starts]


def _with_roles(mapping: np.ndarray, source: PassageTokenizer, target: PassageTokenizer) -> np.ndarray:
    """Special tokens by role. One id may have several roles: that of EOS counts most, that of padding least."""
    roles = (
        (source.pad_id, target.pad_id),
        (source.turn_end_id, target.turn_end_id),
        (source.bos_id, target.bos_id),
        (source.eos_id, target.eos_id),
    )
    for source_role, target_role in roles:
        if source_role != NO_ROLE and target_role != NO_ROLE:
            mapping[source_role] = target_role
    return mapping


def _first_token(target: PassageTokenizer, data: bytes) -> int:
    """The first target token of ``data``, if its bytes do begin ``data``."""
    tokens = target.tokens_within(data)
    if not tokens:
        return UNMAPPED
    found = target.token_bytes[tokens[0]]
    return tokens[0] if found and data.startswith(found) else UNMAPPED


def _is_mapping(table: np.ndarray, source_size: int, target_size: int) -> bool:
    """Kernels index by these ids without looking, so that none may lie outside the target's vocabulary."""
    if table.dtype != np.int32 or table.shape != (source_size,):
        return False
    return bool((table >= UNMAPPED).all() and (table < target_size).all())


def _read(filesystem: fsspec.AbstractFileSystem, path: str) -> np.ndarray | None:
    try:
        return np.load(io.BytesIO(filesystem.cat_file(path)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
