"""Held-out bits per byte: how many bits a model needs, on average, for one byte of text it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actors.backends import context_limit
from engine.checkpoint_files import local_checkpoint
from engine.errors import RecordError
from engine.tokenization import PassageTokenizer

if TYPE_CHECKING:
    from rich.table import Table

#: A passage to score: its text, or its text and whether the document ends there (which changes nothing: EOS is not
#: scored).
HeldOutPassage = str | tuple[str, bool]

#: Heading of the last column of an evaluation's table, behind the domains.
MEAN = "mean of domains"


class _Tokens(NamedTuple):
    """A tokenized passage: ``ids`` [S] with BOS, and the bytes that the tokens after the first one cover."""

    ids: np.ndarray
    scored_bytes: int


def bits_per_byte(
    checkpoint: str,
    passages_by_domain: Mapping[str, Sequence[HeldOutPassage]],
    batch_tokens: int = 4096,
    device: str = "cpu",
) -> dict[str, float]:
    """Score one model on held-out passages.

    Perplexity, the exponential of the loss per *token*, cannot be compared between models whose tokenizers differ: the
    same sentence is 20 tokens for one and 30 for another, and the one with more, easier tokens looks better for no
    merit of its own. But the loss *summed* over a passage is minus the logarithm of the probability that the model
    gives to the passage as tokenized, however many tokens that took; and every model is asked about the same bytes. So
    we add up ``-log2 p`` over the tokens of the text and divide by the bytes that these tokens stand for. The result is
    what an arithmetic coder driven by the model would need: 8 is no compression, gzip needs about 3 for English prose,
    good models less than 1.

    BOS is put in front as the model's own tokenizer does it. A model without BOS cannot be asked for its first token;
    that token is not scored and its bytes are not counted. EOS is never scored: it covers no bytes. The model runs in
    float32, and padding does not change the result: batches of any size agree to 1e-6.

    Args:
        checkpoint: of a causal language model, as ``checkpoint_files.local_checkpoint`` takes it.
        passages_by_domain: passages short enough for the model (``pipelines.passages`` cuts them so).
        batch_tokens: tokens, padding included, in one forward pass; a longer passage has a pass of its own.
        device: where the model runs, as torch names it.

    Returns:
        Domain to bits per byte, in [0, inf); NaN for a domain in which nothing could be scored.

    Raises:
        TokenizerError: the tokens of a passage do not add up to its bytes.
        RecordError: a passage is longer than the model's context.
    """
    tokenizer = PassageTokenizer.load(checkpoint)
    model = _load(checkpoint, device)
    return {
        domain: _domain_bits_per_byte(model, _tokenized(tokenizer, model.config, passages, domain), batch_tokens)
        for domain, passages in passages_by_domain.items()
    }


def columns(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The table of an evaluation by columns: heading to label to bits per byte, the mean of the domains last."""
    domains = list(dict.fromkeys(domain for row in scores.values() for domain in row))
    by_domain = {domain: {label: row.get(domain, math.nan) for label, row in scores.items()} for domain in domains}
    means = {label: float(np.mean([column[label] for column in by_domain.values()])) for label in scores}
    return by_domain | {MEAN: means}


def best(column: Mapping[str, float]) -> float:
    """The lowest number of a column, NaN if it has none."""
    return min((value for value in column.values() if not math.isnan(value)), default=math.nan)


def table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """An evaluation for the terminal, the best of every column bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    by_heading = columns(scores)
    title = "Held-out bits per byte (lower is better, * best)"
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.add_column("model")
    for heading in by_heading:
        shown.add_column(heading, justify="right")
    for label in scores:
        cells = [(column[label], best(column)) for column in by_heading.values()]
        texts = [Text(_cell(*cell), style="bold green" if cell[0] == cell[1] else "") for cell in cells]
        shown.add_row(Text(label), *texts)
    return shown


def _cell(value: float, lowest: float) -> str:
    """Four digits behind the point; a place for the star in every row keeps the points one below the other."""
    return ("-" if math.isnan(value) else f"{value:.4f}") + ("*" if value == lowest else " ")


def _load(checkpoint: str, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(local_checkpoint(checkpoint), dtype=torch.float32)
    return model.to(device).eval()


def _tokenized(
    tokenizer: PassageTokenizer, config: Any, passages: Sequence[HeldOutPassage], domain: str
) -> list[_Tokens]:
    """The passages in which at least one token has another before it, shortest first, so that batches pad little."""
    found = []
    for index, passage in enumerate(passages):
        text = passage if isinstance(passage, str) else passage[0]
        ids, end_bytes = tokenizer.encode_with_roles(text, tokenizer.adds_bos, ends_document=False)
        limit = context_limit(config, len(ids), generated_tokens=0)
        if len(ids) > limit:
            raise RecordError(
                f"evaluation of {tokenizer.name}: passage {index} of {domain!r} ({text[:40]!r}...) has {len(ids)} "
                f"tokens, the model takes at most {limit}; cut the passages to fit every model that is compared"
            )
        if len(ids) > 1:
            found.append(_Tokens(ids, int(end_bytes[-1] - end_bytes[0])))
    return sorted(found, key=lambda tokens: len(tokens.ids))


def _domain_bits_per_byte(model: Any, passages: Sequence[_Tokens], batch_tokens: int) -> float:
    scored_bytes = sum(passage.scored_bytes for passage in passages)
    nats = math.fsum(_nats(model, batch) for batch in _batches([passage.ids for passage in passages], batch_tokens))
    return nats / math.log(2) / scored_bytes if scored_bytes else math.nan


def _batches(passages: Sequence[np.ndarray], batch_tokens: int) -> Iterator[Sequence[np.ndarray]]:
    """Runs of passages that hold at most ``batch_tokens`` when padded to their last and longest one."""
    start = 0
    for end in range(1, len(passages) + 1):
        is_full = end == len(passages) or (end + 1 - start) * len(passages[end]) > batch_tokens
        if is_full:
            yield passages[start:end]
            start = end


def _nats(model: Any, passages: Sequence[np.ndarray]) -> float:
    """Sum of ``-ln p`` over all tokens but each passage's first.

    Padding stands on the right, where a causal model's earlier rows cannot see it, so any id will do. The logarithm of
    the normaliser is taken passage by passage: no second array as large as the logits is made.
    """
    import torch

    lengths = [len(ids) for ids in passages]
    input_ids = np.zeros((len(passages), max(lengths)), np.int64)
    for row, ids in zip(input_ids, passages, strict=True):
        row[: len(ids)] = ids
    inputs = torch.from_numpy(input_ids).to(model.device)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    total = 0.0
    with torch.inference_mode():
        logits = model(input_ids=inputs, attention_mask=mask.long().to(model.device), use_cache=False).logits
        for row, labels, length in zip(logits, inputs, lengths, strict=True):
            scored = row[: length - 1].float()
            chosen = scored.gather(1, labels[1:length, None])[:, 0]
            total += float((scored.logsumexp(1) - chosen).double().sum())
    return total
