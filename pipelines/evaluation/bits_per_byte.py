"""Held-out bits per byte: how many bits a model needs, on average, for one byte of text it has not seen.

Perplexity, the exponential of the loss per *token*, cannot be compared between models whose tokenizers differ: the same
sentence is 20 tokens for one and 30 for another, and the one with more, easier tokens looks better for no merit of its
own. But the loss *summed* over a text is minus the logarithm of the probability that the model gives to the text as
tokenized, however many tokens that took; and every model is asked about the same bytes. So we add up ``-log2 p`` over
the tokens of the text and divide by the bytes that these tokens stand for. The result is what an arithmetic coder
driven by the model would need: 8 is no compression, gzip needs about 3 for English prose, good models less than 1.

A model without BOS cannot be asked for a text's first token, which is one of the hardest. So models are compared over
the bytes of each text that all of them score (``over_common_bytes``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import context_limit
from engine.model_files.local import local_checkpoint
from engine.text.chat import ChatTemplate, Message
from engine.text.tokenization import PassageTokenizer

#: What is scored: a text, or a conversation, of which only the assistant's answers count.
Text = str | Sequence[Message]


class ScoredText(NamedTuple):
    """One model's scores of one text, T tokens of it scored.

    Attributes:
        boundaries: int64 [T+1], ascending: bytes of the text before the first scored token, and after each. They begin
            at 0; for a model without BOS, which has no row for the first token, after that token.
        nats: float64 [T], ``-ln p`` of each scored token, given the tokens before it in its window.
    """

    boundaries: np.ndarray
    nats: np.ndarray


#: Domain to scored texts, of one model.
Scores = Mapping[str, Sequence[ScoredText]]


class TextTokens(NamedTuple):
    """A text as one model reads it.

    Attributes:
        bos: int32 [0 or 1], in front of every window.
        ids: int32 [T]. num_bytes: int64 [T], bytes of the text that each consumes; 0 for what a chat template writes.
        is_scored: bool [T]: not a first token without BOS before it, and not words of others than the assistant.
    """

    bos: np.ndarray
    ids: np.ndarray
    num_bytes: np.ndarray
    is_scored: np.ndarray


class Window(NamedTuple):
    """A run of a text's tokens that goes through the model at once.

    Attributes:
        begin: place of its first token in the text, BOS not counted.
        first: place of the first token that is scored here; those before it are context, scored before.
        end: place after its last token.
    """

    begin: int
    first: int
    end: int


def bits_per_byte(texts: Sequence[ScoredText]) -> float:
    """Bits over bytes, both added up over all texts; in [0, inf), NaN if no byte was scored."""
    scored_bytes = sum(int(text.boundaries[-1] - text.boundaries[0]) for text in texts)
    nats = math.fsum(float(text.nats.sum()) for text in texts)
    return nats / math.log(2) / scored_bytes if scored_bytes else math.nan


def over_common_bytes(models: Mapping[str, Scores]) -> dict[str, Scores]:
    """The scores of several models over the same bytes: of each text those that every model scores.

    They begin where the last of the models begins. A text of which one model scores nothing counts for none.

    Args:
        models: label to scores, all of the same texts.

    Returns:
        Label to scores; those of models that all begin at byte 0 are unchanged.
    """
    domains: Sequence[str] = list(next(iter(models.values()), {}))
    begins = {
        domain: [
            max(int(text.boundaries[0]) for text in scored)
            for scored in zip(*(scores[domain] for scores in models.values()), strict=True)
        ]
        for domain in domains
    }
    return {
        label: {
            domain: [_from_byte(text, begin) for text, begin in zip(scores[domain], begins[domain], strict=True)]
            for domain in domains
        }
        for label, scores in models.items()
    }


def _from_byte(text: ScoredText, begin: int) -> ScoredText:
    """A scored text from byte ``begin`` on.

    Of a token that straddles it, nats count by share of its bytes. A token of no bytes belongs to the next that has
    some.
    """
    boundaries, nats = text
    if begin <= boundaries[0]:
        return text
    place = int(np.searchsorted(boundaries, begin, side="right"))  # of the first boundary after it
    if place == len(boundaries):
        return ScoredText(boundaries[-1:], nats[:0])
    token_begin, token_end = boundaries[place - 1], boundaries[place]
    first = int(np.searchsorted(boundaries, token_begin))  # tokens of no bytes before it belong to it
    share = (token_end - begin) / (token_end - token_begin)
    return ScoredText(
        np.concatenate([np.full(place - first, begin), boundaries[place:]]),
        np.concatenate([nats[first:place] * share, nats[place:]]),
    )


def score_texts(
    checkpoint: Checkpoint,
    texts_by_domain: Mapping[str, Sequence[Text]],
    window_tokens: int,
    stride_tokens: int = 0,
    batch_tokens: int = 4096,
    device: str = "cpu",
) -> dict[str, list[ScoredText]]:
    """Score one model on held-out texts of any length.

    Each text is tokenized whole and goes through the model in ``windows``. BOS stands in front of every window where
    the model's own tokenizer puts it in front of a text. EOS is never scored: it covers no bytes. A conversation is
    scored as the model's chat template renders it, and of that the contents of the answers alone. On a CPU the model
    runs in float32, and padding does not change the result: batches of any size agree to 1e-6 bits per byte. On a GPU
    it runs in bfloat16, as a model that needs one would not fit otherwise; log-probabilities are float32 everywhere.

    Args:
        checkpoint: of a causal language model.
        texts_by_domain: domain to texts.
        window_tokens: of the longest window, BOS included; less if the model takes less. At least 8.
        stride_tokens: see ``windows``.
        batch_tokens: tokens, padding included, in one forward pass; a longer window has a pass of its own.
        device: where the model runs, as torch names it.

    Returns:
        Domain to scored texts, in the order of the texts.

    Raises:
        TokenizerError: the tokens of a text do not add up to its bytes, or a template refuses a conversation.
    """
    tokenizer = PassageTokenizer.load(checkpoint)
    model = _load(checkpoint, device)
    longest = context_limit(model.config, window_tokens, generated_tokens=0)
    return {
        domain: _scored(model, tokenizer, texts, longest, stride_tokens, batch_tokens)
        for domain, texts in texts_by_domain.items()
    }


def tokens_of(tokenizer: PassageTokenizer, text: Text) -> TextTokens:
    """What of a text or conversation a model is asked for.

    Raises:
        TokenizerError: the tokens do not add up to the text's bytes, or a template refuses the conversation.
    """
    if isinstance(text, str):
        bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
        ids, end_bytes = tokenizer.encode(text)
        num_bytes = np.diff(end_bytes, prepend=0)
        return TextTokens(np.array(bos, np.int32), ids, num_bytes, np.arange(len(ids)) >= 1 - len(bos))
    rendering = ChatTemplate.of(tokenizer).encode(text)  # it begins with BOS if the template has it
    num_bytes, is_scored = np.zeros(len(rendering.token_ids), np.int64), np.zeros(len(rendering.token_ids), bool)
    for first, last in rendering.answers:
        ends = rendering.end_bytes[first : last + 1]
        num_bytes[first : last + 1] = np.diff(ends, prepend=0)
        is_scored[first + 1 : last + 1] = ends[:-1] < ends[-1]
    return TextTokens(np.empty(0, np.int32), rendering.token_ids, num_bytes, is_scored)


def windows(num_tokens: int, window_tokens: int, stride_tokens: int, has_bos: bool) -> Iterator[Window]:
    """The windows in which a text is scored, every token in exactly one of them.

    The first window scores all its tokens. Each later one ends ``stride_tokens`` further on, or with the text, scores
    what no window before it has, and reaches back over as many tokens as there is room for: at least ``window_tokens -
    stride_tokens`` tokens of context. A small stride gives every token nearly a whole window of context and costs
    ``window_tokens / stride_tokens`` times the work; texts that fit into one window are the same under every stride.
    Without BOS the text's first token is not scored, and a later window keeps one token of context at least.

    Args:
        num_tokens: of the text, BOS not counted.
        window_tokens: places of a window, BOS included.
        stride_tokens: at most the places of a window, to which it is lowered; 0: no context but BOS.
    """
    bos = int(has_bos)
    room = window_tokens - bos
    stride = min(stride_tokens or room, room - 1 + bos)
    first, end = 1 - bos, min(room, num_tokens)
    while first < num_tokens:
        yield Window(max(0, end - room), first, end)
        first, end = end, min(end + stride, num_tokens)


def _load(checkpoint: Checkpoint, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(local_checkpoint(checkpoint), dtype=dtype)
    return model.to(device).eval()


class _Piece(NamedTuple):
    """A window of the text with number ``text``, and its ids [S], BOS included."""

    text: int
    window: Window
    ids: np.ndarray


def _scored(
    model: Any,
    tokenizer: PassageTokenizer,
    texts: Sequence[Text],
    window_tokens: int,
    stride_tokens: int,
    batch_tokens: int,
) -> list[ScoredText]:
    encoded = [tokens_of(tokenizer, text) for text in texts]
    nats = [np.zeros(len(tokens.ids)) for tokens in encoded]
    pieces = [
        _Piece(text, window, np.concatenate([tokens.bos, tokens.ids[window.begin : window.end]]).astype(np.int64))
        for text, tokens in enumerate(encoded)
        for window in windows(len(tokens.ids), window_tokens, stride_tokens, len(tokens.bos) > 0)
    ]
    pieces.sort(key=lambda piece: len(piece.ids))  # so that batches pad little
    for batch in _batches(pieces, batch_tokens):
        for (text, window, _), found in zip(batch, _nats(model, [piece.ids for piece in batch]), strict=True):
            nats[text][window.first : window.end] = found[window.first - window.end :]
    return [_scored_text(tokens, values) for tokens, values in zip(encoded, nats, strict=True)]


def _scored_text(tokens: TextTokens, nats: np.ndarray) -> ScoredText:
    begins = tokens.num_bytes[: int(np.argmax(np.append(tokens.is_scored, True)))].sum()
    boundaries = np.cumsum(np.append(begins, tokens.num_bytes[tokens.is_scored]), dtype=np.int64)
    return ScoredText(boundaries, nats[tokens.is_scored])


def _batches(pieces: Sequence[_Piece], batch_tokens: int) -> Iterator[Sequence[_Piece]]:
    """Runs of windows that hold at most ``batch_tokens`` when padded to their last and longest one."""
    start = 0
    for end in range(1, len(pieces) + 1):
        is_full = end == len(pieces) or (end + 1 - start) * len(pieces[end].ids) > batch_tokens
        if is_full:
            yield pieces[start:end]
            start = end


def _nats(model: Any, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """``-ln p`` of all tokens but each window's first.

    Padding stands on the right, where a causal model's earlier rows cannot see it, so any id will do. The logarithm of
    the normaliser is taken window by window: no second array as large as the logits is made.
    """
    import torch

    lengths = [len(ids) for ids in windows]
    input_ids = np.zeros((len(windows), max(lengths)), np.int64)
    for row, ids in zip(input_ids, windows, strict=True):
        row[: len(ids)] = ids
    inputs = torch.from_numpy(input_ids).to(model.device)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    found = []
    with torch.inference_mode():
        logits = model(input_ids=inputs, attention_mask=mask.long().to(model.device), use_cache=False).logits
        for row, labels, length in zip(logits, inputs, lengths, strict=True):
            scored = row[: length - 1].float()
            chosen = scored.gather(1, labels[1:length, None])[:, 0]
            found.append((scored.logsumexp(1) - chosen).double().cpu().numpy())
    return found
