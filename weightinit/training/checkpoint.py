"""Checkpoints of a training run: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from weightinit.errors import WeightInitError
from weightinit.files.writing import atomic

__all__ = ["History", "load_checkpoint", "save_checkpoint"]


@dataclass
class History:
    """What a training run did.

    Args:
        config: the config that was followed.
        rows: one ``{"step", "lr", "loss"}`` a few times an epoch, with ``"val"`` (accuracy in
            percent; of texts bits per byte) where it was measured.
        seconds: time spent, over all resumed parts.
    """

    config: dict[str, Any]
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def val(self) -> float:
        """The last validation score, nan if none was measured."""
        return next((row["val"] for row in reversed(self.rows) if "val" in row), math.nan)

    def resume(self, file: Path, state: Mapping[str, Any]) -> int:
        """Take over the history of a checkpoint of the same config; return its step."""
        unknown = WeightInitError(
            f"{file} is no checkpoint of this version: start again without resume (--force), or in "
            "another folder"
        )
        match state:
            case {
                "step": int() as step,
                "history": {"config": dict() as config, "rows": list() as rows, "seconds": seconds},
                "scaler": dict(),
                "recent": list() as recent,
            } if all(isinstance(row, dict) for row in rows) and all(
                isinstance(value, (int, float)) for value in (seconds, *recent)
            ):
                pass
            case _:
                raise unknown
        names = sorted({k for k in {*config, *self.config} if config.get(k) != self.config.get(k)})
        if names:
            other = [f"{k} {config.get(k)!r:.80}, now {self.config.get(k)!r:.80}" for k in names]
            raise WeightInitError(
                f"{file} was trained by another config ({'; '.join(other)}): resume with the same "
                "options, or start in another folder"
            )
        if not 0 <= step <= self.config["steps"]:
            raise unknown
        self.rows, self.seconds = rows, seconds
        return step

    def save(self, path: Path) -> None:
        """Write the history as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    averages: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights, moments, averages and ``state``, which is JSON, whole or not at all."""
    moments = {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    parts = {"model": module.state_dict(), "optimizer": moments, "average": averages or {}}
    # clone: safetensors refuses tensors that share memory, which tied weights do
    tensors = {
        f"{part}.{name}": value.detach().cpu().clone().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    with suppress(OSError):  # what it was is said when the file cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        save_file(tensors, file, metadata={"state": json.dumps(state)})


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: Optimizer | None = None,
    averages: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Read :func:`save_checkpoint`'s file, and return its state.

    A module that is not trained on, without an optimizer, gets the averages where there are any.
    """
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}, "average": {}}
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            for key in file.keys():
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
        if not isinstance(state, dict) or type(state["step"]) is not int:
            raise ValueError("its state is not of this form")
        module.load_state_dict(parts["model"])
        if optimizer is None:
            module.load_state_dict({**module.state_dict(), **parts["average"]})
        else:
            _load_moments(optimizer, parts["optimizer"])
        for name, value in (averages or {}).items():
            _same_shape(name, parts["average"][name], value)
            value.copy_(parts["average"][name])
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise WeightInitError(
            f"{path} is not a checkpoint of this model ({error}): remove it, or start without "
            "resuming"
        ) from error
    return state


def _load_moments(optimizer: Optimizer, values: Mapping[str, Tensor]) -> None:
    """Load the moments of AdamW, which have the shapes of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in values.items():
        index, _, name = key.partition(".")
        if value.dim():
            _same_shape(key, value, parameters[int(index)])
        moments.setdefault(int(index), {})[name] = value
    if any(entry.keys() != {"step", "exp_avg", "exp_avg_sq"} for entry in moments.values()):
        raise ValueError("its optimizer is not AdamW")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _same_shape(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} is {tuple(value.shape)}, and not {tuple(like.shape)}")
