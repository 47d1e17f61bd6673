"""Images by class, from files, as batches for a model: what the ``compare`` command reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.comparison.examples import Batch
from weightinit.errors import WeightInitError

if TYPE_CHECKING:
    from weightinit.training.images import ImageData

__all__ = ["batches_for", "labelled_images"]


def labelled_images(source: str | os.PathLike[str], seed: int) -> ImageData:
    """Return the images of a folder of one sub-folder a class, or of other data by name.

    Raises:
        WeightInitError: if there are none, too few to hold some out, or torchvision is missing.
    """
    try:
        from weightinit.training.data import load_data
    except ModuleNotFoundError as error:
        raise WeightInitError(
            f"--data needs {error.name}, which reads images: pip install 'weightinit[train]'"
        ) from error
    data = load_data(source, seed=seed)
    if not len(data.val):
        raise WeightInitError(
            f"--data {source} has {len(data.train)} images to train on, too few to hold any out: "
            "name a folder with ten or more of each class"
        )
    return data


def batches_for(
    model: nn.Module,
    data: ImageData,
    ancestor: Ancestor | None,
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> tuple[Iterator[Batch], list[Batch]]:
    """Return batches to train on, cropped and mirrored at random, and the validation images.

    They have the size that the model takes, and are normalised as the ancestor's data, or to mean 0
    and variance 1. Test images are left alone.
    """
    from timm.data.config import resolve_data_config

    seen = anatomy(model, unexplained="keep")
    grid, sizes = seen.traits.grid, seen.sizes
    side: Any = resolve_data_config({}, model=model)["input_size"][1:]
    if grid is not None and {"p", "q"} <= set(sizes):
        side = grid[0] * sizes["p"], grid[1] * sizes["q"]
    if side[0] != side[1]:
        raise WeightInitError(f"the model takes images of {tuple(side)}: set a square img_size=")
    data = data.in_shape(side[0], sizes.get("c", len(data.mean)))
    if ancestor is not None:
        known = getattr(ancestor.module(), "pretrained_cfg", None) or {}
        config = resolve_data_config({}, pretrained_cfg=dict(known))
        if len(config["mean"]) == len(data.mean):
            data = data.normalised(config["mean"], config["std"])
    data.check(batch_size, "light")

    def train() -> Iterator[Batch]:
        found = data.batches(range(steps), batch_size=batch_size, seed=seed, augment="light")
        for images, targets in found:
            yield images, targets.argmax(1)

    part = data.val
    index: tuple[Tensor, ...] = torch.arange(len(part)).split(batch_size)
    return train(), [(data.normalise(part.images[i]), part.labels[i]) for i in index]
