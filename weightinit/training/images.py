"""Images to train on, in three parts: held in memory, or files decoded on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from weightinit.errors import WeightInitError
from weightinit.training.augment import AUGMENTS, crop_and_flip, heavy_batches
from weightinit.training.contexts import evaluating, subseed

__all__ = ["ImageData", "ImageFiles", "Split"]

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageFiles:
    """Image files decoded on demand: what stands in for a tensor that would not fit in memory.

    The short side of an image is resized to ``size`` pixels, the long one cropped.
    """

    paths: tuple[Path, ...]
    size: int
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(N, size, size, channels)``, that of the tensor."""
        return len(self.paths), self.size, self.size, self.channels

    def picture(self, index: int) -> Image.Image:
        """Return one image of its own size."""
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB" if self.channels == 3 else "L")

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the images at ``index [B]`` as uint8 ``[B, size, size, channels]``."""
        bicubic = v2.InterpolationMode.BICUBIC
        square = v2.Compose(
            [v2.Resize(self.size, bicubic), v2.CenterCrop(self.size), v2.PILToTensor()]
        )
        return torch.stack([square(self.picture(i)).permute(1, 2, 0) for i in index.tolist()])


@dataclass(frozen=True)
class Split:
    """Images uint8 ``[N, H, W, C]`` (or files decoded on demand) and labels int64 ``[N]``."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def rows(self, index: Tensor) -> Split:
        """Return the images and labels at ``index [N]``."""
        images = self.images
        if isinstance(images, ImageFiles):
            paths = tuple(images.paths[i] for i in index.tolist())
            return Split(replace(images, paths=paths), self.labels[index])
        return Split(images[index].contiguous(), self.labels[index])

    def in_shape(self, size: int, channels: int) -> Split:
        """Return the images resized to a square, bilinearly, with as many channels."""
        images = self.images
        if isinstance(images, ImageFiles):
            return Split(replace(images, size=size, channels=channels), self.labels)
        if self.size != (size, size) and len(images):
            planes = [resize(part.permute(0, 3, 1, 2), [size, size]) for part in images.split(1000)]
            images = torch.cat(planes).permute(0, 2, 3, 1)
        return Split(images.expand(-1, -1, -1, channels).contiguous(), self.labels)


