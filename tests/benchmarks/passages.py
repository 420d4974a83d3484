"""Real text of a corpus, cut into passages and scored by random sources, for the benchmarks of alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.corpus.documents import Document, read_documents
from engine.corpus.files import CorpusUnit, units_of
from engine.method.alignment import SourceAlignment
from engine.method.rows import ScoredRows, SourceRows, TargetRows
from engine.spec import AlignmentSpec
from engine.text.tokenization import PassageTokenizer
from tests.support import real_tokenizers

QUICKSTART = sorted(real_tokenizers.CORPUS.glob("*.jsonl"))


def documents(paths: list[Path]) -> list[str]:
    """The documents of some files."""
    units: list[CorpusUnit] = [unit for path in paths for unit in units_of(str(path))]
    found = [document for unit in units for document in read_documents(unit, "text")]
    return [document.text for document in found if isinstance(document, Document)]


def windows(texts: list[str], tokenizer: PassageTokenizer, tokens: int, count: int) -> list[str]:
    """``count`` runs of text that have about ``tokens`` tokens, from joined documents, cut before spaces."""
    text = "\n\n".join(texts)
    found, start = [], 0
    while len(found) < count:
        piece = (text[start:] + text)[: tokens * 8]
        ends = tokenizer.encode(piece)[1]
        cut = len(piece.encode("utf8")[: ends[min(tokens, len(ends)) - 3]].decode("utf8", errors="ignore"))
        space = piece.rfind(" ", cut // 2, cut)
        cut = space if space > 0 else cut
        found.append(piece[:cut])
        start = (start + cut) % len(text)
    return found


def target_rows(target: PassageTokenizer, texts: list[str]) -> TargetRows:
    """The target's tokens of some passages."""
    encoded = [target.encode_with_roles(text, add_bos=True, ends_document=True) for text in texts]
    return TargetRows(
        token_ids=np.concatenate([ids for ids, _ in encoded]),
        end_bytes=np.concatenate([ends for _, ends in encoded]),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in encoded)], dtype=np.int64),
        num_bytes=np.array([len(text.encode("utf8")) for text in texts], np.int32),
        first_bytes=np.zeros(len(texts), np.int32),
        ends_document=np.ones(len(texts), bool),
    )


#: Sets of kept tokens that rows are given.
NUM_KEPT_SETS = 256


class Scored:
    """One source's rows for some passages: its real tokens, and for each a made-up distribution over real next tokens.

    The kept tokens of a row are one of some sets drawn by frequency in the text, so that they meet on target tokens as
    real ones do, and their probabilities fall as a geometric series.
    """

    def __init__(
        self,
        source: PassageTokenizer,
        target: PassageTokenizer,
        texts: list[str],
        top_k: int,
        random: np.random.Generator,
    ):
        encoded = [source.encode_with_roles(text, source.bos_id >= 0, True) for text in texts]
        self.token_ids = np.concatenate([ids[:-1] for ids, _ in encoded])
        self.end_bytes = np.concatenate([ends[:-1] for _, ends in encoded])
        self.offsets = np.cumsum([0, *(len(ids) - 1 for ids, _ in encoded)], dtype=np.int64)
        rows = len(self.token_ids)
        self.topk_ids = _kept_tokens(self.token_ids, top_k, random)[random.integers(0, NUM_KEPT_SETS, rows)]
        logits = -0.15 * np.arange(top_k) + random.normal(0, 0.02, (rows, top_k))
        logprobs = np.sort(logits, axis=1)[:, ::-1] - np.logaddexp.reduce(logits, axis=1, keepdims=True) - 0.1
        self.topk_logprobs = np.ascontiguousarray(logprobs.astype(np.float16))
        self.token_logprobs = random.normal(-2, 1, rows).astype(np.float32)
        self._alignments = {
            tokens: SourceAlignment(source, target, AlignmentSpec(tokens=tokens), [], conversations=False)
            for tokens in ("byte_offset", "bytes")
        }
        self.mapping = self._alignments["byte_offset"].mapping

    def aligned(self, texts: list[str], target: TargetRows, tokens: str = "byte_offset") -> SourceRows:
        """The rows, aligned by byte offsets or bytes."""
        rows = ScoredRows(
            self.offsets, self.token_ids, self.end_bytes, self.topk_ids, self.topk_logprobs, self.token_logprobs
        )
        return self._alignments[tokens].align(texts, target, rows)


def _kept_tokens(token_ids: np.ndarray, top_k: int, random: np.random.Generator) -> np.ndarray:
    """Sets of distinct tokens, int32 [NUM_KEPT_SETS, K], by frequency without replacement."""
    tokens, counts = np.unique(token_ids, return_counts=True)
    keys = np.log(counts) + random.gumbel(size=(NUM_KEPT_SETS, len(tokens)))
    return tokens[np.argsort(-keys, axis=1)[:, :top_k]].astype(np.int32)
