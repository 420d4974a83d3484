"""Vocabulary mapping: which target token stands for a source token.

``exact``: the same bytes. ``prefix``: the same bytes, else the first target token of the source token's own bytes,
which is what the target model would have to say first on the way to that token. Special tokens map by role, never by
string. What maps nowhere goes to the rest bucket.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid

import fsspec
import numpy as np

from engine.tokenization import NO_ROLE, PassageTokenizer

#: Marks a source token that has no target token.
UNMAPPED = -1

#: Part of the cache key; rises when tables are built differently.
FORMAT_VERSION = 2


def build_mapping(source: PassageTokenizer, target: PassageTokenizer, method: str) -> np.ndarray:
    """The target token of each source token.

    Args:
        method: ``exact`` or ``prefix``.

    Returns:
        int32 [V of the source]: a target id or ``UNMAPPED``. Of several target tokens with the same bytes the one that
        the target's tokenizer would use (``PassageTokenizer.id_of_bytes``).
    """
    mapping = np.full(source.vocab_size, UNMAPPED, np.int32)
    for token, data in enumerate(source.token_bytes):
        if data:
            mapping[token] = target.id_of_bytes.get(data, UNMAPPED)
            if mapping[token] == UNMAPPED and method == "prefix":
                mapping[token] = _first_token(target, data)
    for source_role, target_role in ((source.bos_id, target.bos_id), (source.eos_id, target.eos_id)):
        if source_role != NO_ROLE and target_role != NO_ROLE:
            mapping[source_role] = target_role
    return mapping


def load_or_build(source: PassageTokenizer, target: PassageTokenizer, method: str, cache_dir: str) -> np.ndarray:
    """``build_mapping``, cached at an fsspec path under a hash of both tokenizers.

    Several processes may build the same table at once: each writes a file of its own and moves it into place.
    A cached file that cannot be read, or holds what cannot be a mapping of these two, is built again.
    """
    key = hashlib.sha256(f"{FORMAT_VERSION} {method} {source.fingerprint} {target.fingerprint}".encode()).hexdigest()
    filesystem, folder = fsspec.core.url_to_fs(cache_dir)
    path = os.path.join(folder, f"mapping-{key[:32]}.npy")
    cached = _read(filesystem, path)
    if cached is not None and _is_mapping(cached, source.vocab_size, target.vocab_size):
        return cached
    mapping = build_mapping(source, target, method)
    buffer = io.BytesIO()
    np.save(buffer, mapping)
    filesystem.makedirs(folder, exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}"
    filesystem.pipe_file(temporary, buffer.getvalue())
    filesystem.mv(temporary, path)
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
