"""Batches: which images a step sees, and how they are augmented.

Everything is a pure function of (seed, step), so a run that was killed resumes with the same bits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weightinit.errors import WeightInitError
from weightinit.training.images import ImageData, ImageFiles, Split

__all__ = ["batches", "crop_and_flip", "normalise", "seeded"]

AUGMENTS = ("none", "light", "paper")


def subseed(*parts: int) -> int:
    """Return a seed for ``parts``, well mixed (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + part + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


@contextmanager
def seeded(seed: int, devices: tuple[int, ...] = ()) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators inside the block, and put them back."""
    import numpy as np

    python, numeric = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numeric)


def normalise(images: Tensor, data: ImageData, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 images ``[B, H, W, C]`` as fp32 ``[B, C, H, W]`` of mean 0 and variance 1."""
    mean, std = (torch.tensor(v, device=device) * 255 for v in (data.mean, data.std))
    return ((images.to(device).float() - mean) / std).permute(0, 3, 1, 2)


def crop_and_flip(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Return a random crop, padded by an eighth with zeros, of each of uint8 ``[B, H, W, C]``.

    Args:
        images: one batch.
        flip: whether to mirror every other image, at random.
        generator: of all draws.
    """
    b, h, w, _ = images.shape
    py, px = h // 8, w // 8
    padded = torch.nn.functional.pad(images, (0, 0, px, px, py, py))
    top = torch.randint(2 * py + 1, (b, 1), generator=generator)
    left = torch.randint(2 * px + 1, (b, 1), generator=generator)
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        mirrored = torch.rand((b, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


def batches(
    data: ImageData,
    *,
    steps: range,
    batch_size: int,
    augment: str,
    seed: int,
    label_smoothing: float = 0.0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one (images fp32 ``[B, C, H, W]``, targets ``[B, classes]``) a step.

    Args:
        data: whose training images are drawn, every image once an epoch.
        steps: which steps, counted from the start of the training.
        batch_size: over all processes together.
        augment: ``"none"``, ``"light"`` (random crop, flip where the data allows it), or
            ``"paper"`` (WAVE's Table C.1: colour jitter 0.4, rand-m9-mstd0.5-inc1, mixup 0.8 and
            cutmix 1.0, by timm).
        seed: of the order and of the augmentation.
        label_smoothing: how much of the target is spread over all classes.
        rank: of this process.
        world: how many processes share a batch.
        workers: processes that prepare images for ``"paper"``.

    Raises:
        WeightInitError: if the batch does not divide, or the augmentation is unknown.
    """
    if augment not in AUGMENTS:
        raise WeightInitError(f"augment {augment!r} is unknown: use one of {AUGMENTS}")
    if batch_size % world or batch_size > len(data.train):
        raise WeightInitError(
            f"batch_size {batch_size} cannot be drawn from {len(data.train)} training images by "
            f"{world} processes: use a multiple of {world} that is no larger than the data"
        )
    rows = _Rows(len(data.train), batch_size, seed)
    if augment == "paper":
        yield from _paper(data, rows, steps, label_smoothing, rank, world, workers)
        return
    for step in steps:
        index = rows[step][rank::world]
        images = data.train.images[index]
        if augment == "light":
            generator = torch.Generator().manual_seed(subseed(seed, 1, step, rank))
            images = crop_and_flip(images, data.flip, generator)
        hot = torch.nn.functional.one_hot(data.train.labels[index], data.classes).float()
        targets = hot * (1 - label_smoothing) + label_smoothing / data.classes
        yield normalise(images, data), targets


class _Rows:
    """Which images step i sees: a new order each epoch, the last partial batch dropped."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __getitem__(self, step: int) -> Tensor:
        epoch, batch = divmod(step, self.count // self.batch_size)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(subseed(self.seed, 0, epoch))
            self.order = (epoch, torch.randperm(self.count, generator=generator))
        return self.order[1][batch * self.batch_size : (batch + 1) * self.batch_size]


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Single images through timm's training transform, each under a seed of its own."""

    def __init__(self, split: Split, transform: Any, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        step, row = key
        with seeded(subseed(self.seed, 2, step, row)):
            return self.transform(self._picture(row)), int(self.split.labels[row])

    def _picture(self, row: int) -> Any:
        from PIL import Image

        images = self.split.images
        if isinstance(images, ImageFiles):
            return images.picture(row)
        return Image.fromarray(images[row].numpy())


def _paper(
    data: ImageData,
    rows: _Rows,
    steps: range,
    smoothing: float,
    rank: int,
    world: int,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    from timm.data.mixup import Mixup
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import RandomCrop

    if len(data.mean) != 3:
        raise WeightInitError(
            f"augment 'paper' needs colour images, and {data.name} has {len(data.mean)} channel: "
            "use augment 'light'"
        )
    images = data.train.images
    size = images.size if isinstance(images, ImageFiles) else images.shape[1]
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
        transform.transforms[0] = RandomCrop(size, padding=size // 8)
    mix = Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=data.classes)
    keys = [[(step, int(i)) for i in rows[step][rank::world]] for step in steps]
    loader = DataLoader(
        _Pictures(data.train, transform, rows.seed),
        batch_sampler=keys,
        num_workers=workers,
        generator=torch.Generator(),
    )
    for step, (x, y) in zip(steps, loader, strict=True):
        with seeded(subseed(rows.seed, 3, step, rank)):
            x, y = mix(x, y)
        yield x, y
