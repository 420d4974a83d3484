"""The target model: loaded by transformers, sharded by FSDP2, moved by one optimizer step at a time. torch only."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.errors import TrainingError
from engine.losses import Targets, objective
from engine.records import flat_values, rows_of
from engine.spec import Objective, Training

#: The learning rate ends at this share of its peak.
FINAL_SHARE = 0.1


class StepLosses(NamedTuple):
    """What one optimizer step was like, over all workers; ``fusion_loss`` is NaN in a step without fused rows."""

    loss: float
    lm_loss: float
    fusion_loss: float
    grad_norm: float
    learning_rate: float
    lm_rows: int
    fused_rows: int


class Blocks(NamedTuple):
    """Training blocks as tensors: see ``records.TRAINING_BLOCK``. ``position_ids`` begin at 0 in every passage."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    fused_ids: torch.Tensor
    fused_probs: torch.Tensor
    fusion_mask: torch.Tensor

    def micro_batch(self, index: int, size: int) -> Blocks:
        """Blocks ``index * size`` and on; one block without weight where there are no more."""
        part = Blocks(*(tensor[index * size : (index + 1) * size] for tensor in self))
        return part if len(part.input_ids) else Blocks(*(tensor[:1] for tensor in self)).without_weight()

    def without_weight(self) -> Blocks:
        """The same blocks with no row in any loss: a worker that has run out still takes part in the collectives."""
        return self._replace(labels=torch.full_like(self.labels, -1), fusion_mask=torch.zeros_like(self.fusion_mask))


