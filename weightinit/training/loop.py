"""The one training loop: ancestors, template distillation, and plain training of a target."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.training.augment import batches, normalise, seeded, subseed
from weightinit.training.checkpoint import History, restore, store
from weightinit.training.images import ImageData, Split

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["History", "Recipe", "evaluate", "train"]

LOSSES = ("ce", "soft+ce", "soft")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        steps: optimizer steps.
        batch_size: over all processes together.
        lr: after the warm-up.
        warmup_steps: over which the rate grows linearly from ``warmup_lr``.
        warmup_lr: rate of the first step.
        min_lr: rate that the cosine ends at.
        weight_decay: of matrices; biases, norms and what the module excludes have none.
        loss: ``"ce"``, ``"soft+ce"`` (WAVE's Eq. 7: KL(ancestor || module) + CE) or ``"soft"``
            (TLEG: the KL alone).
        label_smoothing: of the CE.
        augment: ``"none"``, ``"light"`` or ``"paper"``.
        scaler_lr: rate of weight scalers over that of everything else.
        clip_grad: largest norm of the gradient; 0 for no limit.
        precision: ``"no"`` (fp32), ``"bf16"`` or ``"fp16"``, mixed.
        seed: of the order of images, augmentation and drop path.

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

    def planned(
        self, *, steps: int | None = None, seed: int | None = None, precision: str | None = None
    ) -> Self:
        """Return the recipe with what a user asks for; the warm-up is scaled along with steps."""
        steps = self.steps if steps is None else steps
        return replace(
            self,
            steps=steps,
            warmup_steps=round(self.warmup_steps * steps / self.steps),
            seed=self.seed if seed is None else seed,
            precision=precision or self.precision,
        )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then half a cosine."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def evaluate(module: nn.Module, split: Split, data: ImageData, *, batch_size: int = 500) -> float:
    """Return the top-1 accuracy of ``module`` on ``split`` in percent; its mode is put back.

    Args:
        module: maps images ``[B, C, H, W]`` to logits ``[B, classes]``.
        split: the images and labels to score.
        data: whose normalisation is used.
        batch_size: images at a time.
    """
    modes = [(m, m.training) for m in module.modules()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.eval()
    right = 0
    for rows in torch.arange(len(split)).split(batch_size):
        logits = module(normalise(split.images[rows], data, device))
        right += int((logits.argmax(1).cpu() == split.labels[rows]).sum())
    for m, mode in modes:
        m.training = mode
    return 100 * right / len(split)


def loss_of(kind: str, logits: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the loss of Eq. 7 or one of its halves.

    Args:
        kind: of the loss.
        logits: ``[B, n]``, or ``[B, poolings, n]``, whose losses are averaged.
        targets: ``[B, n]``, a distribution over the classes.
        teacher: the ancestor's logits ``[B, n]``.
    """
    heads = (-1,) + (1,) * (logits.dim() - 2) + (logits.shape[-1],)
    log = functional.log_softmax(logits.float(), -1)
    loss = log.new_zeros(()) if kind == "soft" else -(targets.view(heads) * log).sum(-1).mean()
    if kind != "ce":
        assert teacher is not None
        wanted = functional.log_softmax(teacher.float(), -1).view(heads).expand_as(log)
        loss = (
            loss + functional.kl_div(log, wanted, log_target=True, reduction="none").sum(-1).mean()
        )
    return loss


