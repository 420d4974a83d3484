"""The target model: loaded by transformers, sharded by FSDP2, trained one optimizer step at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from actors.training.attention import attention_implementation, in_one_row, passage_bounds
from actors.training.collectives import of_all_workers
from actors.training.loading import empty_causal_lm, fill, read_causal_lm
from actors.training.sharding import compile_blocks, recompute_activations, shard
from engine.corpus.domains import domains_of
from engine.corpus.passages import is_repeated
from engine.errors import TrainingError
from engine.history.totals import ratio
from engine.method.gain import (
    counted_rows,
    label_gains,
    mean_weights,
    passage_weights,
    remaining_lm_weights,
    repeated_weights,
)
from engine.method.losses import NO_LABEL, LogitShape, Targets, objective, shaped
from engine.method.own_rows import OwnRows, own_rows
from engine.records import flat_values, rows_of
from engine.spec import ObjectiveSpec, TargetModelSpec, TrainingSpec

#: Share of its peak at which the learning rate ends.
FINAL_SHARE = 0.1

#: Largest difference between the logits of a packed passage and of the passage alone, relative to the largest logit.
LOGIT_TOLERANCE = 1e-3


class StepLosses(NamedTuple):
    """Losses of one optimizer step over all workers; see ``history.result.StepRecord``.

    ``fusion_loss`` and ``fusion_weight`` are NaN in a step without fused rows, ``fusion_gain`` in one without fused
    rows of text that is read for the first time. ``domain_lm_nats``: the LM loss summed over the rows of each domain.
    ``own``: the target's rows where this worker was asked for them.
    """

    loss: float
    lm_loss: float
    fusion_loss: float
    grad_norm: float
    learning_rate: float
    lm_rows: int
    fused_rows: int
    fusion_gain: float
    fusion_weight: float
    domain_lm_nats: tuple[float, ...] = ()
    own: OwnRows | None = None


class Blocks(NamedTuple):
    """Training blocks as tensors; see ``records.TRAINING_BLOCK``.

    ``position_ids`` begin at 0 in every passage and are 0 in padding, which may be longer than the model's context.
    ``is_repeated``: whether the target has read a place's passage in an earlier pass over the corpus, bool [M,L].
    ``domains``: the index of each block's domain of the corpus, int64 [M]; 0 without domains.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    fused_ids: torch.Tensor
    fused_probs: torch.Tensor
    fusion_mask: torch.Tensor
    is_repeated: torch.Tensor
    domains: torch.Tensor

    def micro_batch(self, index: int, size: int) -> Blocks:
        """The ``index``-th ``size`` blocks; one block without weight if there are no more."""
        part = Blocks(*(tensor[index * size : (index + 1) * size] for tensor in self))
        return part if len(part.input_ids) else Blocks(*(tensor[:1] for tensor in self)).without_weight()

    def on(self, device: torch.device) -> Blocks:
        """The blocks on a device. A GPU copies them by itself, as the next work in its queue: nothing waits for it.

        Pinned memory is what lets it. The processor is ahead of the GPU, so that it queues the copies of a micro batch
        while the one before is computed.
        """
        if device.type == "cpu":
            return self
        return Blocks(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))

    def have_gains(self) -> bool:
        """Whether a row has a fused distribution, a label, and text that is read for the first time."""
        return bool((self.fusion_mask & (self.labels != NO_LABEL) & ~self.is_repeated).any())

    def without_weight(self) -> Blocks:
        """The same blocks with no row in any loss. A worker without blocks takes part in the collectives with them."""
        return self._replace(
            labels=torch.full_like(self.labels, NO_LABEL), fusion_mask=torch.zeros_like(self.fusion_mask)
        )


