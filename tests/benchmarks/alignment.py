"""Alignment, mapping and fusion on one core, and the paper's alignment by edits.

    python -m tests.benchmarks.alignment [CORPUS_FILE ...]

Figures: ``align_map_fuse_512``, ``_2048``, ``_512_k64`` and ``_512_k128`` (and ``_avg_ce`` of each): three sources of
real tokenizers by byte offsets, against the plain Python twin; ``_bytes`` of each: conditioned on bytes, against byte
offsets. Tokenization is not in them, it is the stage's other half.
``memory_per_token``: peak of what these allocate. ``min_edit_dp``: against a Python loop over rapidfuzz's distances.
``min_edit_table``: the nearest strings of a whole vocabulary, against ``rapidfuzz.process.cdist`` on as many cores.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from functools import cached_property
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from engine.method.canonical import CanonicalPairs
from engine.method.edit_distance import align_by_edits
from engine.method.fusion import fuse
from engine.method.rows import FusedRows, TargetRows
from engine.spec import FusionRuleSpec
from engine.text.tokenization import PassageTokenizer
from tests import oracles
from tests.benchmarks.figures import best_seconds, say
from tests.benchmarks.passages import QUICKSTART, Scored, documents, target_rows, windows
from tests.support import real_tokenizers

TARGET, SOURCES = "Mistral SentencePiece", ["SmolLM2", "Mistral Tekken", "byte-level"]
BATCH_TOKENS = 32_768


def main(paths: list[Path]) -> None:
    """All figures, on the text of ``paths``."""
    texts = documents(paths)
    on = ", ".join(path.name for path in paths)
    for window, top_k, name in ((512, 10, "512"), (2048, 10, "2048"), (512, 64, "512_k64"), (512, 128, "512_k128")):
        align_map_fuse(texts, window, top_k, name, on)
    memory_per_token(texts, on)
    for window in (512, 2048):
        min_edit_dp(texts, window, on)
    min_edit_table("SmolLM2", "Mistral SentencePiece", "min_edit_table")
    min_edit_table("Mistral Tekken", "SmolLM2", "min_edit_table_131k")


class Work:
    """A batch of passages with three scored sources."""

    def __init__(self, texts: list[str], window: int, top_k: int, passages: int | None = None):
        random = np.random.default_rng(0)
        self.target = real_tokenizers.load(TARGET)
        self.texts = windows(texts, self.target, window, passages or BATCH_TOKENS // window)
        self.rows: TargetRows = target_rows(self.target, self.texts)
        self.sources = [Scored(real_tokenizers.load(name), self.target, self.texts, top_k, random) for name in SOURCES]

    @property
    def tokens(self) -> int:
        return len(self.rows.token_ids)

    @cached_property
    def canonical(self) -> CanonicalPairs:
        return CanonicalPairs(self.target)

    def run(self, fusion: FusionRuleSpec, tokens: str = "byte_offset") -> FusedRows:
        aligned = [source.aligned(self.texts, self.rows, tokens) for source in self.sources]
        canonical = self.canonical if tokens == "bytes" else None
        return fuse(self.rows, aligned, fusion, self.target.vocab_size, product=True, canonical=canonical)

    def run_twin(self, fusion: FusionRuleSpec, passage: int) -> None:
        """The same for one passage in plain Python."""
        rows = self.rows
        where = slice(rows.offsets[passage], rows.offsets[passage + 1])
        ends = rows.end_bytes[where].tolist()
        plain, matches = [], []
        for source in self.sources:
            inside = slice(source.offsets[passage], source.offsets[passage + 1])
            names = ("token_ids", "end_bytes", "token_logprobs", "topk_ids", "topk_logprobs")
            plain.append({name: getattr(source, name)[inside].tolist() for name in names} | {"mapping": source.mapping})
            matches.append(oracles.match_end_bytes(ends, plain[-1]["end_bytes"], True))
        tokens, num_bytes = rows.token_ids[where].tolist(), int(rows.num_bytes[passage])
        oracles.fused_rows(tokens, ends, num_bytes, plain, matches, fusion, product=True)


def align_map_fuse(texts: list[str], window: int, top_k: int, name: str, on: str) -> None:
    """Target tokens a second, with the memory that flows for each."""
    work = Work(texts, window, top_k)
    passage_tokens = int(work.rows.offsets[1])
    read = sum(source.topk_ids.nbytes + source.topk_logprobs.nbytes for source in work.sources) / work.tokens
    against: dict[str, tuple[tuple[str, float], float]] = {}
    for tokens, rule in itertools.product(("byte_offset", "bytes"), ("min_ce", "avg_ce")):
        fusion = FusionRuleSpec(rule=rule, top_k=top_k)
        rate = work.tokens / best_seconds(lambda fusion=fusion, tokens=tokens: work.run(fusion, tokens), at_least=2.0)
        if tokens == "byte_offset":
            twin = passage_tokens / best_seconds(
                lambda fusion=fusion: work.run_twin(fusion, 0), at_least=0, most_rounds=1
            )
            against[rule] = ("plain Python twin", rate / twin), rate
        what, ratio = against[rule][0] if tokens == "byte_offset" else ("byte_offset", rate / against[rule][1])
        aligned = [source.aligned(work.texts, work.rows, tokens) for source in work.sources]
        say(
            "_".join(["align_map_fuse", name, *([rule] * (rule != "min_ce")), *([tokens] * (tokens == "bytes"))]),
            rate,
            "target tokens/s",
            what,
            ratio,
            corpus=on,
            target=TARGET,
            sources=SOURCES,
            top_k=top_k,
            window=window,
            coverage=[round(float((rows.match >= 0).mean()), 4) for rows in aligned],
            bytes_read_per_token=round(read),
            bytes_written_per_token=top_k * 6,
        )


def memory_per_token(texts: list[str], on: str) -> None:
    """Peak bytes allocated for each target token, in windows of 512 and of sixteen times as many tokens."""
    fusion, peaks = FusionRuleSpec(rule="min_ce", top_k=10), {}
    for window in (512, 2048, 8192):
        work = Work(texts, window, 10)
        work.run(fusion, "bytes")
        tracemalloc.start()
        work.run(fusion, "bytes")
        peaks[window] = tracemalloc.get_traced_memory()[1] / work.tokens
        tracemalloc.stop()
    say(
        "memory_per_token",
        peaks[8192],
        "peak bytes/target token, windows of 8192",
        "the same in windows of 512",
        peaks[512] / peaks[8192],
        corpus=on,
        top_k=10,
        peak_bytes={str(window): round(peak, 1) for window, peak in peaks.items()},
    )


def min_edit_dp(texts: list[str], window: int, on: str) -> None:
    """Token pairs of one passage a second."""
    target, source = real_tokenizers.load(TARGET), real_tokenizers.load("SmolLM2")
    (text,) = windows(texts, target, window, 1)
    sides = [
        [tokenizer.pieces[token].replace("▁", "") for token in tokenizer.encode(text)[0]]
        for tokenizer in (target, source)
    ]
    ours = best_seconds(lambda: align_by_edits(*sides), at_least=2.0)
    plain = best_seconds(lambda: plain_dynamic_programming(*sides), at_least=0, most_rounds=2)
    assert align_by_edits(*sides)[0] == plain_dynamic_programming(*sides)
    say(
        "min_edit_dp" if window == 512 else f"min_edit_dp_{window}",
        len(sides[0]) / ours,
        "target tokens/s",
        "Python loop over rapidfuzz distances",
        plain / ours,
        corpus=on,
        target_tokens=len(sides[0]),
        source_tokens=len(sides[1]),
    )


def plain_dynamic_programming(targets: list[str], sources: list[str]) -> int:
    """The cost of the best path, with a distance asked of rapidfuzz for each pair of tokens."""
    infinity = 10**9
    before = [0] + [infinity] * len(targets)
    for source in sources:
        row = [infinity]
        for index, target in enumerate(targets):
            cost = Levenshtein.distance(source, target)
            row.append(cost + min(before[index], before[index + 1], row[index]))
        before = row
    return before[-1]


def min_edit_table(source: str, target: str, name: str) -> None:
    """Seconds for the nearest target string of every source string, each way in a process of its own."""
    sides = [pieces_of(real_tokenizers.load(side)) for side in (source, target)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "strings.json"
        file.write_text(json.dumps(sides), encoding="utf8")
        ours, theirs = (
            json.loads(subprocess.check_output([sys.executable, "-m", "tests.benchmarks.edit_table", way, str(file)]))
            for way in ("ours", "rapidfuzz")
        )
    assert ours["digest"] == theirs["digest"], "both must find the same strings at the same distances"
    say(
        name,
        ours["seconds"],
        "s",
        "rapidfuzz.process.cdist and argmin",
        theirs["seconds"] / ours["seconds"],
        source=f"{source} ({len(sides[0])})",
        target=f"{target} ({len(sides[1])})",
        threads=os.cpu_count(),
        peak_process_bytes=ours["peak_bytes"],
        same_indices_and_distances=True,
    )


def pieces_of(tokenizer: PassageTokenizer) -> list[str]:
    """Strings of the tokens that stand for text, spaces as ``▁``."""
    return [piece for piece, data in zip(tokenizer.pieces, tokenizer.token_bytes, strict=True) if data]


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or QUICKSTART)
