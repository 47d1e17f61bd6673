"""How to train: what a preset says, and what a user of both train commands may change."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import timm
import torch
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from weightinit._version import __version__
from weightinit.errors import WeightInitError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MetaConfig", "Run", "TrainingConfig"]

AnyConfig = TypeVar("AnyConfig", bound="TrainingConfig")

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


@dataclass(frozen=True)
class Run:
    """How a user runs a preset.

    Args:
        out: folder of the bundle; ``training/`` in it holds the checkpoint and the history.
        steps: number of steps, the warm-up scaled along; None is the preset's.
        seed: base seed for all random draws.
        resume: go on from the checkpoint in ``out``.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None is the preset's.
        workers: number of processes that augment images.
        cache_dir: folder of downloads and ancestors (default ``~/.cache/weightinit``).
        command: command line, for the provenance.
        progress: None shows bars on a terminal.
    """

    out: str | os.PathLike[str]
    steps: int | None = None
    seed: int = 0
    resume: bool = False
    precision: str | None = None
    workers: int = 0
    cache_dir: str | os.PathLike[str] | None = None
    command: str = ""
    progress: bool | None = None

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return Path(self.out).expanduser()

    @property
    def cache(self) -> Path:
        """The folder of downloads and ancestors."""
        return Path(self.cache_dir or "~/.cache/weightinit").expanduser()

    @property
    def ancestor_options(self) -> dict[str, Any]:
        """Options of :func:`weightinit.training.teacher.get_ancestor`."""
        return {"cache_dir": self.cache, "seed": self.seed, "progress": self.progress}

    def config(self, preset: AnyConfig) -> AnyConfig:
        """Return a preset's config with what the user asks for."""
        return preset.planned(steps=self.steps, seed=self.seed, precision=self.precision)

    def options(self, eval_every: int) -> dict[str, Any]:
        """Return options of :func:`weightinit.training.loop.train`."""
        return {
            "out": self.folder / "training",
            "resume": self.resume,
            "eval_every": max(1, eval_every),
            "workers": self.workers,
            "progress": self.progress,
        }

    def provenance(self, preset: str, **more: Any) -> dict[str, Any]:
        """Return what a bundle says of its training, as plain JSON values."""
        import accelerate

        versions = {
            "weightinit": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        }
        found = {"command": self.command, "preset": preset, **more, "versions": versions}
        return json.loads(json.dumps(found))