class _TargetWithLoss(nn.Module):
    """A causal language model and its losses in one forward pass, so that FSDP has the lm_head gathered for the loss."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        config = model.config.get_text_config()
        self._logit_scale = getattr(config, "logit_scale", None) or 1.0
        self._soft_cap = getattr(config, "final_logit_softcapping", None) or 0.0

    def forward(self, blocks: Blocks, lm_scale: float, fusion_scale: float):
        """The scaled loss of some blocks, and the plain sums of both losses."""
        # Positions that begin anew tell transformers where passages end: attention does not cross these places.
        states = self.model.base_model(
            input_ids=blocks.input_ids, position_ids=blocks.position_ids, use_cache=False
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        targets = Targets(
            blocks.labels.flatten(),
            blocks.fused_ids.flatten(0, 1),
            blocks.fused_probs.flatten(0, 1),
            blocks.fusion_mask.flatten(),
        )
        bias = getattr(head, "bias", None)
        return objective(
            states.flatten(0, 1), head.weight, bias, targets, lm_scale, fusion_scale, self._logit_scale, self._soft_cap
        )


class TargetModel:
    """One worker's shard of the model to train. The process group is there already; all workers call in step.

    Args:
        checkpoint: Hugging Face folder or hub name.
        training, objective: sections of the spec.
        top_k: K of the fused distributions.
        device: of this worker.

    Attributes:
        model: the sharded module; parameters are float32.
        optimizer: AdamW.
        step: optimizer steps so far.
    """

    def __init__(self, checkpoint: str, training: Training, objective: Objective, top_k: int, device: torch.device):
        self.device = device
        self.step = 0
        self._training = training
        self._lm_loss_weight = objective.lm_loss_weight
        self._top_k = top_k
        causal_lm = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(device)
        causal_lm.config.use_cache = False
        self.config = causal_lm.config
        self.generation_config = causal_lm.generation_config
        self.model = _shard(_TargetWithLoss(causal_lm), training, device)
        self.model.train()
        self.optimizer = _adamw(self.model, training)

    def train_step(self, table: pa.Table | None) -> StepLosses:
        """One optimizer step on this worker's blocks; None when its share of the corpus is used up.

        Raises:
            TrainingError: the loss or the gradient is not finite; nothing was updated. Names the worker's passages.
        """
        training = self._training
        blocks = self._blocks(table)
        lm_rows, fused_rows, micro_batches = self._agree(table, blocks)
        lm_scale = self._lm_loss_weight / max(lm_rows, 1) * dist.get_world_size()  # FSDP averages over the workers
        fusion_scale = (1.0 - self._lm_loss_weight) / max(fused_rows, 1) * dist.get_world_size()
        sums = torch.zeros(2, device=self.device)
        for index in range(micro_batches):
            self.model.set_requires_gradient_sync(index == micro_batches - 1)
            loss, lm_sum, fusion_sum = self.model(
                blocks.micro_batch(index, training.micro_batch_blocks), lm_scale, fusion_scale
            )
            loss.backward()
            sums += torch.stack([lm_sum, fusion_sum])
        dist.all_reduce(sums)
        lm_loss = float(sums[0]) / max(lm_rows, 1)
        fusion_loss = float(sums[1]) / fused_rows if fused_rows else math.nan
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.optimizer.max_grad_norm)
        grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        loss = self._lm_loss_weight * lm_loss + (1.0 - self._lm_loss_weight) * (fusion_loss if fused_rows else 0.0)
        if not math.isfinite(loss + grad_norm):
            raise TrainingError(self._not_finite(table, lm_loss, fusion_loss, grad_norm))
        learning_rate = self._update()
        return StepLosses(loss, lm_loss, fusion_loss, grad_norm, learning_rate, lm_rows, fused_rows)

    def _update(self) -> float:
        learning_rate = learning_rate_at(self.step, self._training)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return learning_rate

    def _agree(self, table: pa.Table | None, blocks: Blocks) -> tuple[int, int, int]:
        """Rows with a label and fused rows over all workers, and the most micro batches that one of them has."""
        num_blocks = 0 if table is None else len(table)
        counts = torch.stack([(blocks.labels >= 0).sum(), blocks.fusion_mask.sum()])
        most = torch.tensor(-(-num_blocks // self._training.micro_batch_blocks), device=self.device)
        dist.all_reduce(counts)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(counts[0]), int(counts[1]), int(most)

    def _blocks(self, table: pa.Table | None) -> Blocks:
        length, top_k = self._training.block_length, self._top_k
        if table is None or not len(table):
            empty = torch.zeros(1, length, dtype=torch.long, device=self.device)
            wide = torch.zeros(1, length, top_k, device=self.device)
            positions = torch.arange(length, device=self.device)[None]
            return Blocks(empty, positions, empty, wide.long() - 1, wide, empty.bool()).without_weight()

        def column(name: str, *shape: int) -> torch.Tensor:
            return torch.from_numpy(flat_values(table[name])[0].reshape(-1, *shape).copy()).to(self.device)

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
        )

    def _not_finite(self, table: pa.Table | None, lm_loss: float, fusion_loss: float, grad_norm: float) -> str:
        ids = [] if table is None else [str(name) for row in rows_of(table["passage_ids"]) for name in row]
        return (
            f"step {self.step + 1}: not finite: LM loss {lm_loss}, fusion loss {fusion_loss}, gradient norm {grad_norm}; "
            f"nothing was updated. Worker {dist.get_rank()} had the passages {', '.join(ids) or 'none'}. "
            f"Lower training.optimizer.learning_rate or look at these passages"
        )


def learning_rate_at(step: int, training: Training) -> float:
    """The learning rate of a step (0 for the first): linear warm-up, then decay to a tenth of the peak at max_steps."""
    optimizer = training.optimizer
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    done = (step - optimizer.warmup_steps) / max(1, training.max_steps - optimizer.warmup_steps)
    shape = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return optimizer.learning_rate * (FINAL_SHARE + (1.0 - FINAL_SHARE) * max(shape, 0.0))


def _positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """int64 [B,L]: 0, 1, ... anew in every segment, padding being one of them."""
    places = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand(segment_ids.shape)
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def _shard(module: _TargetWithLoss, training: Training, device: torch.device) -> FSDPModule:
    """FSDP2: one group a transformer block, the rest (embeddings, lm_head, last norm) in the root's."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if training.precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in _transformer_blocks(module.model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(module, mesh=mesh, mp_policy=policy)


def _transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that the architecture itself says must not be split."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """Weight decay on matrices alone: norms and biases are scales, not evidence."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.optimizer.learning_rate, betas=training.optimizer.betas)
