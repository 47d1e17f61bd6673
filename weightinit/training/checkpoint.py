"""Checkpoints of a training run: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import math
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

    def save(self, path: Path) -> None:
        """Write the history as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> None:
    """Write ``model.<name>``, ``optimizer.<parameter>.<name>`` and ``state``, which is JSON."""
    tensors = {f"model.{name}": t for name, t in module.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in entry.items()}
    # clone: safetensors refuses tensors that share memory, which tied weights do
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        save_file(tensors, part, metadata={"state": json.dumps(state)})


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Read :func:`save_checkpoint`'s file into ``module`` and ``optimizer``; return its state."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            for key in file.keys():
                part, _, name = key.partition(".")
                if part == "model":
                    weights[name] = file.get_tensor(key)
                elif optimizer is not None:
                    index, _, name = name.partition(".")
                    moments.setdefault(int(index), {})[name] = file.get_tensor(key)
        module.load_state_dict(weights)
        if optimizer is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise WeightInitError(
            f"{path} is not a checkpoint of this model ({error}): remove it, or start without "
            "resuming"
        ) from error
    return state