def train(
    module: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    ancestor: nn.Module | None = None,
    out: Path | None = None,
    resume: bool = False,
    save_every: int = 500,
    eval_every: int = 0,
    workers: int = 0,
    progress: bool | None = None,
) -> History:
    """Train ``module`` in place, under accelerate: alone, or in each process of a torchrun.

    Args:
        module: maps images to logits; a plain model or a ConstrainedModel.
        data: to train on; validation accuracy is measured, test images are left alone.
        recipe: how.
        ancestor: frozen model whose logits are the soft targets, unless ``loss`` is ``"ce"``.
        out: folder for ``checkpoint.safetensors`` and ``history.json``; None writes nothing.
        resume: go on from the checkpoint in ``out``, if there is one, bit for bit.
        save_every: steps between checkpoints.
        eval_every: steps between validations; 0 validates at the end alone.
        workers: processes that augment images.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The history, with losses and validation accuracy.

    Raises:
        WeightInitError: if the loss needs an ancestor and there is none, or the checkpoint is of
            another recipe.
    """
    if recipe.loss != "ce" and ancestor is None:
        raise WeightInitError(
            f"loss {recipe.loss!r} needs an ancestor: pass ancestor=, or use loss='ce'"
        )
    fleet = accelerator()
    device = fleet.device
    module.to(device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    optimizer = optimizer_of(module, recipe)
    if ancestor is not None:
        ancestor.to(device).eval()
    history, start = History(asdict(recipe)), 0
    file = out / "checkpoint.safetensors" if out else None
    if file and resume and file.exists():
        history, start = restore(file, module, optimizer, scaler, history)
    wrapped = fleet.prepare_model(module)

    cuda = (device.index or 0,) if device.type == "cuda" else ()
    parameters = [p for p in module.parameters() if p.requires_grad]
    report = max(1, min(50, recipe.steps // 20))
    began, mean = time.monotonic() - history.seconds, []
    module.train()
    source = batches(
        data,
        steps=range(start, recipe.steps),
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        seed=recipe.seed,
        label_smoothing=recipe.label_smoothing,
        rank=fleet.process_index,
        world=fleet.num_processes,
        workers=workers,
    )
    bar = progress_bar(recipe.steps, start, progress, fleet.is_main_process)
    for step, (images, targets) in enumerate(source, start):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step) * group["scale"]
        images, targets = images.to(device), targets.to(device)
        with seeded(subseed(recipe.seed, 4, step, fleet.process_index), cuda):
            teacher = None
            with torch.autocast(device.type, half, enabled=half is not None):
                if ancestor is not None and recipe.loss != "ce":
                    with torch.no_grad():
                        teacher = ancestor(images)
                logits = wrapped(images)
            loss = loss_of(recipe.loss, logits, targets, teacher)
            fleet.backward(scaler.scale(loss))
        if recipe.clip_grad:
            scaler.unscale_(optimizer)
            fleet.clip_grad_norm_(parameters, recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        mean.append(loss.detach())
        bar.update()
        done = step + 1
        scored = done == recipe.steps or (eval_every and not done % eval_every)
        if scored or not done % report:
            row = {"step": done, "lr": recipe.lr_at(step), "loss": float(torch.stack(mean).mean())}
            if scored:
                row["val"] = evaluate(module, data.val, data)
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k != "step"})
            history.rows.append(row)
            mean = []
        history.seconds = time.monotonic() - began
        if done == recipe.steps or not done % save_every:
            if file and fleet.is_main_process:
                store(file, module, optimizer, scaler, history, done)
    bar.close()
    fleet.wait_for_everyone()
    fleet.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return history


def accelerator() -> Any:
    """Return accelerate's view of processes and devices, as torchrun or its launcher set it."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise WeightInitError(
            "training needs accelerate: install it with pip install 'weightinit[train]'"
        ) from error
    # accelerate overlooks torchrun on a machine without accelerators unless it is told
    return Accelerator(cpu=not torch.accelerator.is_available())


def optimizer_of(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; vectors, and what the module itself excludes, have no weight decay, as in timm."""
    excluded = set(getattr(module, "no_weight_decay", set)())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in excluded
            scale = recipe.scaler_lr if name.startswith("scalers.") else 1.0
            groups.setdefault((recipe.weight_decay * decayed, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=recipe.lr,
        fused=True,
    )


def progress_bar(total: int, start: int, progress: bool | None, main: bool) -> Any:
    """Return a bar over steps, for the main process: on a terminal only, unless told."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, initial=start, disable=not (shown and main), unit="step")