class _TargetWithLoss(nn.Module):
    """A causal language model and its losses in one forward pass, in which FSDP gathers the lm_head for the loss."""

    def __init__(self, model: PreTrainedModel, objective: ObjectiveSpec):
        super().__init__()
        self.model = model
        self.objective = objective
        config = model.config.get_text_config()
        multiplier = getattr(config, "logit_scale", None) or 1.0  # Cohere
        divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
        self.logit_shape = LogitShape(multiplier / divisor, getattr(config, "final_logit_softcapping", None) or 0.0)

    def forward(
        self,
        blocks: Blocks,
        scales: tuple[float, float],
        known_weights: torch.Tensor,
        measures_gains: bool = True,
        asked: torch.Tensor | None = None,
    ):
        """The scaled loss of some blocks, and sums over their rows.

        Args:
            blocks: M of them.
            scales: factors of the LM loss and of the fusion loss.
            known_weights: float32 [D], of repeated passages, by domain.
            measures_gains: ``blocks.have_gains()``, asked where it needs no waiting for a GPU; it saves time alone.
            asked: int64, rows of which the target's own distributions are wanted; None: of none.

        Returns:
            The loss; float64 [6]: the LM loss, both weighted losses, the gains, the rows that have a gain, the fusion
            loss's weights; float64 [M,3] of each block: its LM loss, the weights of its fused rows that are not
            repeated, and the number of these rows; and the ``asked`` rows.
        """
        states = self.hidden_states(blocks.input_ids, blocks.position_ids).flatten(0, 1)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        fusion_mask = blocks.fusion_mask.flatten()
        targets = Targets(
            blocks.labels.flatten(),
            blocks.fused_ids.flatten(0, 1),
            blocks.fused_probs.flatten(0, 1),
            fusion_mask,
            fusion_mask.float(),
            torch.full_like(fusion_mask, self.objective.lm_loss_weight, dtype=torch.float32),
        )
        is_new, gain_sums = ~blocks.is_repeated.flatten(), targets.fusion_weights.new_zeros(2)
        if self.objective.full_gain:
            counts, gains = counted_rows(targets) & is_new, torch.zeros_like(targets.fusion_weights)
            if measures_gains:
                gains = torch.where(counts, label_gains(states, head.weight, bias, targets, self.logit_shape), 0.0)
            gain_sums = torch.stack([gains.sum(), counts.sum()])
            targets = self._weighted(targets, blocks, gains, known_weights)
        kind = self.objective.divergence
        loss, loss_sums, label_nats = objective(states, head.weight, bias, targets, *scales, self.logit_shape, kind)
        sums = torch.cat([label_nats.sum()[None], loss_sums, gain_sums, targets.fusion_weights.sum()[None]])
        of_rows = torch.stack([label_nats, targets.fusion_weights * is_new, fusion_mask & is_new], dim=-1)
        of_blocks = of_rows.view(*blocks.labels.shape, -1).sum(1)
        if asked is None:
            return loss, sums, of_blocks, None
        return (
            loss,
            sums,
            of_blocks,
            own_rows(states[asked].detach(), head.weight, bias, targets.at(asked), self.logit_shape),
        )

    def _weighted(self, targets: Targets, blocks: Blocks, gains: torch.Tensor, known_weights: torch.Tensor) -> Targets:
        """The targets with the weights of their passages, by gain or, of repeated ones, by domain (``method.gain``)."""
        is_repeated, counted = blocks.is_repeated.flatten(), counted_rows(targets)
        passages = (blocks.position_ids.flatten() == 0).cumsum(0) - 1
        known = known_weights[blocks.domains].repeat_interleave(blocks.labels.shape[1])
        weights = torch.where(
            is_repeated,
            repeated_weights(known, counted, passages),
            passage_weights(gains, counted & ~is_repeated, passages, self.objective.full_gain),
        )
        lm_weights = remaining_lm_weights(weights, self.objective.lm_loss_weight)
        return replace(targets, fusion_weights=weights * targets.fusion_mask, lm_weights=lm_weights)

    def hidden_states(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """The last hidden states, [B,L,D]; attention stays inside each passage.

        transformers sees from positions that go back to 0 where a passage begins. It does so only without an attention
        mask and without a cache.
        """
        shape, bounds = input_ids.shape, {}
        if in_one_row(self.model.config._attn_implementation):
            input_ids, position_ids = input_ids.view(1, -1), position_ids.reshape(1, -1)
            bounds = passage_bounds(position_ids, longest=shape[1])
        output = self.model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **bounds)
        return output.last_hidden_state.view(*shape, -1)


