"""What each named training of templates trains: data, ancestor and auxiliary model, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weightinit.errors import WeightInitError
from weightinit.training.config import TrainingConfig
from weightinit.training.teacher import Network

__all__ = ["PRESETS", "Preset", "get_preset"]


@dataclass(frozen=True)
class Preset:
    """One way to make a template bundle.

    Args:
        name: name of the preset, and of the bundle it makes.
        data: what ``load_data`` takes by default.
        auxiliary: the model whose blocks are composed of templates: norm, then average pooling, as
            in WAVE's code family; no contextual position encoding (timm has none).
        training: config of its training.
        ancestor: the model whose soft labels it learns; None for labels alone.
        method: ``"wave"``, or ``"weit"``, which trains smaller networks inside it.
        pools: how the auxiliary model pools, all at each step; it has a class token if
            ``"token"`` is among them. The first is the one that is scored.
        depths: numbers of blocks to train at, one at random every other step; none trains at the
            auxiliary model's depth alone. WAVE's scalers are interpolated over depth, and WeiT
            takes the first blocks, of those that are not deeper than the auxiliary model.
        widths: fractions of the width that WeiT trains at.
    """

    name: str
    data: str
    auxiliary: Network
    training: TrainingConfig
    ancestor: Network | None = None
    method: str = "wave"
    pools: tuple[str, ...] = ("avg",)
    depths: tuple[int, ...] = ()
    widths: tuple[float, ...] = (1, 0.5)

    @property
    def width(self) -> int:
        """The embed_dim of the auxiliary model, and of its templates."""
        return self.auxiliary.kwargs["embed_dim"]

    def auxiliary_at(self, depth: int, **changes: Any) -> Network:
        """Return the auxiliary model with another number of blocks, or another width."""
        token = "token" in self.pools
        given = {"class_token": token, "global_pool": self.pools[0], "fc_norm": False}
        changes |= {**given, "depth": depth}
        return replace(self.auxiliary, kwargs={**self.auxiliary.kwargs, **changes})


def _vit(img: int, patch: int, width: int, heads: int, depth: int, **kwargs: Any) -> Network:
    size = {"img_size": img, "patch_size": patch, "embed_dim": width, "num_heads": heads}
    return Network("vit_tiny_patch16_224", {**size, "depth": depth, **kwargs})


def _resnet10(channels: tuple[int, ...], stem: int, size: int, **more: Any) -> Network:
    return Network("resnet10t", {"channels": channels, "stem_width": stem}, size, **more)


def _paper(images: int, batch_size: int, lr: float, **changes: Any) -> TrainingConfig:
    """WAVE's Table C.1: 5 of 150 epochs of warm-up, AdamW with 0.05, heavy augmentation."""
    epoch = images // batch_size
    config = TrainingConfig(150 * epoch, batch_size, lr, warmup_steps=5 * epoch, augment="paper")
    return replace(config, loss="soft+ce", label_smoothing=0.1, **changes)


def _imagenet(width: int, heads: int, batch_size: int, lr: float) -> Preset:
    return Preset(
        f"imagenet-w{width}",
        "imagenet",
        auxiliary=_vit(224, 16, width, heads, 12, drop_path_rate=0.1),
        ancestor=Network("levit_384.fb_dist_in1k"),
        training=_paper(1_276_167, batch_size, lr),
    )


_MIXED: dict[str, Any] = {"pools": ("avg", "token"), "depths": (4, 5, 7, 8)}
_SMOOTH: dict[str, Any] = {"lr": 4e-3, "label_smoothing": 0.1}
#: Without an ancestor: the constrained model wants a high rate, and then clipping.
_LABELS: dict[str, Any] = {"label_smoothing": 0.1, "clip_grad": 1.0}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "digits-w32",
            "digits",
            auxiliary=_vit(8, 2, 32, 2, 6),
            ancestor=_resnet10(
                (16, 32, 64, 64), 8, 32,
                training=TrainingConfig(600, 64, warmup_steps=60, **_SMOOTH),
            ),
            training=TrainingConfig(6000, 64, 8e-3, warmup_steps=600, loss="soft+ce"),
            **_MIXED,
        ),
        Preset(
            "cifar10-w64",
            "cifar10",
            auxiliary=_vit(32, 8, 64, 4, 6),
            ancestor=_resnet10(
                (48, 96, 192, 256), 24, 64, bf16=True,
                training=TrainingConfig(8000, warmup_steps=800, **_SMOOTH),
            ),
            training=TrainingConfig(10_000, lr=3e-3, warmup_steps=500, loss="soft+ce"),
            **_MIXED,
        ),
        Preset(
            "cifar10-w96",
            "cifar10",
            # heads of 32: whole copies make the heads of 64 of nearly every published ViT
            auxiliary=_vit(32, 8, 96, 3, 6),
            training=TrainingConfig(
                10_000, 64, lr=3e-3, warmup_steps=500, precision="bf16", **_LABELS
            ),
            **_MIXED,
        ),
        Preset(
            "digits-weit",
            "digits",
            auxiliary=_vit(8, 2, 64, 4, 6),
            training=TrainingConfig(6000, 64, 3e-3, warmup_steps=600, **_LABELS),
            method="weit",
            depths=(3, 4, 5),
            widths=(1, 0.75, 0.5, 0.25),
        ),
        Preset(
            "cifar10-weit",
            "cifar10",
            auxiliary=_vit(32, 8, 64, 4, 6),
            training=TrainingConfig(10_000, lr=3e-3, warmup_steps=500, **_LABELS),
            method="weit",
            depths=(3, 4, 5),
            widths=(1, 0.75, 0.5),
        ),
        Preset(
            "cifar10-w192",
            "cifar10",
            auxiliary=_vit(32, 4, 192, 3, 12, drop_path_rate=0.1),
            ancestor=Network(
                "resnet18d", image_size=64, bf16=True,
                training=TrainingConfig(17_500, warmup_steps=1750, **_SMOOTH),
            ),
            training=_paper(45_000, 512, 5e-4, precision="bf16"),
        ),
        _imagenet(192, 3, 512, 5e-4),
        _imagenet(384, 6, 256, 2.5e-4),
        _imagenet(768, 12, 128, 1.25e-4),
    )
}  # fmt: skip


def get_preset(name: str) -> Preset:
    """Return a preset by name.

    Examples:
        >>> get_preset("imagenet-w192").training.warmup_steps
        12460
    """
    if name not in PRESETS:
        raise WeightInitError(f"preset {name!r} is unknown: use one of {sorted(PRESETS)}")
    return PRESETS[name]
