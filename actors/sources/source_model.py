"""SourceModel: passages in, the same passages with one source model's distributions out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from actors.monitor import Meter, NoMeter
from actors.sources.backends import Backend, PromptRows, device_of
from actors.sources.backends.in_thread import BackendInThread
from actors.sources.probe import (
    Probe,
    check_distributions,
    check_same_model,
    is_no_better_than_chance,
    probe,
    settled_bos,
)
from engine.corpus.passages import passages_of
from engine.corpus.reading import Reading
from engine.errors import FusionError, SourceModelError, TokenizerError, causes, first_line
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import context_limit, load_configuration
from engine.records import PASSAGE, check, ragged, source_columns
from engine.spec import SourceModelSpec
from engine.text.tokenization import PassageTokenizer

#: How torch, CUDA and vLLM say that memory is short, in lower case.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")

#: A passage's token ids, its end bytes, and which of its rows are sent on.
Encoded = tuple[np.ndarray, np.ndarray, slice | np.ndarray]


class SourceModel:
    """One replica of a source model: its tokenizer and its engine.

    Two threads may call it at once: one prepares a batch or converts its rows while the engine scores the other's.

    Every passage is scored with EOS after it, whether or not the document ends there: the row of the last text token
    needs a successor to exist. The row of EOS itself does not exist, so S is one less than the number of tokens. A
    conversation is scored as the model's chat template renders it, and begins with BOS if that has it.

    Args:
        source: the spec's section.
        top_k: K, entries kept of each row.
        meter: of this source's stage; none outside a run.

    Raises:
        SourceModelError: the model cannot be loaded, its vocabulary is smaller than K, or the probe finds it fed
            wrongly.
        FusionError: its replicas have died too often.
    """

    def __init__(self, source: SourceModelSpec, top_k: int, meter: Meter | None = None):
        self._source = source
        self._meter = meter or NoMeter()
        self._meter.start_or_refuse()
        with self._alive_or_dead():
            self._tokenizer, config = _read_checkpoint(source)
        self._adds_bos = self._tokenizer.adds_bos
        vocab_size = config.get_text_config().vocab_size
        if vocab_size < top_k:
            raise SourceModelError(
                f"{source.name}: fusion.top_k is {top_k}, the vocabulary has {vocab_size} tokens; lower top_k"
            )
        self._context = context_limit(config, source.max_context_tokens, generated_tokens=1)
        self._probed: Probe | None = None
        with self._alive_or_dead():
            self._backend = BackendInThread(partial(_load_backend, source, top_k, self._context))
            if source.probe != "off":
                self._probed = probe(self._backend, self._tokenizer, self._adds_bos, self._context)
                self._adds_bos = settled_bos(self._probed, source.name, self._adds_bos, source.probe == "correct")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``records.PASSAGE`` (and other sources' columns) to the same with ``records.source_columns``.

        Raises:
            SourceModelError: a passage is longer than the context, or the model returned what is no distribution.
        """
        started = time.perf_counter()
        check(batch, PASSAGE, self._source.name)
        encoded = self._encoded(batch)
        self._check_context(batch, encoded)
        prompts = [ids for ids, _, _ in encoded]
        with self._alive_or_dead():
            rows = self._score(prompts)
            vocab_size, dtype = self._backend.vocab_size, self._source.dtype
            check_distributions(self._source.name, batch["passage_id"], prompts, rows, vocab_size, dtype)
            if self._probed is not None and is_no_better_than_chance(self._probed, rows):
                again = probe(self._backend, self._tokenizer, self._adds_bos, self._context)
                check_same_model(self._source.name, self._probed, again)
        sent = [(row, kept) for row, (_, _, kept) in zip(rows, encoded, strict=True)]
        values = (
            [ids[kept] for ids, _, kept in encoded],
            [end_bytes[kept] for _, end_bytes, kept in encoded],
            [row.topk_ids[kept] for row, kept in sent],
            [tempered(row.topk_logprobs[kept], self._source.temperature) for row, kept in sent],
            [row.token_logprobs[kept] for row, kept in sent],
        )
        for column, arrays in zip(source_columns(self._source.name), values, strict=True):
            batch = batch.append_column(column.name, ragged(arrays, column.dtype.value_type))
        tokens = sum(len(ids) for ids in prompts)
        self._meter.record(passages=len(batch), tokens=tokens, busy_seconds=time.perf_counter() - started)
        return batch

    def _encoded(self, batch: pa.Table) -> list[Encoded]:
        """Each passage as this model reads it; the rows that predict its answers are sent."""
        reading = Reading(self._tokenizer, self._adds_bos)
        renderings = [reading.read(passage, ends_document=True) for passage in passages_of(batch)]
        return [(rendering.token_ids, rendering.end_bytes, rendering.rows()) for rendering in renderings]

    def _score(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        """The backend's rows, asked for in order of length so that prompts of one step are alike."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        rows = self._backend.score([prompts[index] for index in order])
        by_prompt = dict(zip(order, rows, strict=True))
        return [by_prompt[index] for index in range(len(prompts))]

    @contextmanager
    def _alive_or_dead(self) -> Iterator[None]:
        """End this process after any error but one of our own: the model's library may not outlive it.

        A dead rank of several GPUs, a GPU without memory or a lost context leave a process that fails again and again.
        Ray replaces a dead process and scores its passages again; the meter counts how often. A package that is missing
        would be missing again: that error ends the source at once.

        Raises:
            SourceModelError: a package is missing; outside of a run, instead of the end of the process.
        """
        try:
            yield
        except Exception as error:
            short_of_memory = is_out_of_memory(error)
            if isinstance(error, FusionError) and not short_of_memory:
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            if short_of_memory:
                reason += f"; {_memory_remedy(self._source)}"
            if not isinstance(error, ImportError):
                self._meter.end_process(error, reason, short_of_memory)
            raise SourceModelError(f"{self._source.name}: {reason}") from error

    def _check_context(self, batch: pa.Table, encoded: Sequence[Encoded]) -> None:
        for passage_id, (ids, _, _) in zip(batch["passage_id"], encoded, strict=True):
            if len(ids) > self._context:
                raise SourceModelError(
                    f"{self._source.name}: passage {passage_id} has {len(ids)} tokens, "
                    f"the model takes {self._context}; cut passages shorter, or raise max_context_tokens"
                )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one inside it, is of memory; a rank of several GPUs gives only the message of its own."""
    return any(
        isinstance(cause, MemoryError) or any(words in str(cause).lower() for words in _OUT_OF_MEMORY)
        for cause in causes(error)
    )


def _memory_remedy(source: SourceModelSpec) -> str:
    cache = "batched_tokens, kv_cache_bytes, " if source.backend == "vllm" else ""
    if not source.num_gpus:
        return f"lower its {cache}replicas or max_context_tokens, or give it a node with more memory"
    own_gpu = "" if source.num_gpus == 1.0 else ", set num_gpus to 1"
    return f"lower its {cache}max_context_tokens{own_gpu}, raise tensor_parallel_size, or take a larger GPU"


def tempered(logprobs: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities [S,K] of the kept entries flattened (temperature above 1) or sharpened among themselves.

    What a row keeps stays what it keeps, so the rest mass is as the model has it. Where the rest mass is dropped, as in
    the authors' code, this is their softmax of the kept logits over the temperature.
    """
    if temperature == 1.0 or not logprobs.size:
        return logprobs
    kept = np.logaddexp.reduce(logprobs, axis=1, keepdims=True)
    scaled = logprobs / np.float32(temperature)
    return (scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True) + kept).astype(np.float32)


def _read_checkpoint(source: SourceModelSpec) -> tuple[PassageTokenizer, Any]:
    """The checkpoint's tokenizer and transformers configuration.

    Raises:
        SourceModelError: there is no such checkpoint, or it cannot be used.
        OSError: it cannot be read now; a store that is away for a minute comes back.
    """
    checkpoint = Checkpoint.of(source)
    try:
        config = load_configuration(checkpoint)  # says of a folder that it is not there; the tokenizer would not
        return PassageTokenizer.load(checkpoint), config
    except TokenizerError as error:
        raise SourceModelError(f"{source.name}: {error}") from error
    except (FileNotFoundError, ValueError) as error:
        raise SourceModelError(f"{source.name}: {source.checkpoint} cannot be loaded: {error}") from error
    except OSError as error:
        raise OSError(f"{source.checkpoint} cannot be loaded: {error}") from error


def _load_backend(source: SourceModelSpec, top_k: int, context: int) -> Backend:
    """The model, in the thread that calls it. A forked worker has torch already, which asks Ray no more for threads."""
    import torch

    if device_of(source) == "cpu":
        torch.set_num_threads(max(1, int(source.num_cpus)))
    if source.backend == "vllm":
        from actors.sources.backends.vllm import VllmBackend

        return VllmBackend(source, top_k, context)
    from actors.sources.backends.transformers import TransformersBackend

    return TransformersBackend(source, top_k)
