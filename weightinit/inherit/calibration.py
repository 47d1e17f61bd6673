"""Calibration data: what a pretrained network is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from weightinit.errors import ProjectionError

__all__ = ["Calibration", "Call", "Generated", "calls_of"]

#: A few batches that the ancestor takes, or none.
Calibration = Iterable[Any] | None
#: Positional and keyword arguments of a forward pass.
Call = tuple[tuple[Any, ...], dict[str, Any]]

#: Bounds on what is held, so that a loader without an end is found out.
MOST, MOST_BYTES = 4096, 4 << 30


class Generated(list[Any]):
    """Calibration batches that were drawn at random: what an ancestor does on them says less."""


_LABELS = {"label", "labels", "target", "targets", "next_sentence_label"}
_HELP = "pass a few unlabelled batches as project_from(..., calibration=batches)"


def calls_of(calibration: Calibration, module: nn.Module) -> list[Call]:
    """Return the calls of a module that calibration batches ask for.

    A batch is a tensor, a tuple whose first item is a tensor or a dict, or a dict of keyword
    arguments. Labels, and arguments that ``forward`` does not take, are left out.
    """
    if calibration is None:
        raise ProjectionError(
            f"this method looks at what the ancestor does on data: {_HELP}, or "
            "calibration='generated' for images drawn at random"
        )
    if isinstance(calibration, (Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
        raise ProjectionError(
            f"calibration= is a {type(calibration).__name__}: pass an iterable of batches, such as "
            "a list of tensors or a data loader"
        )
    calls: list[Call] = []
    size = 0
    for number, batch in enumerate(calibration):
        args, kwargs = _call(batch, number, module)
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors):
            raise ProjectionError(
                f"calibration batch {number} is on the meta device: {_HELP}, with values"
            )
        if any(not x.numel() for x in tensors):
            raise ProjectionError(f"calibration batch {number} is empty: leave it out")
        size += sum(x.numel() * x.element_size() for x in tensors)
        if number >= MOST or size > MOST_BYTES:
            raise ProjectionError(
                f"calibration= holds more than {MOST} batches or {MOST_BYTES >> 30} GiB, all of "
                "which are held: pass a few, such as itertools.islice(loader, 20)"
            )
        calls.append((args, kwargs))
    if not calls:
        raise ProjectionError(f"calibration= holds no batches: {_HELP}")
    return calls


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