@dataclass(frozen=True)
class ImageData:
    """One data set in three parts; validation images are held out of the training images.

    Args:
        name: name of the data set.
        train: images to train on.
        val: images to choose settings with.
        test: images to report on, never to tune on.
        classes: number of classes.
        mean: mean of each channel over the training images, in units of 0..1.
        std: standard deviation of the same.
        flip: whether mirrored images keep their meaning.
        source: where the data came from, for provenance (JSON).
    """

    #: What a sampler must draw for such data, in words too, and what a score is.
    family: ClassVar[str] = "vit"
    kind: ClassVar[str] = "images"
    networks: ClassVar[str] = "vision transformers"
    metric: ClassVar[str] = "accuracy in percent"
    #: Digits of a score behind the point.
    digits: ClassVar[int] = 2

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
        sizes = {part: len(getattr(self, part)) for part in PARTS}
        found = {"name": self.name, "images": sizes, "mean": self.mean, "std": self.std}
        return found | self.source

    def in_shape(self, size: int, channels: int = 3) -> ImageData:
        """Return the data in squares of ``size`` pixels, grey images in as many channels."""
        own = len(self.mean)
        if own not in (1, channels):
            raise WeightInitError(
                f"{self.name} has {own} channels and {channels} are asked for: use channels={own}"
            )
        parts = {part: getattr(self, part).in_shape(size, channels) for part in PARTS}
        wide = channels // own
        return replace(self, mean=self.mean * wide, std=self.std * wide, **parts)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the data with another normalisation, that of a pretrained ancestor."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def normalise(self, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Return uint8 images ``[B, H, W, C]`` as fp32 ``[B, C, H, W]``, mean 0 and variance 1."""
        mean, std = (torch.tensor(v, device=device) * 255 for v in (self.mean, self.std))
        return ((images.to(device).float() - mean) / std).permute(0, 3, 1, 2)

    def inputs(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the training images once, normalised and not augmented."""
        for index in torch.arange(len(self.train)).split(batch_size):
            yield self.normalise(self.train.images[index])

    def check(self, batch_size: int, augment: str, world: int = 1) -> None:
        """Raise WeightInitError where no such batches can be drawn."""
        if augment not in AUGMENTS:
            raise WeightInitError(f"augment {augment!r} is unknown: use one of {AUGMENTS}")
        if batch_size % world or batch_size > len(self.train):
            raise WeightInitError(
                f"batch_size {batch_size} (--batch-size) cannot be drawn from the {len(self.train)}"
                f" training images of {self.name} by {world} processes: use a multiple of {world} "
                "that is no larger than the data"
            )
        if augment == "paper" and len(self.mean) != 3:
            raise WeightInitError(
                f"augment 'paper' needs colour images, and {self.name} has {len(self.mean)} "
                "channel: use augment 'light'"
            )

    def batches(
        self,
        steps: range,
        *,
        batch_size: int,
        seed: int,
        augment: str = "none",
        label_smoothing: float = 0.0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one (images fp32 ``[B, C, H, W]``, targets ``[B, classes]``) a step.

        A step is a function of the seed and its number alone: a run that was killed resumes with
        the same bits. Every image is seen once an epoch; the last partial batch is dropped. The
        batch is shared by ``world`` processes, of which this is number ``rank``; ``workers``
        processes augment images for ``"paper"``.
        """
        self.check(batch_size, augment, world)
        count = len(self.train)

        def rows(step: int) -> Tensor:
            epoch, batch = divmod(step, count // batch_size)
            order = _order(count, subseed(seed, 0, epoch))
            return order[batch * batch_size : (batch + 1) * batch_size][rank::world]

        def batch_of(step: int) -> tuple[Tensor, Tensor]:
            images, labels = (part[rows(step)] for part in (self.train.images, self.train.labels))
            if augment == "light":
                generator = torch.Generator().manual_seed(subseed(seed, 1, step, rank))
                images = crop_and_flip(images, self.flip, generator)
            return self.normalise(images), functional.one_hot(labels, self.classes).float()

        pairs = (
            heavy_batches(self, steps, rows, seed=seed, rank=rank, workers=workers)
            if augment == "paper"
            else map(batch_of, steps)
        )
        for images, targets in pairs:
            yield images, targets * (1 - label_smoothing) + label_smoothing / self.classes

    def arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``timm.create_model``'s arguments with the classes and channels of the data."""
        return {"num_classes": self.classes, "in_chans": len(self.mean), **kwargs}

    @staticmethod
    def build(arguments: Mapping[str, Any]) -> nn.Module:
        """Return the vision transformer of :meth:`arguments`."""
        return timm.create_model("vit_tiny_patch16_224", **arguments)

    @staticmethod
    def loss(out: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy of logits ``[B, n]``, averaged over those ``[B, poolings, n]``.

        The targets ``[B, n]`` are distributions over the classes, and smooth already.
        """
        log = functional.log_softmax(out.float(), -1)
        heads = (-1,) + (1,) * (out.dim() - 2) + (out.shape[-1],)
        return -(targets.view(heads) * log).sum(-1).mean()

    def score(self, model: nn.Module, part: Split | None = None, *, batch_size: int = 500) -> float:
        """Return a model's accuracy in percent on a part, the validation images by default."""
        part, right = self.val if part is None else part, 0
        with evaluating(model) as device:
            for index in torch.arange(len(part)).split(batch_size):
                logits = model(self.normalise(part.images[index], device))
                right += int((logits.argmax(1).cpu() == part.labels[index]).sum())
        return 100 * right / len(part)

    @staticmethod
    def size_of(kwargs: Mapping[str, Any]) -> str:
        """Return ``"<width>x<depth>"`` of a sampler's arguments."""
        return f"{kwargs['embed_dim']}x{kwargs['depth']}"


@lru_cache(maxsize=32)
def _order(count: int, seed: int) -> Tensor:
    """Return the order of the images in one epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
