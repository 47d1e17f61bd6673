"""What each named training run trains: data, ancestor, auxiliary model and recipes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.training.contexts import seeded
from weightinit.training.recipe import Recipe
from weightinit.training.tasks import Data
from weightinit.training.text import TextData

__all__ = ["PRESETS", "Network", "Preset", "ResizingModel", "get_preset"]


@dataclass(frozen=True)
class Network:
    """A timm model and the size of the images it is fed, or a language model.

    Args:
        model: timm's name.
        kwargs: arguments of ``timm.create_model``; of texts of ``transformers.GPT2Config``.
        image_size: side that images are resized to first; 0 keeps theirs.
        pretrained: whether timm's own weights are used (and nothing is trained).
        bf16: whether it computes in bfloat16, which some processors do in half the time.
    """

    model: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 0
    pretrained: bool = False
    bf16: bool = False

    def build(self, data: Data, seed: int = 0) -> nn.Module:
        """Return the model for ``data``'s classes and channels, its weights drawn from ``seed``."""
        arguments = data.arguments(self.kwargs)
        with seeded(seed):
            if isinstance(data, TextData):
                return data.build(arguments)
            model = timm.create_model(self.model, pretrained=self.pretrained, **arguments)
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

    def __init__(self, model: nn.Module, size: int, bf16: bool) -> None:
        super().__init__()
        self.model, self.size, self.bf16 = model, size, bf16

    def forward(self, images: Tensor) -> Tensor:
        """Return the fp32 logits ``[B, classes]`` of images ``[B, C, H, W]``."""
        if self.size:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear")
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(images).float()


@dataclass(frozen=True)
class Preset:
    """One way to make a template bundle.

    Args:
        name: name of the preset, and of the bundle it makes.
        data: what ``load_data`` takes by default.
        auxiliary: the model whose blocks are composed of templates: norm, then average pooling, as
            in WAVE's code family; no contextual position encoding (timm has none).
        ancestor: the model whose soft labels it learns.
        recipe: recipe of the distillation.
        ancestor_recipe: recipe of the ancestor's own training; None where it is pretrained.
        pools: how the auxiliary model pools, all at each step; it has a class token if
            ``"token"`` is among them. The first is the one that is scored.
        depths: numbers of blocks to train at, one at random every other step, the scalers
            interpolated over depth; none trains at the auxiliary model's depth alone.
    """

    name: str
    data: str
    auxiliary: Network
    ancestor: Network
    recipe: Recipe
    ancestor_recipe: Recipe | None = None
    pools: tuple[str, ...] = ("avg",)
    depths: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """The embed_dim of the auxiliary model, and of its templates."""
        return self.auxiliary.kwargs["embed_dim"]

    def auxiliary_at(self, depth: int) -> Network:
        """Return the auxiliary model with another number of blocks."""
        token = "token" in self.pools
        given = {"class_token": token, "global_pool": self.pools[0], "fc_norm": False}
        kwargs = {**self.auxiliary.kwargs, **given, "depth": depth}
        return replace(self.auxiliary, kwargs=kwargs)


def _vit(img: int, patch: int, width: int, heads: int, depth: int, **kwargs: Any) -> Network:
    size = {"img_size": img, "patch_size": patch, "embed_dim": width, "num_heads": heads}
    return Network("vit_tiny_patch16_224", {**size, "depth": depth, **kwargs})


def _resnet10(channels: tuple[int, ...], stem: int, size: int, *, bf16: bool = False) -> Network:
    return Network("resnet10t", {"channels": channels, "stem_width": stem}, size, bf16=bf16)


def _paper(images: int, batch_size: int, lr: float, **changes: Any) -> Recipe:
    """WAVE's Table C.1: 5 of 150 epochs of warm-up, AdamW with 0.05, heavy augmentation."""
    epoch = images // batch_size
    recipe = Recipe(150 * epoch, batch_size, lr, warmup_steps=5 * epoch, augment="paper")
    return replace(recipe, loss="soft+ce", label_smoothing=0.1, **changes)


def _imagenet(width: int, heads: int, batch_size: int, lr: float) -> Preset:
    return Preset(
        f"imagenet-w{width}",
        "imagenet",
        auxiliary=_vit(224, 16, width, heads, 12, drop_path_rate=0.1),
        ancestor=Network("levit_384.fb_dist_in1k", pretrained=True),
        recipe=_paper(1_276_167, batch_size, lr),
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "digits-w32",
            "digits",
            auxiliary=_vit(8, 2, 32, 2, 6),
            ancestor=_resnet10((16, 32, 64, 64), 8, 32),
            ancestor_recipe=Recipe(600, 64, 4e-3, warmup_steps=60, label_smoothing=0.1),
            recipe=Recipe(6000, 64, 8e-3, warmup_steps=600, loss="soft+ce"),
            pools=("avg", "token"),
            depths=(4, 5, 7, 8),
        ),
        Preset(
            "cifar10-w64",
            "cifar10",
            auxiliary=_vit(32, 8, 64, 4, 6),
            ancestor=_resnet10((48, 96, 192, 256), 24, 64, bf16=True),
            ancestor_recipe=Recipe(8000, lr=4e-3, warmup_steps=800, label_smoothing=0.1),
            recipe=Recipe(10_000, lr=3e-3, warmup_steps=500, loss="soft+ce"),
            pools=("avg", "token"),
            depths=(4, 5, 7, 8),
        ),
        Preset(
            "cifar10-w192",
            "cifar10",
            auxiliary=_vit(32, 4, 192, 3, 12, drop_path_rate=0.1),
            ancestor=Network("resnet18d", image_size=64, bf16=True),
            ancestor_recipe=Recipe(17_500, lr=4e-3, warmup_steps=1750, label_smoothing=0.1),
            recipe=_paper(45_000, 512, 5e-4, precision="bf16"),
        ),
        _imagenet(192, 3, 512, 5e-4),
        _imagenet(384, 6, 256, 2.5e-4),
        _imagenet(768, 12, 128, 1.25e-4),
    )
}


def get_preset(name: str) -> Preset:
    """Return a preset by name.

    Examples:
        >>> get_preset("imagenet-w192").recipe.warmup_steps
        12460
    """
    if name not in PRESETS:
        raise WeightInitError(f"preset {name!r} is unknown: use one of {sorted(PRESETS)}")
    return PRESETS[name]
