"""The networks that others learn from: built and trained here, or published."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import AnatomyError, WeightInitError
from weightinit.training.checkpoint import load_checkpoint
from weightinit.training.config import TrainingConfig
from weightinit.training.contexts import evaluating, seeded
from weightinit.training.images import ImageData
from weightinit.training.loop import train
from weightinit.training.tasks import Data
from weightinit.training.text import TextData

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = [
    "Network",
    "ResizingModel",
    "as_published",
    "get_ancestor",
    "is_path",
    "name_of",
    "open_teacher",
    "scores",
]


@dataclass(frozen=True)
class Network:
    """A timm model and the size of the images it is fed, or a language model.

    Args:
        model: timm's name.
        kwargs: arguments of ``timm.create_model``; of texts of ``transformers.GPT2Config``.
        image_size: side that images are resized to first; 0 keeps theirs.
        bf16: whether it computes in bfloat16, which some processors do in half the time.
        training: how an ancestor is trained; None takes the weights that timm has.
    """

    model: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 0
    bf16: bool = False
    training: TrainingConfig | None = None

    def build(self, data: Data, seed: int = 0) -> nn.Module:
        """Return the model for ``data``'s classes and channels, its weights drawn from ``seed``."""
        arguments = data.arguments(self.kwargs)
        with seeded(seed):
            if isinstance(data, TextData):
                return data.build(arguments)
            model = timm.create_model(self.model, **arguments)
        # channels last: convolutions on the CPU take two thirds of the time
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.image_size or self.bf16:
            return ResizingModel(model, self.image_size, self.bf16)
        return model


class ResizingModel(nn.Module):
    """A model that resizes its images, and computes in a precision of its own.

    Args:
        model: maps ``[B, C, size, size]`` to logits.
        size: side that images are resized to, bilinearly, in pixels; 0 keeps theirs.
        bf16: whether it computes in bfloat16.
    """

    def __init__(self, model: nn.Module, size: int, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.size, self.bf16 = model, size, bf16

    def forward(self, images: Tensor) -> Tensor:
        """Return the fp32 logits ``[B, classes]`` of images ``[B, C, H, W]``."""
        if self.size:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear")
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(images).float()


def get_ancestor(
    network: Network,
    tasks: Sequence[Data],
    *,
    cache_dir: Path,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return an ancestor and its provenance; it is trained once, and kept.

    A training that was interrupted goes on where it stopped.

    Args:
        network: the ancestor, with its training.
        tasks: data to train it on, of several tasks together.
        cache_dir: holds ``ancestors/<hash of network and data>``.
        seed: base seed for its initial weights and its training.
        steps: number of steps of its training; None is the network's own.
        batch_size: likewise.
        **options: ``save_every`` and ``progress`` of :func:`weightinit.training.loop.follow`.
    """
    assert network.training is not None
    model = network.build(tasks[0], seed)
    config = network.training.planned(seed=seed, steps=steps, batch_size=batch_size)
    card: dict[str, Any] = {"network": asdict(replace(network, training=config))}
    key = json.dumps({**card, "data": [task.describe() for task in tasks]}, sort_keys=True)
    folder = cache_dir / "ancestors" / hashlib.sha256(key.encode()).hexdigest()[:16]
    file, every = folder / "checkpoint.safetensors", max(1, config.steps // 10)
    if not file.exists() or load_checkpoint(file, model)["step"] < config.steps:
        options |= {"out": folder, "resume": True, "eval_every": every, "title": "ancestor"}
        train(model, tasks, config, **options)
    card["seconds"] = round(load_checkpoint(file, model)["history"]["seconds"])
    return model, card | scores(model, tasks)


def scores(model: nn.Module, tasks: Sequence[Data]) -> dict[str, Any]:
    """Return the scores ``"val"`` and ``"test"``, of several tasks by their names."""
    card: dict[str, Any] = {}
    for part in ("val", "test"):
        found = {
            task.name: round(task.score(model, getattr(task, part)), task.digits)
            for task in tasks
            if hasattr(task, part)
        }
        if found:
            card[part] = found if len(tasks) > 1 else found.popitem()[1]
    return card


def as_published(model: nn.Module, tasks: Sequence[Any]) -> tuple[nn.Module, Sequence[Any]]:
    """Return a published model and the data, normalised and resized as it was trained on them."""
    config = getattr(model, "pretrained_cfg", None) or {}
    images = [task for task in tasks if isinstance(task, ImageData)]
    if not images:
        return model, tasks
    own, _ = images[0].train.size
    if len(config.get("mean", ())) == len(images[0].mean):
        tasks = [task.normalised(config["mean"], config["std"]) for task in images]
    size = config.get("input_size", (3, own))[1]
    return (ResizingModel(model, size) if size != own else model), tasks


def open_teacher(
    given: AncestorLike, data: ImageData
) -> tuple[nn.Module, ImageData, dict[str, Any]]:
    """Return a given classifier of a data set's classes, the data as it expects it, and its card.

    What timm or a Hub names gets images normalised and resized as it was trained on them.
    """
    model, source = _classifier(given)
    if isinstance(given, (str, os.PathLike)) and not is_path(given):
        model, (data,) = as_published(model, [data])
    try:
        with evaluating(model) as device:
            logits = model(next(data.inputs(1)).to(device))
        classes = logits.shape[-1]
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        raise WeightInitError(
            f"the ancestor {source} does not run on images of {data.train.size} pixels and "
            f"{len(data.mean)} channels ({error}): use one that was trained on such images"
        ) from error
    if classes != data.classes:
        raise WeightInitError(
            f"the ancestor {source} has {classes} classes, and {data.name} {data.classes}: "
            "fine-tune it on this data first, or train without an ancestor (--ancestor none)"
        )
    return model, data, {"source": source, **scores(model, [data])}


def _classifier(given: AncestorLike) -> tuple[nn.Module, str]:
    """Return a copy of a module, or what has a name or path, and where it is from in words."""
    if isinstance(given, nn.Module):
        return copy.deepcopy(given).eval(), f"a {type(given).__name__}"
    try:
        source = Ancestor.open(given)
        return source.module(), name_of(given, source)
    except AnatomyError:
        # timm has classifiers, such as LeViT, that no anatomy explains, and that run all the same
        if not isinstance(given, str) or is_path(given) or not timm.is_model(given):
            raise
    try:
        return timm.create_model(given, pretrained=True).eval(), given
    except Exception as error:  # whatever a download raises
        raise WeightInitError(
            f"{given} cannot be had from timm ({error}): use a file or a folder"
        ) from error


def is_path(given: AncestorLike) -> bool:
    """Whether an ancestor was named by a file or folder that exists."""
    return isinstance(given, (str, os.PathLike)) and Path(given).expanduser().exists()


def name_of(given: AncestorLike, source: Ancestor) -> str:
    """Return the name of an ancestor, without this machine's paths."""
    return Path(given).name if is_path(given) else source.source  # pyright: ignore[reportArgumentType]
