"""Calibration data: what a pretrained network is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from weightinit.errors import ProjectionError

__all__ = ["Calibration", "Call", "calls_of"]

#: A few batches that the ancestor takes, or none.
Calibration = Iterable[Any] | None
#: Positional and keyword arguments of a forward pass.
Call = tuple[tuple[Any, ...], dict[str, Any]]

_LABELS = {"label", "labels", "target", "targets", "next_sentence_label"}
_HELP = "pass a few unlabelled batches as project_from(..., calibration=batches)"


def calls_of(calibration: Calibration, module: nn.Module) -> list[Call]:
    """Return what a module is to be called with.

    Args:
        calibration: batches: tensors, tuples whose first item is one or a dict, or dicts of keyword
            arguments. Labels, and what ``forward`` does not take, are left out.
        module: that will be called.

    Raises:
        ProjectionError: if there are none, or they are something else.

    Examples:
        >>> import torch
        >>> loader = [(torch.zeros(2, 3), torch.zeros(2)), torch.zeros(1, 3)]
        >>> [args[0].shape[0] for args, _ in calls_of(loader, nn.Linear(3, 1))]
        [2, 1]
    """
    if calibration is None:
        raise ProjectionError(f"this method looks at what the ancestor does on data: {_HELP}")
    if isinstance(calibration, (Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
        raise ProjectionError(
            f"calibration= is a {type(calibration).__name__}: pass an iterable of batches, such as "
            "a list of tensors or a data loader"
        )
    found = [_call(batch, number, module) for number, batch in enumerate(calibration)]
    if not found:
        raise ProjectionError(f"calibration= holds no batches: {_HELP}")
    return found


def _call(batch: Any, number: int, module: nn.Module) -> Call:
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        taken = inspect.signature(module.forward).parameters
        known = {k: v for k, v in batch.items() if k in taken and k not in _LABELS}
        if known:
            return (), known
        raise ProjectionError(
            f"calibration batch {number} has {sorted(map(str, batch))}, and the ancestor takes "
            f"{sorted(taken)}: name what it takes, or pass tensors"
        )
    raise ProjectionError(
        f"calibration batch {number} is a {type(batch).__name__}: pass tensors, (input, label) "
        "pairs, or dicts of what the ancestor's forward takes"
    )
