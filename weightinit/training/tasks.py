"""Several data sets at once: one shape for all, a task a step, and what tells tasks apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.inherit.running import captured
from weightinit.training.augment import subseed
from weightinit.training.domains import Data, domain_of
from weightinit.training.images import ImageData, ImageFiles, Split

__all__ = ["TaskBatches", "in_shape", "probabilities", "task_embedding"]


def in_shape(data: ImageData, size: int, channels: int = 3) -> ImageData:
    """Return the data with images of one size, and grey images in as many channels as colour ones.

    Args:
        data: whose images are square or not; they are resized bilinearly, with antialiasing.
        size: of both sides in pixels.
        channels: 3, or what the data has.

    Raises:
        WeightInitError: if colour images would have to become grey.
    """
    own = len(data.mean)
    if own not in (1, channels):
        raise WeightInitError(
            f"{data.name} has {own} channels and {channels} are asked for: use channels={own}"
        )
    parts = {part: _in_shape(getattr(data, part), size, channels) for part in _PARTS}
    wide = channels // own
    return replace(data, mean=data.mean * wide, std=data.std * wide, **parts)


_PARTS = ("train", "val", "test")


def _in_shape(split: Split, size: int, channels: int) -> Split:
    images = split.images
    if isinstance(images, ImageFiles):
        return Split(replace(images, size=size, channels=channels), split.labels)
    if images.shape[1:3] != (size, size):
        resized = [_resized(part, size) for part in images.split(1000)]
        images = torch.cat(resized) if resized else images.new_empty(0, size, size, images.shape[3])
    return Split(images.expand(-1, -1, -1, channels).contiguous(), split.labels)


def _resized(images: Tensor, size: int) -> Tensor:
    planes = images.permute(0, 3, 1, 2).float()
    planes = functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def probabilities(sizes: Sequence[int], temperature: float = 2.0) -> Tensor:
    """Return how often each task is drawn: p_i proportional to (N_i / sum N)^(1/T) (TAL, stage 2).

    Args:
        sizes: N, numbers of training images or tokens.
        temperature: T; 1 draws every image equally often, infinity every task.

    Examples:
        >>> probabilities([900, 100]).tolist()
        [0.75, 0.25]
    """
    if not sizes or min(sizes) < 1 or not temperature > 0:
        raise WeightInitError(
            f"sizes {list(sizes)[:8]} and temperature {temperature} must all be positive"
        )
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    share = share ** (1 / temperature)
    return share / share.sum()


class TaskBatches:
    """One task a step, drawn by temperature, and its next batch, without end.

    Every step is a function of the seed and its number alone, so that a resumed run goes on with
    the same bits, and all processes agree on the task.

    Args:
        tasks: to draw from, all images or all texts.
        temperature: of :func:`probabilities`.
        options: of :func:`weightinit.training.augment.batches`: ``batch_size``, ``augment``,
            ``seed``, ``label_smoothing``, ``rank``, ``world``, ``workers``; texts take the batch
            size, seed, rank and world.

    Raises:
        WeightInitError: if there are no tasks.
    """

    def __init__(self, tasks: Sequence[Data], *, temperature: float = 2.0, **options: Any) -> None:
        self.tasks, self.options = tuple(tasks), options
        self.domain = domain_of(self.tasks)
        sizes = [len(task.train) for task in self.tasks]
        self._edges = probabilities(sizes, temperature).cumsum(0)

    def task_at(self, step: int) -> int:
        """Return which task a step trains on."""
        if len(self.tasks) == 1:
            return 0
        generator = torch.Generator().manual_seed(subseed(self.options["seed"], 6, step))
        drawn = torch.rand((), dtype=torch.float64, generator=generator)
        return min(int(torch.searchsorted(self._edges, drawn)), len(self.tasks) - 1)

    def batches(self, steps: range) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield one (task, inputs, wanted) a step, as the tasks' domain gives them.

        Args:
            steps: which, counted from the start of the training.
        """
        before = Counter(self.task_at(step) for step in range(steps.start))
        drawn = [self.task_at(step) for step in steps]
        counts = Counter(drawn)
        options = dict(self.options)
        seed = options.pop("seed")
        # A single task sees its images in the order of plain training.
        sources = {
            task: self.domain.batches(
                self.tasks[task],
                steps=range(before[task], before[task] + counts[task]),
                seed=subseed(seed, 7, task) if len(self.tasks) > 1 else seed,
                **options,
            )
            for task in counts
        }
        for task in drawn:
            yield task, *next(sources[task])


@torch.no_grad()
def task_embedding(ancestor: nn.Module, data: Data, *, batch_size: int = 500) -> Tensor:
    """Return TAL's description of a task: the ancestor's mean feature over its training data.

    Args:
        ancestor: maps images ``[B, C, H, W]``, or tokens ``[B, T]``, to logits, or to features; its
            mode is put back.
        data: of the task, in the shape that the ancestor takes.
        batch_size: images, or windows of a text, at a time.

    Returns:
        The mean of the final class token (or of the pooled patches, or of all tokens of a text),
        fp32 ``[d]`` on the CPU.

    Examples:
        >>> import timm
        >>> from weightinit.training.data import load_data
        >>> model = timm.create_model(
        ...     "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32,
        ...     num_heads=2, depth=1)
        >>> task_embedding(model, load_data("digits")).shape
        torch.Size([32])
    """
    modes = [(m, m.training) for m in ancestor.modules()]
    device = next((p.device for p in ancestor.parameters()), torch.device("cpu"))
    ancestor.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    with captured(ancestor) as found:
        for inputs in domain_of([data]).inputs(data, batch_size):
            ancestor(inputs.to(device))
            feature = found.pop()
            total, count = total + feature.double().sum(0).cpu(), count + len(feature)
    for m, mode in modes:
        m.training = mode
    return (total / count).float()
