"""Several data sets at once: what they share, a task a step, and what tells tasks apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.errors import WeightInitError
from weightinit.hypernet.samplers import Sampler
from weightinit.inherit.running import captured
from weightinit.training.contexts import evaluating, subseed
from weightinit.training.images import ImageData
from weightinit.training.text import TextData

__all__ = ["Data", "check_tasks", "image_size", "probabilities", "task_batches", "task_embedding"]

Data = ImageData | TextData


def check_tasks(tasks: Sequence[Data], sampler: Sampler | None = None) -> None:
    """Check that there are tasks, all of one kind, and that a sampler draws networks for them."""
    if len({type(task) for task in tasks}) != 1:
        raise WeightInitError(f"{len(tasks)} tasks: use one or more, all images or all texts")
    data = tasks[0]
    if sampler is not None and sampler.family != data.family:
        raise WeightInitError(
            f"sampler {sampler.name!r} trains no {data.networks}: use another for {data.kind}"
        )


def image_size(tasks: Sequence[Data]) -> int:
    """Return the side of the images of all tasks, which must have one square shape; 0 of texts."""
    images = [task for task in tasks if isinstance(task, ImageData)]
    shapes = {(*task.train.size, len(task.mean)) for task in images}
    if len(shapes) > 1 or any(height != width for height, width, _ in shapes):
        raise WeightInitError(
            f"the tasks have images of {sorted(shapes)}: bring them to one square shape with "
            "data.in_shape(size)"
        )
    return shapes.pop()[0] if shapes else 0


def probabilities(sizes: Sequence[int], temperature: float = 2.0) -> Tensor:
    """Return how often each task is drawn: p_i proportional to (N_i / sum N)^(1/T) (TAL, stage 2).

    N are the numbers of training images or tokens; T = 1 draws every image equally often, infinity
    every task.

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


def task_batches(
    tasks: Sequence[Data], steps: range, *, seed: int, temperature: float = 2.0, **options: Any
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield one (task, inputs, targets) a step: a task drawn by temperature, and its next batch.

    Every step is a function of the seed and its number alone, so that a resumed run goes on with
    the same bits, and all processes agree on the task. ``options`` are those of the data sets'
    ``batches``; a single task sees the order of plain training.
    """
    check_tasks(tasks)
    edges = probabilities([len(task.train) for task in tasks], temperature).cumsum(0)

    def task_at(step: int) -> int:
        if len(tasks) == 1:
            return 0
        generator = torch.Generator().manual_seed(subseed(seed, 6, step))
        drawn = torch.rand((), dtype=torch.float64, generator=generator)
        return min(int(torch.searchsorted(edges, drawn)), len(tasks) - 1)

    before = Counter(map(task_at, range(steps.start)))
    drawn = [task_at(step) for step in steps]
    sources = {
        task: tasks[task].batches(
            range(before[task], before[task] + count),
            seed=subseed(seed, 7, task) if len(tasks) > 1 else seed,
            **options,
        )
        for task, count in Counter(drawn).items()
    }
    for task in drawn:
        yield task, *next(sources[task])


def task_embedding(ancestor: nn.Module, data: Data, *, batch_size: int = 500) -> Tensor:
    """Return TAL's description of a task: the ancestor's mean feature over its training data.

    That is the mean of the final class token (or of the pooled patches, or of all tokens of a
    text), fp32 ``[d]`` on the CPU.

    Examples:
        >>> import timm
        >>> from weightinit.training.data import load_data
        >>> model = timm.create_model(
        ...     "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32,
        ...     num_heads=2, depth=1)
        >>> task_embedding(model, load_data("digits")).shape
        torch.Size([32])
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    with evaluating(ancestor) as device, captured(ancestor) as found:
        for inputs in data.inputs(batch_size):
            ancestor(inputs.to(device))
            feature = found.pop()
            total, count = total + feature.double().sum(0).cpu(), count + len(feature)
    return (total / count).float()
