"""How to train: what a preset says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from weightinit.errors import WeightInitError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MetaConfig", "TrainingConfig"]

LOSSES = ("ce", "soft+ce", "soft")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Args:
        steps: number of optimizer steps.
        batch_size: number of inputs over all processes together.
        lr: learning rate after the warm-up.
        warmup_steps: steps over which the rate grows linearly from ``warmup_lr``.
        warmup_lr: rate of the first step.
        min_lr: rate that the cosine ends at.
        weight_decay: decay of matrices; biases, norms and what the module excludes have none.
        loss: ``"ce"``, ``"soft+ce"`` (WAVE's Eq. 7: KL(ancestor || module) + CE) or ``"soft"``
            (TLEG: the KL alone).
        label_smoothing: smoothing of the CE.
        augment: ``"none"``, ``"light"`` or ``"paper"``, of images.
        scaler_lr: rate of weight scalers over that of everything else.
        clip_grad: largest norm of the gradient; 0 for no limit.
        ema: decay of the average of all trained parameters that is scored and returned in place of
            the last ones; 0 for no average.
        precision: ``"no"`` (fp32), ``"bf16"`` or ``"fp16"``, mixed.
        seed: base seed for the order of the data, augmentation and drop path.
        task_temperature: T of the sampling of tasks, where there are several.

    Raises:
        WeightInitError: if a value is not allowed.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    weight_decay: float = 0.05
    loss: str = "ce"
    label_smoothing: float = 0.0
    augment: str = "light"
    scaler_lr: float = 1.0
    clip_grad: float = 0.0
    ema: float = 0.0
    precision: str = "no"
    seed: int = 0
    task_temperature: float = 2.0

    def __post_init__(self) -> None:
        """Check the values that a command line can set."""
        for name, allowed in (("loss", LOSSES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise WeightInitError(
                    f"{name} {getattr(self, name)!r} is not supported: use one of {allowed}"
                )
        if self.steps < 1 or self.batch_size < 1:
            raise WeightInitError(
                f"steps={self.steps} and batch_size={self.batch_size} must be at least 1"
            )
        if not (0 < self.lr < math.inf and 0 <= self.scaler_lr < math.inf and 0 <= self.ema < 1):
            raise WeightInitError(
                f"lr={self.lr}, scaler_lr={self.scaler_lr} and ema={self.ema}: use more than 0, "
                "at least 0, and at least 0 and less than 1"
            )

    def planned(self, **changes: Any) -> Self:
        """Return the config with changes that are not None; the warm-up is scaled with steps."""
        changes = {name: value for name, value in changes.items() if value is not None}
        steps = changes.get("steps", self.steps)
        return replace(self, warmup_steps=round(self.warmup_steps * steps / self.steps), **changes)

    def optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        """Return AdamW over what is trained of a module, with timm's groups of weight decay."""
        excluded = getattr(module, "no_weight_decay", set)()
        groups = param_groups_weight_decay(
            module, self.weight_decay, no_weight_decay_list=tuple(excluded)
        )
        scalers = {id(p) for name, p in module.named_parameters() if name.startswith("scalers.")}
        scaled = [
            {**group, "params": parameters, "lr_scale": self.scaler_lr if own else 1.0}
            for own in (False, True)
            for group in groups
            if (parameters := [p for p in group["params"] if (id(p) in scalers) is own])
        ]
        return torch.optim.AdamW(scaled, lr=self.lr, fused=True)

    def schedule(self, optimizer: torch.optim.Optimizer) -> CosineLRScheduler:
        """Return the schedule of the rate: linear warm-up, then half a cosine."""
        return CosineLRScheduler(
            optimizer,
            t_initial=max(2, self.steps - self.warmup_steps),  # timm warns of 1
            lr_min=self.min_lr,
            warmup_t=self.warmup_steps,
            warmup_lr_init=self.warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the precision that networks compute in, as a context."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        if half is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            half = None
        return torch.autocast(device.type, half, enabled=half is not None)


@dataclass(frozen=True)
class MetaConfig(TrainingConfig):
    """How to train a hypernetwork; the defaults are those of LoGAH, TAL and PITH.

    Args:
        penalty: weight of the sum of the Frobenius norms of all predicted parameters.
        architectures: number drawn at each step by each process; their gradients are averaged.
        guide: weight of TAL's KL between features of target and ancestor, that of the CE being the
            rest; 0 for no guide. The paper takes 0.2.
        guide_temperature: T of its softmax.
        faithful: reverse the KL and scale it as the released code does.
        frozen: keep the encoder's layers, but for FiLM, as TAL's second stage does.
    """

    lr: float = 3e-4
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    clip_grad: float = 5.0
    penalty: float = 3e-5
    architectures: int = 1
    guide: float = 0.0
    guide_temperature: float = 3.0
    faithful: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        """Check the values that a command line can set."""
        super().__post_init__()
        if self.loss != "ce":
            raise WeightInitError(f"loss {self.loss!r} trains no hypernetwork: use 'ce' and guide=")
        if self.architectures < 1 or not 0 <= self.guide <= 1 or self.guide_temperature <= 0:
            raise WeightInitError(
                f"architectures={self.architectures}, guide={self.guide} and guide_temperature="
                f"{self.guide_temperature}: use at least 1, 0 to 1, and more than 0"
            )
