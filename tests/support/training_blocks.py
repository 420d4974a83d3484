"""Training blocks with random content, as the packer makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.blocks.arrangement import best_fit
from engine.blocks.packing import Packer
from engine.corpus.domains import DOMAIN_RANGE
from engine.history.ledger import Cursor, Entry
from engine.records import FUSED_PASSAGE, NO_TOKEN, TRAINING_BLOCK, flat_values, ragged, rows_of, schema

LENGTH, TOP_K, VOCABULARY = 32, 3, 400


def training_blocks(seed: int, lengths: Sequence[int] = (20, 30, 12, 25, 16, 9)) -> pa.Table:
    """Blocks of ``LENGTH`` tokens whose fused rows are distributions: distinct ids, some missing, a rest."""
    random = np.random.default_rng(seed)
    rows = [_row_set(random, length) for length in lengths]
    columns = {
        "passage_id": pa.array([f"0/a:{seed}:{index}" for index in range(len(rows))]),
        "num_bytes": pa.array([3 * length for length in lengths], pa.int32()),
        "token_ids": ragged([random.integers(0, VOCABULARY, length) for length in lengths], pa.int32()),
        "fused_ids": ragged([ids for ids, _, _ in rows], pa.int32()),
        "fused_probs": ragged([probs for _, probs, _ in rows], pa.float16()),
        "is_fused": ragged([fused for _, _, fused in rows], pa.bool_()),
        "is_learned": ragged([np.arange(1, length + 1) < length for length in lengths], pa.bool_()),
        "win_share": ragged([random.random(2).astype(np.float32) for _ in rows], pa.float32()),
        "cross_entropy": ragged([random.random(2) for _ in rows], pa.float32()),
        "covered_rows": ragged([random.integers(0, 9, 2) for _ in rows], pa.int32()),
        "inspection": pa.array([""] * len(rows), pa.large_string()),
    }
    places = np.empty(len(rows), np.int32)
    for block, items in enumerate(best_fit(lengths, LENGTH)):
        places[items] = block
    entries = [
        Entry(seed, block, block + 1, Cursor(block + 1, 0, 0, 0, 0)).numbers() for block in range(max(places) + 1)
    ]
    return Packer(LENGTH, TOP_K)(pa.table(columns, schema(FUSED_PASSAGE)), places, np.array(entries))


def of_domain(table: pa.Table, domain: int) -> pa.Table:
    """The same blocks, of shards of a domain."""
    entries = [entry.copy() for entry in rows_of(table["ledger_entry"])]
    for entry in entries:
        entry[0] = domain * DOMAIN_RANGE + 7
    place = table.column_names.index("ledger_entry")
    return table.set_column(place, "ledger_entry", ragged(entries, pa.int64()))


def repeated(table: pa.Table) -> pa.Table:
    """The same blocks, read in the second pass over the corpus."""
    ids = [[name.replace("0/", "1/", 1) for name in names] for names in table["passage_ids"].to_pylist()]
    place, field = table.column_names.index("passage_ids"), table.schema.field("passage_ids")
    return table.set_column(place, field, pa.array(ids, field.type))


def with_bad_probability(table: pa.Table) -> pa.Table:
    """The same blocks with one NaN among the probabilities of a fused row."""
    probs = flat_values(table["fused_probs"])[0].copy()
    probs[flat_values(table["fused_ids"])[0].argmax()] = np.nan
    rows = list(probs.reshape(len(table), -1))
    return table.set_column(
        table.column_names.index("fused_probs"), schema(TRAINING_BLOCK).field("fused_probs"), ragged(rows, pa.float16())
    )


def with_known_labels(table: pa.Table) -> pa.Table:
    """The same blocks with fused rows that say what follows, all of their mass on it."""
    labels = np.roll(flat_values(table["input_ids"])[0].reshape(-1, LENGTH), -1, axis=1)
    ids = np.full((*labels.shape, TOP_K), NO_TOKEN, np.int32)
    ids[..., 0] = labels
    fields = schema(TRAINING_BLOCK)
    for name, column in {"fused_ids": ids, "fused_probs": (ids != NO_TOKEN).astype(np.float16)}.items():
        rows = ragged(list(column.reshape(len(table), -1)), fields.field(name).type.value_type)
        table = table.set_column(table.column_names.index(name), fields.field(name), rows)
    return table


def _row_set(random: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.stack([random.choice(VOCABULARY, TOP_K, replace=False) for _ in range(length)])
    probs = random.random((length, TOP_K))
    probs *= random.uniform(0.5, 1.0, (length, 1)) / probs.sum(-1, keepdims=True)
    fused = random.random(length) < 0.8
    fused[-1] = False
    short = random.random(length) < 0.3
    ids[short, -1], probs[short, -1] = NO_TOKEN, 0.0
    ids[~fused], probs[~fused] = NO_TOKEN, 0.0
    return ids, probs, fused
