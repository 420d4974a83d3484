"""Held-out text as blocks for the training workers, who evaluate the target model while they train it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from actors.training.held_out_loss import HeldOutBlocks
from engine.blocks.arrangement import best_fit
from engine.corpus.windows import SPECIAL_TOKENS, scoring_window
from engine.method.losses import NO_LABEL
from engine.model_files.checkpoint import Checkpoint
from engine.spec import FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.bits_per_byte import Text, tokens_of, windows
from pipelines.evaluation.evaluate import held_out_documents


class _Piece(NamedTuple):
    """A window of a text: token ids [S], BOS included, which of them are scored, and the bytes of these."""

    ids: np.ndarray
    is_scored: np.ndarray
    scored_bytes: int


def held_out_blocks(spec: FusionSpec) -> dict[str, HeldOutBlocks]:
    """Every domain of ``spec.evaluation.corpora``, in the windows in which the target model is evaluated afterwards.

    Raises:
        RecordError, StoreError: as ``held_out_documents``.
    """
    checkpoint = Checkpoint.of(spec.target_model)
    tokenizer = PassageTokenizer.load(checkpoint)
    places = scoring_window(checkpoint, spec.training.block_length) + SPECIAL_TOKENS
    stride = spec.evaluation.stride_tokens
    return {
        domain: _blocks(
            [piece for text in texts for piece in _pieces(tokenizer, text, places, stride)], spec.training.block_length
        )
        for domain, texts in held_out_documents(spec).items()
    }


def _pieces(tokenizer: PassageTokenizer, text: Text, places: int, stride: int) -> Iterator[_Piece]:
    tokens = tokens_of(tokenizer, text)
    for begin, first, end in windows(len(tokens.ids), places, stride, len(tokens.bos) > 0):
        is_scored = tokens.is_scored & (np.arange(len(tokens.ids)) >= first)
        yield _Piece(
            np.concatenate([tokens.bos, tokens.ids[begin:end]]),
            np.concatenate([np.zeros(len(tokens.bos), bool), is_scored[begin:end]]),
            int(tokens.num_bytes[begin:end][is_scored[begin:end]].sum()),
        )


def _blocks(pieces: Sequence[_Piece], length: int) -> HeldOutBlocks:
    """The windows packed by best fit; positions stay at 0 after the last, where the model may have no more of them."""
    bins = best_fit([len(piece.ids) for piece in pieces], length)
    blocks = HeldOutBlocks(
        input_ids=np.zeros((len(bins), length), np.int32),
        position_ids=np.zeros((len(bins), length), np.int32),
        labels=np.full((len(bins), length), NO_LABEL, np.int32),
        scored_bytes=sum(piece.scored_bytes for piece in pieces),
    )
    for block, items in enumerate(bins):
        start = 0
        for piece in (pieces[item] for item in items):
            end = start + len(piece.ids)
            blocks.input_ids[block, start:end] = piece.ids
            blocks.position_ids[block, start:end] = np.arange(end - start)
            blocks.labels[block, start : end - 1] = np.where(piece.is_scored[1:], piece.ids[1:], NO_LABEL)
            start = end
    return blocks
