"""An ancestor that is asked once: sources that train on the same batches share its logits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightinit.training.config import TrainingConfig
from weightinit.training.images import ImageData


def digest(images: Tensor) -> str:
    """Name a batch by its pixels."""
    return hashlib.blake2b(images.contiguous().numpy().data, digest_size=12).hexdigest()


class Remembered(nn.Module):
    """The recorded logits of an ancestor, found by the batch itself: an unseen one is an error."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.logits = load_file(file)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of a batch that was recorded."""
        return self.logits[digest(images)].float()


def remember(
    ancestor: nn.Module, data: ImageData, config: TrainingConfig, file: Path
) -> Remembered:
    """Record an ancestor's logits on every batch of a config in ``file``, unless it exists."""
    if not file.exists():
        ancestor.eval()
        logits: dict[str, Tensor] = {}
        with torch.no_grad():
            for images, _ in data.batches(
                range(config.steps),
                batch_size=config.batch_size,
                augment=config.augment,
                seed=config.seed,
            ):
                logits[digest(images)] = ancestor(images).half()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file(logits, part)
        part.replace(file)
    return Remembered(file)
