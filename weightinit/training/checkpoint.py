"""Checkpoints of a training run: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from weightinit.errors import WeightInitError

__all__ = [
    "History",
    "load_checkpoint",
    "load_weights",
    "restore",
    "save_checkpoint",
    "store",
]


@dataclass
class History:
    """What a training run did.

    Args:
        recipe: that was followed.
        rows: one ``{"step", "loss", "lr"}`` a few times an epoch, with ``"val"`` (accuracy in
            percent) where it was measured.
        seconds: spent, over all resumed parts.
    """

    recipe: dict[str, Any]
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def val(self) -> float:
        """The last validation accuracy in percent, nan if none was measured."""
        return next((row["val"] for row in reversed(self.rows) if "val" in row), math.nan)

    def save(self, path: Path) -> None:
        """Write the history as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None, state: dict[str, Any]
) -> None:
    """Write weights, optimizer state and ``state`` (JSON) to ``path``, by way of a rename.

    Args:
        path: of the file.
        module: whose state_dict is written under ``model.``.
        optimizer: whose tensors are written under ``optimizer.<parameter>.``; None for none.
        state: what else a resumed run needs.
    """
    tensors = {f"model.{name}": t for name, t in module.state_dict().items()}
    for index, entry in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in entry.items()}
    # clone: safetensors refuses tensors that share memory, which tied weights do
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, part, metadata={"state": json.dumps(state)})
    part.replace(path)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Read :func:`save_checkpoint`'s file into ``module`` and ``optimizer``; return its state.

    Raises:
        WeightInitError: if the file is not such a checkpoint, or of another model.
    """
    weights, moments = {}, {}
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            for key in file.keys():
                part, _, name = key.partition(".")
                (weights if part == "model" else moments)[name] = file.get_tensor(key)
        module.load_state_dict(weights)
        if optimizer is not None:
            entries: dict[int, dict[str, Any]] = {}
            for key, tensor in moments.items():
                index, _, name = key.partition(".")
                entries.setdefault(int(index), {})[name] = tensor
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise WeightInitError(
            f"{path} is not a checkpoint of this model ({error}): remove it, or start without "
            "resuming"
        ) from error
    return state


def load_weights(path: Path, module: nn.Module) -> dict[str, Any]:
    """Read a checkpoint's weights alone; return its state."""
    return load_checkpoint(path, module)


def store(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: History,
    step: int,
) -> None:
    """Write where a training stands to ``path``, and its history beside it as history.json."""
    record = {"step": step, "history": asdict(history), "scaler": scaler.state_dict()}
    save_checkpoint(path, module, optimizer, record)
    history.save(path.with_name("history.json"))


def restore(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: History,
) -> tuple[History, int]:
    """Read :func:`store`'s file into ``module`` and the others; return its history and step.

    Args:
        path: of the file.
        module: whose weights are read.
        optimizer: whose state is read.
        scaler: of gradients, likewise.
        history: of the run that goes on; its recipe must be the same.

    Raises:
        WeightInitError: if it is no such file, or the recipe is another.
    """
    state = load_checkpoint(path, module, optimizer)
    if state["history"]["recipe"] != history.recipe:
        raise WeightInitError(
            f"{path} was trained by another recipe ({state['history']['recipe']}): resume with the "
            "same options, or start in another folder"
        )
    scaler.load_state_dict(state["scaler"])
    return History(**state["history"]), state["step"]
