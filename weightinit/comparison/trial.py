"""One training and one score, alike for all starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.comparison.examples import IGNORED, Batch, check_labels, classes
from weightinit.comparison.outcome import Score
from weightinit.errors import WeightInitError
from weightinit.inherit.fitting import fit
from weightinit.training.contexts import evaluating, seeded, subseed

__all__ = ["Loss", "Trial", "copied", "cross_entropy", "said"]

#: From a model's output and labels to a scalar.
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Trial:
    """One training, and one score, alike for all starts."""

    train: Sequence[Batch]
    scored: Sequence[Batch]
    steps: int
    rates: tuple[float, ...]
    loss: Loss
    labelled: bool
    seed: int

    def check(self, module: nn.Module) -> None:
        """Raise WeightInitError where the module does not run, or its head lacks a label."""
        inputs, labels = self.scored[0]
        try:
            with evaluating(module) as device:
                out = _call(module, inputs, device)
                logits = logits_of(out)
                if self.labelled and logits is not None and logits.dim() > 1:
                    for _, others in (*self.train, *self.scored):
                        check_labels(others, logits.shape[1])
                self.loss(out, labels.to(device))
        except WeightInitError:
            raise
        except Exception as error:  # whatever a forward pass makes of the wrong batch
            raise WeightInitError(
                f"the model does not run on a batch ({said(error)}): pass inputs as it takes them, "
                "and labels as the loss does"
            ) from error

    def score(self, module: nn.Module) -> Score:
        """Return the mean loss and the accuracy on the held-out examples."""
        total, right, count, known = 0.0, 0, 0, 0
        with evaluating(module) as device:
            for inputs, labels in self.scored:
                out, labels = _call(module, inputs, device), labels.to(device)
                logits, numbers = logits_of(out), classes(labels)
                # Cross-entropy is the mean over what counts, and a user's own loss that over all.
                weight = len(labels)
                if self.labelled and numbers is not None:
                    weight = int((numbers != IGNORED).sum())
                total += float(self.loss(out, labels)) * weight
                count += weight
                if numbers is None or logits is None or logits.dim() != numbers.dim() + 1:
                    continue
                counted = numbers != IGNORED
                right += int(((logits.argmax(1) == numbers) & counted).sum())
                known += int(counted.sum())
        return Score(total / count, 100 * right / known if known else None)

    def trained(self, start: nn.Module, lr: float, tick: Callable[[], object]) -> Score:
        """Return the score of a copy that was trained at a rate; its loss may not be finite."""
        module = copied(start)
        device = next(module.parameters()).device
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        turns = cycle(self.train)

        def step(module: nn.Module) -> Tensor:
            inputs, labels = next(turns)
            tick()
            loss = self.loss(_call(module, inputs, device), labels.to(device))
            if not bool(torch.isfinite(loss)):
                raise _NotFiniteError
            return loss

        cuda = (device.index or 0,) if device.type == "cuda" else ()
        try:
            with seeded(subseed(self.seed, 1), cuda):
                fit(
                    module,
                    step,
                    optimizer,
                    schedule,
                    steps=self.steps,
                    max_norm=1.0,
                    progress=False,
                )
        except _NotFiniteError:
            return Score(math.nan)
        return self.score(module)

    def _rate(self, step: int) -> float:
        """Return the share of the rate at a step: a rise over the first tenth, then a cosine."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


class _NotFiniteError(Exception):
    """The loss of a step is not finite."""


def cross_entropy(out: Any, labels: Tensor) -> Tensor:
    """Return the cross-entropy of logits, or of an output that has some."""
    logits = logits_of(out)
    if logits is None:
        raise WeightInitError(
            f"the model returns a {type(out).__name__} without logits: pass loss=, a function of "
            "its output and the labels"
        )
    labels = labels if labels.is_floating_point() else labels.long()
    return functional.cross_entropy(logits.float(), labels)


def logits_of(out: Any) -> Tensor | None:
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    return found if isinstance(found, Tensor) else None


def _call(module: nn.Module, inputs: Any, device: torch.device) -> Any:
    """Run a module on inputs, in the dtype of its parameters."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    if isinstance(inputs, Mapping):
        return module(**{name: moved(value) for name, value in inputs.items()})
    return module(moved(inputs))


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module's own attributes raise
        raise WeightInitError(
            f"a {type(model).__name__} cannot be copied ({said(error)}): compare before it is "
            "wrapped or sharded"
        ) from error


def said(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, WeightInitError) else f"{type(error).__name__}: {text[:300]}"
