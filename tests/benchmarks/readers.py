"""Speed of reading: documents are cut for four models, and each passage is measured.

    python -m tests.benchmarks.readers

``reader_mb_per_second`` is CPU time of one process on prose and on the standard library's source code, after it has
read other modules of the library. It is against the same work where each text is tokenized as a whole. The target and
one source share a tokenizer of Llama 2's kind; two have byte-level ones. ``readers_scaling`` is the speed of two
processes that share the texts, words known, against that of one. By the clock it needs two idle cores; by CPU time
other work on the machine counts little.
"""

from __future__ import annotations

import multiprocessing
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.corpus.cutting import DocumentCutter
from engine.text.tokenization import PassageTokenizer
from tests.benchmarks.figures import say
from tests.benchmarks.passages import QUICKSTART, documents
from tests.support import real_tokenizers

MODELS = ("Mistral SentencePiece", "Mistral SentencePiece", "byte-level", "byte-level with NFC")

#: Text tokens of a passage.
WINDOWS = (510, 2046)


def texts() -> list[str]:
    """The quickstart's documents, and a quarter of the standard library's modules."""
    return documents(QUICKSTART) + modules(0)


def modules(quarter: int) -> list[str]:
    """A quarter of the standard library's modules."""
    found = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[quarter::4]
    return [module.read_text(encoding="utf8", errors="ignore") for module in found]


def models(with_words: bool) -> list[PassageTokenizer]:
    """The models' tokenizers; they know no word, and without words never will."""
    found = [PassageTokenizer(real_tokenizers.MAKERS[name](), name) for name in MODELS]
    for tokenizer in found:
        tokenizer._words = tokenizer._words if with_words else None
    return found


def cut_and_measure(documents: Sequence[str], tokenizers: Sequence[PassageTokenizer], window: int) -> list[str]:
    """The passages of some documents, each tokenized by the target as well."""
    cutter = DocumentCutter(tokenizers, [window] * len(tokenizers))
    passages = [passage for document in documents for passage in cutter.cut(document)]
    for passage in passages:
        tokenizers[0].encode_with_roles(passage, True, True)
    return passages


def reader_mb_per_second(window: int) -> None:
    """Measure one process."""
    corpus, seconds, passages = texts(), {}, {}
    for with_words in (True, False):
        tokenizers = models(with_words)
        if with_words:
            cut_and_measure(modules(1) + modules(2), tokenizers, window)
        started = time.process_time()
        passages[with_words] = cut_and_measure(corpus, tokenizers, window)
        seconds[with_words] = time.process_time() - started
    assert passages[True] == passages[False]
    speed = sum(len(text.encode("utf8")) for text in corpus) / 1e6 / seconds[True]
    say(
        "reader_mb_per_second", speed, "MB/s a core", "each text tokenized as a whole",
        seconds[False] / seconds[True], window=window, passages=len(passages[True]),
    )  # fmt: skip


def readers_scaling() -> None:
    """Measure two processes that share the texts."""
    by_size = sorted(texts(), key=len)  # so that the shares are alike, and hardly any reader works alone at the end
    one, two = (_speeds([by_size[share::readers] for share in range(readers)]) for readers in (1, 2))
    say(
        "readers_scaling", two.by_clock, "MB/s by the clock, two readers", "one reader", two.by_clock / one.by_clock,
        window=WINDOWS[0], ratio_by_cpu_time=round(two.by_cpu_time / one.by_cpu_time, 2),
    )  # fmt: skip


class _Speed(NamedTuple):
    """MB/s of some readers together."""

    by_clock: float
    by_cpu_time: float


def _speeds(shares: list[list[str]]) -> _Speed:
    """Of processes that work at the same time, one for each share of the texts."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(shares))
    found = context.SimpleQueue()
    processes = [context.Process(target=_read_share, args=(share, ready, found)) for share in shares]
    for process in processes:
        process.start()
    speeds = [found.get() for _ in processes]
    for process in processes:
        process.join()
    return _Speed(*map(sum, zip(*speeds, strict=True)))


def _read_share(share: list[str], ready, found) -> None:
    tokenizers = models(with_words=True)
    cut_and_measure(modules(1) + modules(2), tokenizers, WINDOWS[0])
    ready.wait()
    began, worked = time.perf_counter(), time.process_time()
    cut_and_measure(share, tokenizers, WINDOWS[0])
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    megabytes = sum(len(text.encode("utf8")) for text in share) / 1e6
    found.put(_Speed(megabytes / seconds, megabytes / cpu_seconds))


if __name__ == "__main__":
    for tokens in WINDOWS:
        reader_mb_per_second(tokens)
    readers_scaling()
