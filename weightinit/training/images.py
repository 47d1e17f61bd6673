"""Images for training, in three parts: held in memory, or files decoded on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["ImageData", "ImageFiles", "Split", "assemble", "pixels", "rows", "split_off"]

#: Data whose images change their meaning when mirrored.
NO_FLIP = ("digits", "gtsrb", "omniglot", "mnist", "spoken", "svhn", "text")


@dataclass(frozen=True)
class ImageFiles:
    """Image files decoded on demand: what stands in for a tensor that would not fit in memory.

    Args:
        paths: of the files.
        size: images are resized so that their short side has it, and cropped to the centre.
        channels: 1 or 3.
    """

    paths: tuple[Path, ...]
    size: int
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Any:
        """Return one image as a PIL image of its own size."""
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return image.convert("RGB" if self.channels == 3 else "L")

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the images at ``index [B]`` as uint8 ``[B, size, size, channels]``."""
        return torch.stack([_square(self.picture(int(i)), self.size, self.channels) for i in index])


@dataclass(frozen=True)
class Split:
    """Images uint8 ``[N, H, W, C]`` (or files decoded on demand) and labels int64 ``[N]``."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """One data set in three parts; validation images are held out of the training images.

    Args:
        name: of the data set.
        train: images to train on.
        val: images to choose settings with.
        test: images to report on, never to tune on.
        classes: how many classes there are.
        mean: of each channel over the training images, in units of 0..1.
        std: standard deviation of the same.
        flip: whether mirrored images keep their meaning.
        source: where the data came from, for provenance (JSON).
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    source: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return what a bundle's provenance says of its data."""
        sizes = {part: len(getattr(self, part)) for part in ("train", "val", "test")}
        return {
            "name": self.name,
            "images": sizes,
            "mean": self.mean,
            "std": self.std,
        } | self.source


def split_off(
    labels: Tensor, part: float, generator: torch.Generator, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (kept, held out) indices: ``part`` of every class, whole groups on one side."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        if groups is None:
            order = rows[torch.randperm(len(rows), generator=generator)]
            held[order[: round(part * len(rows))]] = True
        else:
            names = groups[rows].unique()
            names = names[torch.randperm(len(names), generator=generator)]
            held |= torch.isin(groups, names[: max(1, round(part * len(names)))])
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def assemble(
    name: str,
    pool: Split,
    test: Split | None,
    *,
    seed: int,
    source: dict[str, Any],
    groups: Tensor | None = None,
) -> ImageData:
    """Split validation (a tenth, 5,000 at most) and, where there are none, test images off."""
    generator = torch.Generator().manual_seed(seed)
    if test is None:
        rest, held = split_off(pool.labels, 0.2, generator)
        pool, test = rows(pool, rest), rows(pool, held)
        rest, held = split_off(pool.labels, 0.125, generator)
    else:
        part = min(0.1, 5000 / len(pool))
        rest, held = split_off(pool.labels, part, generator, groups)
    train, val = rows(pool, rest), rows(pool, held)
    sample = train.images[torch.arange(0, len(train), max(1, len(train) // 5000))]
    flat = sample.flatten(0, 2).double() / 255
    return ImageData(
        name=name,
        train=train,
        val=val,
        test=test,
        classes=int(max(pool.labels.max(), test.labels.max())) + 1,
        mean=tuple(round(float(v), 4) for v in flat.mean(0)),
        std=tuple(round(float(v), 4) for v in flat.std(0)),
        flip=not any(word in name.lower() for word in NO_FLIP),
        source={"split_seed": seed} | source,
    )


def rows(split: Split, index: Tensor) -> Split:
    """Return the images and labels at ``index [N]``."""
    images = split.images
    if isinstance(images, ImageFiles):
        paths = tuple(images.paths[int(i)] for i in index)
        return Split(ImageFiles(paths, images.size, images.channels), split.labels[index])
    return Split(images[index].contiguous(), split.labels[index])


def _square(image: Any, size: int, channels: int) -> Tensor:
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size])
    left, top = ((side - size) // 2 for side in image.size)
    return pixels(image.crop((left, top, left + size, top + size))).reshape(size, size, channels)


def pixels(image: Any) -> Tensor:
    """Return a PIL image's pixels as uint8 [H, W, C]; numpy is not needed for it."""
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return raw.reshape(image.height, image.width, -1)
