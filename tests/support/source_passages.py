"""Passages for a source model, and the spec section of a source with random weights."""

import pyarrow as pa

from engine.corpus.passages import Passage, table_of
from engine.spec import SourceModelSpec

TEXTS = ["The cat sat on the mat.", "x", "def main():\n\treturn 🙂", "Deich und Zéphyr"]
TOP_K = 5


def section(checkpoint: str, **fields) -> SourceModelSpec:
    """A source with random weights and without a probe, which would refuse it."""
    fields = {"probe": "off"} | fields
    return SourceModelSpec(name="one", checkpoint=checkpoint, backend="transformers", dtype="float32", **fields)


def passages(texts: list[str]) -> pa.Table:
    sizes = [len(text.encode()) for text in texts]
    passages = zip(texts, sizes, strict=True)
    return table_of([Passage(f"0/a:{row}:0", text, size, 0, True) for row, (text, size) in enumerate(passages)])
