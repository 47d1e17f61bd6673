"""Augmented images: random crops of whole batches, and DeiT's augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from weightinit.training.contexts import seeded, subseed

if TYPE_CHECKING:
    from weightinit.training.images import ImageData

__all__ = ["AUGMENTS", "crop_and_flip", "heavy_batches"]

AUGMENTS = ("none", "light", "paper")


def crop_and_flip(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Return a random crop of each of ``[B, H, W, C]``, padded by an eighth, and maybe its mirror.

    A transform of torchvision would crop all images of a batch alike.
    """
    b, h, w, _ = images.shape
    py, px = h // 8, w // 8
    padded = pad(images, (0, 0, px, px, py, py))
    top = torch.randint(2 * py + 1, (b, 1), generator=generator)
    left = torch.randint(2 * px + 1, (b, 1), generator=generator)
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        mirrored = torch.rand((b, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Single training images through a random transform, each under a seed of its own."""

    def __init__(self, data: ImageData, transform: Any, seed: int) -> None:
        self.images, self.labels = data.train.images, data.train.labels
        self.transform, self.seed = transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        step, row = key
        images = self.images
        picture = (
            Image.fromarray(images[row].numpy())
            if isinstance(images, Tensor)
            else images.picture(row)
        )
        with seeded(subseed(self.seed, 2, step, row)):
            return self.transform(picture), int(self.labels[row])


def heavy_batches(
    data: ImageData,
    steps: range,
    rows: Callable[[int], Tensor],
    *,
    seed: int,
    rank: int,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images fp32 ``[B, C, H, W]``, mixed labels ``[B, classes]``) by WAVE's Table C.1.

    Colour jitter 0.4, rand-m9-mstd0.5-inc1, random resized crops; then mixup 0.8 or cutmix 1.0
    within a process's share of the batch. ``rows`` gives the images ``[B]`` that a step sees.
    """
    size = data.train.size[0]
    transform: Any = create_transform(
        size,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        hflip=0.5 if data.flip else 0.0,
        mean=data.mean,
        std=data.std,
    )
    if size <= 32:  # as DeiT does: a small image is padded and cropped, not cut to a part and grown
        transform.transforms[0] = v2.RandomCrop(size, padding=size // 8)
    n = data.classes
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=n), v2.CutMix(num_classes=n)])
    keys: Any = ([(step, row) for row in rows(step).tolist()] for step in steps)
    loader = DataLoader(
        _Pictures(data, transform, seed),
        batch_sampler=keys,
        num_workers=workers,
        generator=torch.Generator(),
    )
    for step, (images, labels) in zip(steps, loader, strict=True):
        with seeded(subseed(seed, 3, step, rank)):
            yield mix(images, labels)
