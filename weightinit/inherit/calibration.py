"""Calibration data: what a pretrained network is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from weightinit.errors import ProjectionError

__all__ = ["Call", "calls_of"]

#: Positional and keyword arguments of a forward pass.
Call = tuple[tuple[Any, ...], dict[str, Any]]

_LABELS = {"label", "labels", "target", "targets", "next_sentence_label"}
_HELP = "pass a few unlabelled batches as project_from(..., calibration=batches)"


def calls_of(calibration: Iterable[Any] | None, module: nn.Module) -> list[Call]:
    """Return the calls of a module that calibration batches ask for.

    A batch is a tensor, a tuple whose first item is a tensor or a dict, or a dict of keyword
    arguments. Labels, and arguments that ``forward`` does not take, are left out.
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
