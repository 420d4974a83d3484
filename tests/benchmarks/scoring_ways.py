"""One random model and several ways to score the same passages with it, for the benchmark ``scoring``."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actors.sources.backends.step_size import CPU_TOKENS
from actors.sources.backends.transformers import TransformersBackend
from actors.sources.source_model import SourceModel
from engine.corpus.documents import Document, read_documents
from engine.corpus.files import units_of
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, schema
from engine.spec import SourceModelSpec
from engine.text.tokenization import PassageTokenizer
from tests.support import real_tokenizers

if TYPE_CHECKING:
    from vllm import LLM

CORPUS_FILE = real_tokenizers.CORPUS / "train.jsonl"
CONTEXT, KV_CACHE_BYTES, DTYPE = 511, 2**27, "float32"


def corpus_texts() -> list[str]:
    """The documents of the quickstart's training text.

    Not by ``passages.documents``, which brings numba: vLLM's start looks into every module that is loaded, and fails
    on numba's.
    """
    found = [document for unit in units_of(str(CORPUS_FILE)) for document in read_documents(unit, "text")]
    return [document.text for document in found if isinstance(document, Document)]


def passage_texts(tokenizer: PassageTokenizer, tokens: int, count: int) -> list[str]:
    """``count`` runs of the corpus that have about ``tokens`` tokens each, cut before spaces."""
    data = "\n\n".join(corpus_texts()).encode("utf8")
    ends = tokenizer.encode(data.decode("utf8"))[1]
    cuts = [0, *(data.rfind(b" ", 0, ends[tokens * place]) for place in range(1, count + 1))]
    return [data[start:end].decode("utf8") for start, end in itertools.pairwise(cuts)]


def byte_level_2k() -> PreTrainedTokenizerFast:
    """GPT-2's kind with 2,048 ids, trained on the quickstart's corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"2k": byte_level_2k, "32k": real_tokenizers.mistral_sentencepiece}


def make_checkpoint(folder: Path, vocabulary: str) -> str:
    """A random Llama of four layers over one of ``TOKENIZERS``, its embedding as large as the vocabulary."""
    tokenizer = TOKENIZERS[vocabulary]()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT + 1,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def passages(texts: Sequence[str]) -> pa.Table:
    """A batch as it comes to a source model."""
    columns = (
        [f"0/benchmark:{row}:0" for row in range(len(texts))],
        texts,
        [len(text.encode("utf8")) for text in texts],
        [0] * len(texts),
        [True] * len(texts),
        [[]] * len(texts),
    )
    fields = schema(PASSAGE)
    return pa.table([pa.array(values, kind.type) for values, kind in zip(columns, fields, strict=True)], fields)


class Ways:
    """The same passages under the same weights; each way returns nothing.

    Args:
        oracle: transformers' batched forward.

    Attributes:
        tokens: of all passages, BOS and EOS included.
    """

    def __init__(self, checkpoint: str, texts: Sequence[str], top_k: int, oracle: TransformersBackend):
        from vllm import SamplingParams

        section = SourceModelSpec(
            name="source", checkpoint=checkpoint, dtype=DTYPE, bos="always", probe="off", kv_cache_bytes=KV_CACHE_BYTES
        )
        self.source, self.batch = SourceModel(section, top_k), passages(texts)
        self.llm = self.source._backend.backend._engine
        tokenizer = PassageTokenizer.load(Checkpoint(checkpoint))
        arrays = [tokenizer.encode_with_roles(text, add_bos=True, ends_document=True)[0] for text in texts]
        self._arrays = sorted(arrays, key=len)  # the order in which SourceModel asks for them
        self._prompts = [{"prompt_token_ids": prompt.tolist()} for prompt in self._arrays]
        self._public = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=top_k)
        self._oracle, self._top_k = oracle, top_k
        self.tokens = sum(len(prompt) for prompt in arrays)

    def ours(self) -> None:
        """Arrow in, Arrow out."""
        self.source(self.batch)

    def tokens_of(self, count: int) -> int:
        """Of the first ``count`` prompts, shortest first."""
        return sum(len(prompt) for prompt in self._arrays[:count])

    def engine(self, count: int | None = None) -> None:
        """The same engine on tokenized prompts (the first ``count``); its scores are dropped."""
        with tensors_dropped():
            self.llm.generate(self._prompts[:count], self.source._backend.backend._sampling, use_tqdm=False)

    def public(self, llm: LLM) -> None:
        """Lists of dicts of objects with the tokens' strings, from tokenized prompts."""
        llm.generate(self._prompts, self._public, use_tqdm=False)

    def transformers(self) -> None:
        """A batched forward, log-softmax and top-k, from tokenized prompts."""
        self._oracle._top_k = self._top_k
        self._oracle.score(self._arrays)


def load_public_llm(checkpoint: str, top_k: int) -> LLM:
    """vLLM as its documentation builds it, tokenizer included; for the rest as ours has it."""
    from vllm import LLM

    return LLM(
        model=checkpoint,
        dtype=DTYPE,
        max_model_len=CONTEXT + 1,
        max_logprobs=top_k,
        max_num_batched_tokens=CPU_TOKENS,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        gpu_memory_utilization=0.05,
        enable_prefix_caching=False,
        enforce_eager=True,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


@contextmanager
def tensors_dropped() -> Iterator[None]:
    """While this lasts, what an engine has scored is turned into nothing."""
    from vllm.v1.engine.logprobs import LogprobsProcessor

    installed = LogprobsProcessor._update_prompt_logprobs
    LogprobsProcessor._update_prompt_logprobs = lambda self, tensors: None
    try:
        yield
    finally:
        LogprobsProcessor._update_prompt_logprobs = installed


@dataclass
class Clock:
    """Seconds of the rounds of one way: of this process' CPU, and on the wall."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def run(self, way: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """One more round."""
        cpu, wall = time.process_time(), time.perf_counter()
        returned = way(*arguments, **options)
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return returned


def in_turns(ways: Sequence[Callable[[], None]], rounds: int) -> list[Clock]:
    """``rounds`` of each way, one after the other, so that a slow moment of the machine meets them all."""
    clocks = [Clock() for _ in ways]
    for way in ways:
        way()
    for _ in range(rounds):
        for way, clock in zip(ways, clocks, strict=True):
            gc.collect()
            clock.run(way)
    return clocks


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster we are: the median over the rounds, each of which has measured both."""
    return round(statistics.median(other / own for own, other in zip(ours, theirs, strict=True)), 4)


def seconds_split(way: Callable[[], None], owner: object, name: str, rounds: int) -> tuple[float, float]:
    """CPU seconds of ``way`` outside of its calls of ``owner.name``, and inside; the least of some rounds each."""
    original, outside, inside = getattr(owner, name), [], []
    for _ in range(rounds):
        calls, whole = Clock(), Clock()
        setattr(owner, name, lambda *arguments, clock=calls, **options: clock.run(original, *arguments, **options))
        try:
            whole.run(way)
        finally:
            setattr(owner, name, original)
        inside.append(sum(calls.cpu))
        outside.append(whole.cpu[0] - inside[-1])
    return min(outside), min(inside)
