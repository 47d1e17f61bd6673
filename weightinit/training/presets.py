"""What each named training run trains: data, ancestor, auxiliary model and recipes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.training.augment import seeded
from weightinit.training.images import ImageData
from weightinit.training.loop import Recipe

__all__ = ["PRESETS", "Network", "Preset", "Taught", "get_preset"]


@dataclass(frozen=True)
class Network:
    """A timm model, and the size of the images it is fed.

    Args:
        model: timm's name.
        kwargs: of ``timm.create_model``.
        image_size: images are resized to it first; 0 keeps theirs.
        pretrained: whether timm's own weights are used (and nothing is trained).
        bf16: whether it computes in bfloat16, which some processors do in half the time.
    """

    model: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 0
    pretrained: bool = False
    bf16: bool = False

    def build(self, data: ImageData, seed: int = 0) -> nn.Module:
        """Return the model for ``data``'s classes and channels, its weights drawn from ``seed``."""
        import timm

        known: dict[str, Any] = {"num_classes": data.classes, "in_chans": len(data.mean)}
        with seeded(seed):
            model = timm.create_model(
                self.model, pretrained=self.pretrained, **known | dict(self.kwargs)
            )
        # channels last: convolutions on the CPU take two thirds of the time
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return Fed(model, self.image_size, self.bf16) if self.image_size or self.bf16 else model


class Fed(nn.Module):
    """A model that is fed images of a size and precision of its own.

    Args:
        model: that maps ``[B, C, size, size]`` to logits.
        size: images are resized to it, bilinearly, in pixels; 0 keeps theirs.
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


class Taught(Protocol):
    """A preset that has an ancestor."""

    @property
    def ancestor(self) -> Network:
        """The network."""
        ...

    @property
    def ancestor_recipe(self) -> Recipe | None:
        """Of its training; None where it is pretrained."""
        ...


@dataclass(frozen=True)
class Preset:
    """One way to make a template bundle.

    Args:
        name: of the preset, and of the bundle it makes.
        data: what ``load_data`` takes by default.
        auxiliary: the model whose blocks are composed of templates: norm, then average pooling, as
            in WAVE's code family; no contextual position encoding (timm has none).
        ancestor: the model whose soft labels it learns.
        recipe: of the distillation.
        ancestor_recipe: of the ancestor's own training; None where it is pretrained.
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


def _paper(images: int, batch_size: int, lr: float, *, epochs: int = 150) -> Recipe:
    """WAVE's Table C.1: 5 epochs of warm-up, cosine, AdamW with 0.05, heavy augmentation."""
    epoch = images // batch_size
    return Recipe(
        steps=epochs * epoch,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=5 * epoch,
        loss="soft+ce",
        label_smoothing=0.1,
        augment="paper",
    )


def _imagenet(width: int, heads: int, batch_size: int, lr: float) -> Preset:
    return Preset(
        name=f"imagenet-w{width}",
        data="imagenet",
        auxiliary=_vit(224, 16, width, heads, 12, drop_path_rate=0.1),
        ancestor=Network("levit_384.fb_dist_in1k", pretrained=True),
        recipe=_paper(1_276_167, batch_size, lr),
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="digits-w32",
            data="digits",
            auxiliary=_vit(8, 2, 32, 2, 6),
            ancestor=Network(
                "resnet10t", {"channels": (16, 32, 64, 64), "stem_width": 8}, image_size=32
            ),
            ancestor_recipe=Recipe(
                steps=600, batch_size=64, lr=4e-3, warmup_steps=60, label_smoothing=0.1
            ),
            recipe=Recipe(
                steps=6000,
                batch_size=64,
                lr=8e-3,
                warmup_steps=600,
                loss="soft+ce",
            ),
            pools=("avg", "token"),
            depths=(4, 5, 7, 8),
        ),
        Preset(
            name="cifar10-w64",
            data="cifar10",
            auxiliary=_vit(32, 8, 64, 4, 6),
            ancestor=Network(
                "resnet10t", {"channels": (48, 96, 192, 256), "stem_width": 24}, 64, bf16=True
            ),
            ancestor_recipe=Recipe(steps=8000, lr=4e-3, warmup_steps=800, label_smoothing=0.1),
            recipe=Recipe(steps=10_000, lr=3e-3, warmup_steps=500, loss="soft+ce"),
            pools=("avg", "token"),
            depths=(4, 5, 7, 8),
        ),
        Preset(
            name="cifar10-w192",
            data="cifar10",
            auxiliary=_vit(32, 4, 192, 3, 12, drop_path_rate=0.1),
            ancestor=Network("resnet18d", image_size=64, bf16=True),
            ancestor_recipe=Recipe(
                steps=17_500,
                lr=4e-3,
                warmup_steps=1750,
                label_smoothing=0.1,
            ),
            recipe=replace(_paper(45_000, 512, 5e-4), precision="bf16"),
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
