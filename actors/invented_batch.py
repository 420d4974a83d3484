"""A batch that no source has scored, of the types of one that sources have: kernels are compiled by it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from engine.records import PASSAGE, ragged, schema, source_columns
from engine.text.tokenization import PassageTokenizer

#: Several tokens in every vocabulary, so that there are rows with a label.
TEXT = "a few words to compile by"


def invented_batch(sources: Mapping[str, PassageTokenizer], top_k: int) -> pa.Table:
    """One passage (``records.PASSAGE``) with rows of all sources, of K entries alike.

    Raises:
        TokenizerError: a source's tokens do not add up to the text.
    """
    passage = {
        "passage_id": "0/invented:0:0",
        "text": TEXT,
        "num_bytes": len(TEXT),
        "context_bytes": 0,
        "ends_document": True,
        "messages": [],
    }
    batch = pa.table({name: [value] for name, value in passage.items()}, schema(PASSAGE))
    for name, tokenizer in sources.items():
        token_ids, end_bytes = tokenizer.encode_with_roles(TEXT, tokenizer.adds_bos, ends_document=False)
        rows = len(token_ids)
        ids = np.tile(np.arange(top_k) % tokenizer.vocab_size, rows)
        logprobs = np.full(rows * top_k, -np.log(2 * top_k))
        values = (token_ids, end_bytes, ids, logprobs, np.full(rows, -1.0))
        for column, value in zip(source_columns(name), values, strict=True):
            batch = batch.append_column(column.name, ragged([value], column.dtype.value_type))
    return batch
