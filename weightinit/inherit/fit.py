"""The one training loop: of the three fitted methods, and of everything in training/."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from weightinit.errors import ProjectionError

__all__ = ["fit", "run"]


def run(
    steps: range,
    step: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
    after: Callable[[int, Tensor], Mapping[str, float] | None] | None = None,
    progress: bool | None = None,
) -> None:
    """Run an optimizer over the gradients of a step function.

    Args:
        steps: numbers of the steps; a resumed run starts in the middle.
        step: computes the gradients of one step, from its number, and returns the loss.
        optimizer: updates the parameters, and clears their gradients.
        scaler: loss scaler of fp16 training, by which ``step`` has scaled the loss.
        after: called with the number of finished steps and the last loss: schedules the learning
            rate, records, saves. What it returns is shown beside the bar.
        progress: whether to show a bar; None shows it on a terminal.

    Raises:
        ProjectionError: if the loss is not finite; the parameters are those of the step before.
    """
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    bar = tqdm(total=steps.stop, initial=steps.start, disable=not shown, unit="step")
    with bar:
        for index in steps:
            loss = step(index).detach()
            if not torch.isfinite(loss):
                raise ProjectionError(
                    f"the loss is {float(loss)} at step {index}: use a lower lr than "
                    f"{optimizer.defaults['lr']}"
                )
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            bar.update()
            if after and (row := after(index + 1, loss)):
                bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()})


def fit(
    module: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    steps: int,
    clip_grad: float = 0.0,
    progress: bool | None = None,
) -> None:
    """Train a module in place on a user's loss.

    Args:
        module: put in training mode.
        train_step: maps the module to a scalar loss on a batch of its own choosing.
        optimizer: of the parameters that are trained.
        schedule: of the learning rate, moved on after each step.
        steps: number of optimizer steps.
        clip_grad: largest norm of the gradient; 0 for no limit.
        progress: whether to show a bar; None shows it on a terminal.

    Raises:
        ProjectionError: if the loss is not finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(_: int) -> Tensor:
        loss = train_step(module)
        loss.backward()
        if clip_grad:
            nn.utils.clip_grad_norm_(parameters, clip_grad)
        return loss

    module.train()
    run(range(steps), step, optimizer, after=lambda *_: schedule.step(), progress=progress)
