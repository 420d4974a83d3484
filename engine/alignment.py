"""Token alignment: which source row describes the same situation as a target row.

Both have consumed the same UTF-8 bytes of the same passage, and nothing else makes them alike. A target row without
such a source row is not fused; a one-hot of some token would only teach what the causal LM loss teaches already.
"""

from __future__ import annotations

import numpy as np

from engine import kernels


def match_end_bytes(
    target_ends: np.ndarray,
    target_offsets: np.ndarray,
    source_ends: np.ndarray,
    source_offsets: np.ndarray,
    begins_alike: np.ndarray,
) -> np.ndarray:
    """The source row of each target row, for a batch of passages.

    Args:
        target_ends: int32 [sum T], bytes consumed after each target token, ascending within a passage.
        target_offsets: int64 [B+1], where each passage begins in ``target_ends``.
        source_ends, source_offsets: the same for the source's rows.
        begins_alike: bool [B], whether both tokenizers put a dummy prefix before the passage, or neither does.

    Returns:
        int32 [sum T]: the row, counted from the passage's first, or -1.

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
