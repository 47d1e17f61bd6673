"""Models whose weights follow from other parameters; the one training loop, and fits by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.errors import ProjectionError

__all__ = ["ComposedModel", "fit", "run"]


class ComposedModel(nn.Module):
    """A model some of whose weights follow from other parameters at every forward.

    The weights stay in the inner model as plain tensors until the next forward, for activation
    checkpointing computes them again in the backward pass. ``torch.func.functional_call`` would
    take them back before, and costs a fortyfold of the time. The inner model loses the parameters
    of the names given.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for name in names:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            module._parameters.pop(leaf, None)  # modules may be shared
            self._places[name] = module, leaf

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights that follow from other parameters, by their names."""
        raise NotImplementedError

    def compose(self) -> None:
        """Compose the weights and put them into the inner model."""
        self.put(self.weights())

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the inner model, by their names."""
        for name, weight in weights.items():
            module, leaf = self._places[name]
            module.__dict__[leaf] = weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compose the weights, then call the inner model."""
        self.compose()
        return self.model(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: not the composed weights, which belong to a graph."""
        for module, leaf in self._places.values():
            module.__dict__.pop(leaf, None)
        return self.__dict__


def run(
    steps: range,
    step: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
    after: Callable[[int, Tensor], Mapping[str, float] | None] | None = None,
    progress: bool | None = None,
    title: str | None = None,
) -> None:
    """Run an optimizer over the gradients of ``step``, which returns the loss of a step's number.

    ``after`` is called with the number of finished steps and the last loss: it schedules the
    learning rate, records and saves, and what it returns is shown beside the bar (``progress``;
    None shows it on a terminal). ``scaler`` is that of fp16 training, by which ``step`` has scaled
    the loss. A loss that is not finite is a ProjectionError; the parameters are those of the step
    before.
    """
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    bar = tqdm(title, total=steps.stop, initial=steps.start, disable=not shown, unit="step")
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
    max_norm: float | None = None,
    progress: bool | None = None,
) -> None:
    """Train a module for a few steps; ProjectionError if the loss is not finite.

    ``train_step`` maps the module to a scalar loss on a batch of its own choosing. ``schedule`` is
    stepped with the optimizer. ``progress`` shows a bar; None shows it on a terminal.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def step(_: int) -> Tensor:
        loss = train_step(module)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ProjectionError(
                f"train_step returned {what}: return the loss of the module that it is given, a "
                "tensor of one number that has a gradient"
            )
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(trained, max_norm)
        return loss

    module.train()
    run(range(steps), step, optimizer, after=lambda *_: schedule.step(), progress=progress)