class TargetModel:
    """One worker's shard of the model to train; all workers call each method at the same step.

    torch's process group must exist.

    Args:
        spec, training, objective: sections of the run's spec; ``spec`` is its ``target_model``.
        top_k: K of the fused distributions.
        device: of this worker.
        num_domains: D, domains of the corpus.

    Attributes:
        model: the sharded module; parameters are float32.
        spec: the section ``target_model``.
        config: transformers' configuration of the model.
        generation_config: transformers' too, on the first worker; None on the others.
        optimizer: AdamW.
        step: optimizer steps so far.
        first_pass: float64 [max(D, 1),2], by domain the weights of the fused rows that were not repeated, and their
            number; over all workers.
        block_length: L, places of a training block.

    Raises:
        TrainingError: the architecture cannot be trained on packed passages.
    """

    def __init__(
        self,
        spec: TargetModelSpec,
        training: TrainingSpec,
        objective: ObjectiveSpec,
        top_k: int,
        device: torch.device,
        num_domains: int = 0,
    ):
        self.device = device
        self._num_domains = num_domains
        self.step = 0
        self.first_pass = torch.zeros(max(num_domains, 1), 2, dtype=torch.float64, device=device)
        self.block_length = training.block_length
        self._training = training
        self._lm_loss_weight = objective.lm_loss_weight
        self._top_k = top_k
        whole = read_causal_lm(spec) if dist.get_rank() == 0 else None
        if whole is not None:
            _check_packing(_TargetWithLoss(whole, objective), spec.checkpoint)
        causal_lm = empty_causal_lm(spec, attention_implementation(training, device))
        self.spec, self.config = spec, causal_lm.config
        self.generation_config = whole.generation_config if whole is not None else None
        if training.activation_checkpointing:
            recompute_activations(causal_lm)
        if training.compile:
            compile_blocks(causal_lm)
        module = _TargetWithLoss(causal_lm, objective)
        self.model = shard(module, causal_lm, training, device)
        fill(self.model, causal_lm, whole, device)
        self.model.train()
        self.optimizer = _adamw(self.model, training)

    def train_step(self, table: pa.Table | None, asked: np.ndarray | None = None) -> StepLosses:
        """Take one optimizer step over all workers.

        Args:
            table: this worker's blocks (``records.TRAINING_BLOCK``); None when its share of the corpus is used up.
            asked: int64, ascending, rows of these blocks of which the target's own distributions are wanted.

        Raises:
            TrainingError: the loss or the gradient is not finite; nothing was updated. The message is the same on all
                workers: it names those with losses that are not finite and their passages, or all workers if only the
                gradient is not finite.
        """
        training = self._training
        blocks = self._blocks(table)
        lm_rows, fused_rows, micro_batches = self._agree(table, blocks)
        lm_scale = 1.0 / max(lm_rows, 1) * dist.get_world_size()  # FSDP averages over the workers
        fusion_scale = (1.0 - self._lm_loss_weight) / max(fused_rows, 1) * dist.get_world_size()
        sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        domain_sums = torch.zeros(len(self.first_pass), 3, dtype=torch.float64, device=self.device)
        known_weights = mean_weights(self.first_pass)
        own: list[OwnRows] = []
        for index in range(micro_batches):
            is_last = index == micro_batches - 1
            self.model.set_requires_gradient_sync(is_last or training.sync_gradients == "every_micro_batch")
            part = blocks.micro_batch(index, training.micro_batch_blocks)
            have_gains, part = part.have_gains(), part.on(self.device)
            loss, loss_sums, of_blocks, rows = self.model(
                part, (lm_scale, fusion_scale), known_weights, have_gains, self._asked_of(index, asked)
            )
            own += [] if rows is None else [rows]
            loss.backward()
            sums += loss_sums
            domain_sums.index_add_(0, part.domains, of_blocks)
        is_finite = sums.isfinite().all()  # of this worker: the sum over all workers does not show whose were not
        sums = torch.cat([sums, domain_sums.flatten()])
        dist.all_reduce(sums)
        lm_loss, weighted_lm_loss = (float(total) / max(lm_rows, 1) for total in sums[:2])
        fusion_loss = float(sums[2]) / fused_rows if fused_rows else math.nan
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.optimizer.max_grad_norm)
        grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        loss = weighted_lm_loss + (1.0 - self._lm_loss_weight) * (fusion_loss if fused_rows else 0.0)
        if not math.isfinite(loss + grad_norm):
            self.optimizer.zero_grad()
            raise TrainingError(self._not_finite(table, bool(is_finite), lm_loss, fusion_loss, grad_norm))
        learning_rate = self._update()
        gain, gain_rows, weight = sums[3:6].tolist()
        of_domains = sums[6:].view_as(domain_sums)
        self.first_pass += of_domains[:, 1:]
        return StepLosses(
            *(loss, lm_loss, fusion_loss, grad_norm, learning_rate, lm_rows, fused_rows),
            fusion_gain=ratio(gain, gain_rows),
            fusion_weight=ratio(weight, fused_rows),
            domain_lm_nats=tuple(of_domains[: self._num_domains, 0].tolist()),
            own=OwnRows(*map(torch.cat, zip(*own, strict=True))) if own else None,
        )

    def _asked_of(self, index: int, asked: np.ndarray | None) -> torch.Tensor | None:
        """The asked rows of a micro batch, counted from its first; None without any."""
        if asked is None or not len(asked):
            return None
        size = self._training.micro_batch_blocks * self._training.block_length
        inside = asked[asked // size == index] - index * size
        return torch.from_numpy(inside).to(self.device) if len(inside) else None

    def _update(self) -> float:
        learning_rate = learning_rate_at(self.step, self._training)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return learning_rate

    def _agree(self, table: pa.Table | None, blocks: Blocks) -> tuple[int, int, int]:
        """Rows with a label and fused rows over all workers, and the largest number of micro batches of any worker."""
        num_blocks = 0 if table is None else len(table)
        micro_batches = torch.tensor(-(-num_blocks // self._training.micro_batch_blocks))
        mine = torch.stack([(blocks.labels >= 0).sum(), blocks.fusion_mask.sum(), micro_batches])
        every = of_all_workers(mine.to(self.device))
        return int(every[:, 0].sum()), int(every[:, 1].sum()), int(every[:, 2].max())

    def _blocks(self, table: pa.Table | None) -> Blocks:
        """A worker's blocks of a step, in main memory."""
        length, top_k = self._training.block_length, self._top_k
        if table is None or not len(table):
            empty = torch.zeros(1, length, dtype=torch.long)
            wide = torch.zeros(1, length, top_k)
            blocks = Blocks(empty, empty, empty, wide.long() - 1, wide, empty.bool(), empty.bool(), empty[:, 0])
            return blocks.without_weight()

        def column(name: str, *shape: int) -> torch.Tensor:
            return torch.from_numpy(flat_values(table[name])[0].reshape(-1, *shape).copy())

        input_ids, segment_ids = column("input_ids", length).long(), column("segment_ids", length)
        following = torch.cat([input_ids[:, 1:], input_ids.new_zeros(len(input_ids), 1)], dim=1)
        has_label = column("loss_mask", length)
        return Blocks(
            input_ids=input_ids,
            position_ids=_positions(segment_ids),
            labels=torch.where(has_label, following, -1),
            fused_ids=column("fused_ids", length, top_k).long(),
            fused_probs=column("fused_probs", length, top_k).float(),
            fusion_mask=column("fusion_mask", length),
            is_repeated=_is_repeated(table, segment_ids),
            domains=torch.from_numpy(domains_of_blocks(table)) if self._num_domains else input_ids[:, 0] * 0,
        )

    def _not_finite(
        self, table: pa.Table | None, is_finite: bool, lm_loss: float, fusion_loss: float, grad_norm: float
    ) -> str:
        """The message about a step that was not finite, the same on all workers, which all call this.

        Args:
            table: this worker's blocks.
            is_finite: whether this worker's losses were finite.
            lm_loss, fusion_loss, grad_norm: over all workers.
        """
        ids = [] if table is None else [str(name) for row in rows_of(table["passage_ids"]) for name in row]
        mine = is_finite, ids
        shares = [mine] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
        suspects = [rank for rank, (was_finite, _) in enumerate(shares) if not was_finite] or range(len(shares))
        held = "; worker ".join(f"{rank} had the passages {', '.join(shares[rank][1]) or 'none'}" for rank in suspects)
        return (
            f"step {self.step + 1}: not finite: LM loss {lm_loss}, fusion loss {fusion_loss}, "
            f"gradient norm {grad_norm}; nothing was updated. Worker {held}. "
            f"Lower training.optimizer.learning_rate or look at these passages"
        )


def learning_rate_at(step: int, training: TrainingSpec) -> float:
    """The learning rate of a step (0 is the first): linear warm-up, then decay to a tenth of the peak at max_steps."""
    optimizer = training.optimizer
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    done = (step - optimizer.warmup_steps) / max(1, training.max_steps - optimizer.warmup_steps)
    shape = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return optimizer.learning_rate * (FINAL_SHARE + (1.0 - FINAL_SHARE) * max(shape, 0.0))


def domains_of_blocks(table: pa.Table) -> np.ndarray:
    """The index of the domain of each training block, int64 [M]."""
    shards = flat_values(table["ledger_entry"])[0].reshape(len(table), -1)[:, 0]  # the first number of an ``Entry``
    return domains_of(shards)


def _is_repeated(table: pa.Table, segment_ids: torch.Tensor) -> torch.Tensor:
    """Whether each place of training blocks is of a repeated passage, bool [M,L]; not so in padding.

    Args:
        table: of M blocks.
        segment_ids: int32 [M,L], the number of each place's passage in its block, from 1; 0 in padding.
    """
    ids = rows_of(table["passage_ids"])
    of_segments = np.zeros((len(table), 1 + max(map(len, ids))), bool)
    for block, names in enumerate(ids):
        of_segments[block, 1 : 1 + len(names)] = [is_repeated(str(name)) for name in names]
    return torch.from_numpy(np.take_along_axis(of_segments, segment_ids.numpy().astype(np.int64), axis=1))


def _positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """Positions from 0 in every segment, int64 [B,L]; 0 in padding: each of its places is a passage by itself."""
    places = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand(segment_ids.shape)
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return torch.where(segment_ids == 0, 0, places - torch.where(begins, places, 0).cummax(dim=1).values)


@torch.no_grad()
def _check_packing(module: _TargetWithLoss, checkpoint: str) -> None:
    """Refuse an architecture that ignores ``position_ids`` or changes its logits after the lm_head in an unknown way.

    Neither shows in training: the loss falls, but the trained model computes something else when it is used.
    """
    module.eval()
    head = module.model.get_output_embeddings()
    device, bias = head.weight.device, getattr(head, "bias", None)
    tokens = torch.arange(8, device=device)[None] % len(head.weight)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]], device=device)
    packed = module.hidden_states(tokens, positions)[:, 3:]
    packed = shaped(nn.functional.linear(packed, head.weight, bias), module.logit_shape)[0]
    alone = module.model(input_ids=tokens[:, 3:], use_cache=False).logits
    difference = float((packed - alone).abs().max() / alone.abs().max())
    if not difference <= LOGIT_TOLERANCE:
        raise TrainingError(
            f"target_model.checkpoint {checkpoint}: {type(module.model).__name__} gives a passage other logits inside "
            f"a training block than alone (relative difference {difference:.2g}, allowed {LOGIT_TOLERANCE:g}). It "
            f"ignores position_ids, or changes its logits after the lm_head in a way not known here. Choose an "
            f"architecture that does neither, such as Llama, Mistral, Qwen, Gemma, GPT-2 or GPT-NeoX"
        )


def _adamw(model: nn.Module, training: TrainingSpec) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone: norms and biases are scales.

    In one kernel: it reads and writes 28 bytes a weight and keeps nothing else. PyTorch's own choice on a GPU, an
    operation for all weights after the other, moves more than twice as much and holds another copy of the weights; its
    choice on a CPU, matrix by matrix, takes nine times as long.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, training.optimizer.learning_rate, training.optimizer.betas, fused=True)
