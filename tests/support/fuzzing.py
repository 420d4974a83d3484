"""Random passages of all scripts through tokenization, alignment, mapping and fusion with real tokenizers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.aligner import Aligner
from actors.monitor import NoMeter
from engine.errors import TokenizerError
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, ragged, rows_of, schema, source_columns
from engine.spec import AlignmentSpec, FusionRuleSpec
from engine.text.tokenization import PassageTokenizer
from tests.support import real_tokenizers

#: First and last code points of the planes' inhabited parts, and of rare and hard characters.
RANGES = [
    (0x00, 0x7F), (0x20, 0x7E), (0x20, 0x7E), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF),
    (0x900, 0x97F), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2580, 0x259F), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFB06), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x10000, 0x1FFFF),
    (0x1F300, 0x1FAFF), (0x20000, 0x2FFFF), (0x30000, 0x3FFFF), (0xE0000, 0xE01EF), (0xF0000, 0x10FFFD),
]  # fmt: skip
PIECES = [
    " ", "  ", "     ", "\t", "\r\n", "\n\n", "\x00", "e\u0301", "\u1112\u1161\u11ab", "👩‍👩‍👧‍👦", "🇩🇪", "the", " The",
    "</s>", "<s>", "<unk>", "<|im_end|>", "[INST]", "2024", "3.14", "don't", "naïve", "日本語", "עברית",
    "\ufffd", "\ufeff",
]  # fmt: skip

METHODS = [
    (FusionRuleSpec(rule="min_ce", top_k=8), AlignmentSpec()),
    (
        FusionRuleSpec(top_k=8, rule="avg_ce", granularity="token"),
        AlignmentSpec(tokens="byte_offset"),
    ),
    (FusionRuleSpec(top_k=8, rule="uniform"), AlignmentSpec(vocabulary="exact")),
    (FusionRuleSpec(rule="min_ce", top_k=8, arithmetic="fusellm"), AlignmentSpec(tokens="exact", vocabulary="exact")),
]


def texts(seed: int) -> Iterator[str]:
    """Yield random texts of 1 to 24 parts without end; the same seed gives the same texts."""
    draw = random.Random(seed)
    while True:
        parts = []
        for _ in range(draw.randint(1, 24)):
            if draw.random() < 0.4:
                parts.append(draw.choice(PIECES))
            else:
                first, last = draw.choice(RANGES)
                parts.append("".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6))))
        yield "".join(parts)


def checkpoints(folder: Path) -> dict[str, str]:
    """Save all real tokenizers as checkpoint folders; name to path."""
    found = {}
    for name in real_tokenizers.NAMES:
        path = folder / name.replace(" ", "-")
        path.mkdir()
        if name == "Mistral Tekken":
            found[name] = real_tokenizers.mistral_tekken_checkpoint(path)
        else:
            real_tokenizers.MAKERS[name]().save_pretrained(path)
            found[name] = str(path)
    return found


class Fuzzer:
    """One target, random sources, and the four methods in turn."""

    def __init__(self, folders: dict[str, str], target: str, sources: Sequence[str], cache_dir: str, seed: int):
        self._random = np.random.default_rng(seed)
        checkpoints = {name.replace(" ", "-"): Checkpoint(folders[name]) for name in sources}
        self._target = PassageTokenizer.load(Checkpoint(folders[target]))
        self._sources = {name: PassageTokenizer.load(checkpoint) for name, checkpoint in checkpoints.items()}
        self._aligners = [
            Aligner(
                Checkpoint(folders[target]),
                list(checkpoints.items()),
                fusion,
                alignment.model_copy(update={"cache_dir": cache_dir}),
                [],
                NoMeter(),
            )
            for fusion, alignment in METHODS
        ]
        self.refused = 0
        self.passages = 0

    def run(self, batch: Sequence[str]) -> None:
        """Fuse a batch with every method, check its numbers, and count refused passages."""
        kept = [text for text in batch if self._is_taken(text)]
        self.refused += len(batch) - len(kept)
        self.passages += len(kept)
        table = self._scored(kept)
        for aligner, (fusion, _) in zip(self._aligners, METHODS, strict=True):
            check_sound_numbers(aligner(table), fusion.top_k, self._target.vocab_size)

    def _is_taken(self, text: str) -> bool:
        try:
            for tokenizer in (self._target, *self._sources.values()):
                tokenizer.encode(text)
        except TokenizerError as error:
            assert "no token at all" in str(error) or "loses text" in str(error)
            return False
        return True

    def _scored(self, batch: Sequence[str]) -> pa.Table:
        rows = {
            "passage_id": [str(row) for row in range(len(batch))],
            "text": batch,
            "num_bytes": [len(text.encode("utf8")) for text in batch],
            "context_bytes": [0] * len(batch),
            "ends_document": [bool(row % 2) for row in range(len(batch))],
            "messages": [[]] * len(batch),
        }
        table = pa.table(rows, schema(PASSAGE))
        for name, tokenizer in self._sources.items():
            encoded = [tokenizer.encode_with_roles(text, tokenizer.adds_bos, True) for text in batch]
            columns = zip(
                *(self._rows(ids[:-1], ends[:-1], tokenizer.vocab_size) for ids, ends in encoded), strict=True
            )
            for column, values in zip(source_columns(name), columns, strict=True):
                table = table.append_column(column.name, ragged(values, column.dtype.value_type))
        return table

    def _rows(self, ids: np.ndarray, ends: np.ndarray, vocabulary: int) -> tuple[np.ndarray, ...]:
        """A source's columns of one passage; some kept entries are -inf, some ids lie beyond the tokenizer's."""
        top_k = METHODS[0][0].top_k
        topk_ids = self._random.integers(0, vocabulary + 3, (len(ids), top_k))
        shares = self._random.dirichlet(np.full(top_k + 1, 0.3), len(ids))[:, :top_k]
        with np.errstate(divide="ignore"):
            logprobs = np.log(np.where(shares < 1e-9, 0.0, shares))
        return ids, ends, topk_ids, logprobs, self._random.normal(-3, 2, len(ids)).clip(max=0)


def check_sound_numbers(table: pa.Table, top_k: int, vocabulary: int) -> None:
    """Check that each passage has its rows, probabilities lie in [0, 1] and sum to at most 1, ids are the target's."""
    names = ("token_ids", "fused_ids", "fused_probs", "is_fused", "cross_entropy")
    columns = [rows_of(table[name]) for name in names]
    assert all(len(column) == len(table) for column in columns)
    for tokens, flat_ids, flat_probs, fused, cross_entropy in zip(*columns, strict=True):
        ids, probs = flat_ids.reshape(-1, top_k), flat_probs.reshape(-1, top_k).astype(np.float64)
        assert len(tokens) == len(ids) == len(probs) == len(fused) > 0
        assert np.isfinite(probs).all()
        assert ((probs >= 0) & (probs <= 1)).all()
        assert (probs.sum(axis=1) <= 1 + 2**-9).all()
        assert ((ids >= -1) & (ids < vocabulary)).all()
        assert ((ids >= 0) | (probs == 0)).all()
        assert not fused[-1]
        assert (fused == (ids[:, 0] >= 0)).all()
        assert not np.isinf(cross_entropy).any()
