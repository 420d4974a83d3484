"""A training step on a GPU, for the benchmark ``gpu``: packed blocks in bfloat16, sharded by FSDP2.

``gpu_train_vs_plain``: tokens a second of ``TargetModel.train_step`` with both losses, against a step with
transformers' model and loss, AdamW and FSDP2 on the same blocks. ``gpu_train_mfu``: the share of the GPU's peak,
counted as six operations a weight and token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM

from actors.training.target_model import TargetModel
from engine.history.ledger import Cursor, Entry
from engine.records import TRAINING_BLOCK, ragged, schema
from engine.spec import ObjectiveSpec, OptimizerSpec, TargetModelSpec, TrainingSpec
from tests.benchmarks.figures import say
from tests.benchmarks.gpu_shapes import (
    SHAPES,
    card,
    llama_config,
    parameters_of,
    save_checkpoint,
    seconds_in_turns,
    share_of_peak,
)

TOP_K, ROUNDS = 64, 5

#: Blocks of a step, and of a forward pass.
STEP_BLOCKS, MICRO_BLOCKS = 8, 4


def figures(device: str, size: str, vocabularies: Sequence[int] | None, every_attention: Sequence[str]) -> None:
    """The figures of one size, for each vocabulary (None: all of the size) and each value of ``training.attention``."""
    for vocabulary, attention in product(vocabularies or SHAPES[size].vocabularies, every_attention):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), device, size, vocabulary, attention)


def measure(folder: Path, device: str, size: str, vocabulary: int, attention: str) -> None:
    """The figures of one checkpoint."""
    config, shape = llama_config(size, vocabulary), SHAPES[size]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    checkpoint = save_checkpoint(folder / "model", config, "mistral-target", device, dtype)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        ours = target_model(checkpoint, device, shape.context, attention)
        blocks = random_blocks(shape.context, vocabulary)
        seconds = seconds_in_turns([partial(ours.train_step, blocks)], device, ROUNDS)
        memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        del ours
        plain = PlainStep(checkpoint, device, blocks, shape.context)
        seconds += seconds_in_turns([plain], device, ROUNDS)
    finally:
        dist.destroy_process_group()
    tokens = STEP_BLOCKS * shape.context
    on = {"card": card(device), "size": size, "vocabulary": vocabulary, "block_length": shape.context}
    on |= {"attention": attention}
    on |= {"blocks": STEP_BLOCKS, "micro": MICRO_BLOCKS, "top_k": TOP_K, "memory_mib": memory // 2**20}
    against = "transformers' model and loss, AdamW and FSDP2 on the same blocks, no fusion"
    say("gpu_train_vs_plain", tokens / seconds[0], "tokens/s", against, seconds[1] / seconds[0], **on)
    shares = [share_of_peak(6 * parameters_of(config) * tokens, taken, device) for taken in seconds]
    say("gpu_train_mfu", shares[0], "of the card's peak", against, seconds[1] / seconds[0], **on, theirs=shares[1])


def target_model(checkpoint: str, device: str, length: int, attention: str) -> TargetModel:
    """The engine's target model, ready for a step."""
    section = TrainingSpec(
        block_length=length,
        global_batch_blocks=STEP_BLOCKS,
        micro_batch_blocks=MICRO_BLOCKS,
        precision="bfloat16" if device == "cuda" else "float32",
        attention=attention,
        optimizer=OptimizerSpec(learning_rate=1e-5),
    )
    objective = ObjectiveSpec(lm_loss_weight=0.5, full_gain=0.0)
    return TargetModel(TargetModelSpec(checkpoint=checkpoint), section, objective, TOP_K, torch.device(device))


def random_blocks(length: int, vocabulary: int) -> pa.Table:
    """Blocks of four passages each (``records.TRAINING_BLOCK``); every row but a passage's last has K fused entries."""
    random = np.random.default_rng(0)
    places = STEP_BLOCKS * length
    segments = np.repeat(np.arange(1, 5), length // 4)
    is_last = np.append(segments[1:] != segments[:-1], True)
    first = random.integers(0, vocabulary, (places, 1))
    ids = ((first + np.arange(TOP_K) * (vocabulary // TOP_K)) % vocabulary).astype(np.int32)
    probs = np.full((places, TOP_K), 0.9 / TOP_K, np.float16)
    every = np.tile(~is_last, STEP_BLOCKS)
    values = {
        "input_ids": random.integers(0, vocabulary, places).astype(np.int32),
        "segment_ids": np.tile(segments, STEP_BLOCKS).astype(np.int32),
        "loss_mask": every,
        "fusion_mask": every,
        "fused_ids": np.where(every[:, None], ids, -1).astype(np.int32),
        "fused_probs": np.where(every[:, None], probs, 0).astype(np.float16),
    }
    fields = [field for field in schema(TRAINING_BLOCK) if field.name in values]
    columns = [ragged(list(values[field.name].reshape(STEP_BLOCKS, -1)), field.type.value_type) for field in fields]
    entries = [Entry(0, block, block + 1, Cursor(block + 1, 0, 0, 0, 0)).numbers() for block in range(STEP_BLOCKS)]
    others = {
        "ledger_entry": ragged([np.array(entry) for entry in entries], pa.int64()),
        "passage_ids": pa.array([[f"0/benchmark:{block}:{part}" for part in range(4)] for block in range(STEP_BLOCKS)]),
    }
    return pa.table([*columns, *others.values()], names=[*(field.name for field in fields), *others])


class PlainStep:
    """A step as a plain script has it: the model's own loss on the same packed blocks."""

    def __init__(self, checkpoint: str, device: str, blocks: pa.Table, length: int):
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(device)
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if device == "cuda" else MixedPrecisionPolicy()
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        self._model = fully_shard(model, mp_policy=policy).train()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ids = np.asarray(blocks["input_ids"].combine_chunks().flatten()).reshape(-1, length)
        self._ids = torch.from_numpy(ids.copy()).long().to(device)
        self._positions = torch.arange(length // 4, device=device).repeat(4).expand(len(ids), -1)

    def __call__(self) -> None:
        for start in range(0, len(self._ids), MICRO_BLOCKS):
            ids = self._ids[start : start + MICRO_BLOCKS]
            positions = self._positions[start : start + MICRO_BLOCKS]
            loss = self._model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
