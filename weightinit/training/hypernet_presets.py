"""What each named hypernetwork is trained on, as data: for two cores, and as in the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightinit.errors import WeightInitError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.samplers import Sampler, micro
from weightinit.training.config import MetaConfig, TrainingConfig
from weightinit.training.teacher import Network

__all__ = ["HYPERNET_PRESETS", "HyperPreset", "get_hypernet_preset"]


@dataclass(frozen=True)
class HyperPreset:
    """One way to make a hypernetwork.

    Args:
        name: name of the preset.
        config: sizes of the hypernetwork.
        training: config of its training.
        sampler: distribution of the architectures.
        data: what ``load_data``, or ``load_text``, takes by default; several are several tasks.
        image_size: side that every image is brought to, in pixels.
        channels: channels of the images, 3 brings grey ones to colour; 0 keeps theirs.
        context: tokens that a model of texts reads at once, bytes; 0 trains on images.
        ancestor: ancestor of PITH, and that TAL takes features from; None where none is needed.
        features: published network whose features describe the tasks; None is the ancestor.
        stage1: preset of the training that this one goes on from.
        watch: architectures whose zero-shot validation accuracy is measured on the way.
    """

    name: str
    config: HyperConfig
    training: MetaConfig
    sampler: str | Sampler
    data: tuple[str, ...] = ()
    image_size: int = 0
    channels: int = 0
    context: int = 0
    ancestor: Network | None = None
    features: Network | None = None
    stage1: str = ""
    watch: tuple[Mapping[str, Any], ...] = field(default=())


#: Rates by validation accuracy after 300 to 400 steps.
_MICRO = MetaConfig(
    steps=2000, batch_size=96, lr=3e-3, warmup_steps=100, label_smoothing=0.0, precision="bf16"
)
_SLOW = {"lr": 1e-3}
_GUIDE = {"guide": 0.2}
_FROZEN = {"frozen": True}
_FULL: dict[str, Any] = {"separate": True, "expansion": "both"}
_ANCESTOR = Network(
    "vit_tiny_patch16_224",
    micro(64, 6),
    training=TrainingConfig(6000, lr=3e-3, warmup_steps=500),
)
_LANGUAGE = Network(
    "gpt2",
    {"n_layer": 2, "n_embd": 64, "n_head": 4},
    training=TrainingConfig(500, 32, lr=3e-3, warmup_steps=50),
)
_TEACHER = Network("vit_base_patch16_224.orig_in21k_ft_in1k")
_LARGE = Network("vit_large_patch16_224.augreg_in21k_ft_in1k")
_TASKS = ("cifar10", "gtsrb", "clothing", "omniglot_small", "spoken_digits")
#: The Visual Decathlon's nine tasks beside ImageNet; folders or packs of these names.
_NINE: dict[str, Any] = {
    "data": (
        "aircraft", "cifar100", "daimlerpedcls", "dtd", "gtsrb", "omniglot", "svhn", "ucf101",
        "vgg-flowers",
    ),
    "images": 3334 + 40_000 + 23_520 + 1880 + 31_367 + 17_853 + 47_217 + 7585 + 1020,
    "batch_size": 256,
}  # fmt: skip
#: GPTs-1K for two cores; no training draw has a width of 80 or a depth of 5.
MICRO_GPT = Sampler(
    "micro-gpt", dict.fromkeys((2, 3, 4, 6), (48, 64, 96)), "sixteenths", {}, family="gpt2"
)


def _small(kind: str, **changes: Any) -> HyperConfig:
    """Widths up to 512: 2,048 rows of an MLP, 4,096 of a patch embedding of 8 pixels."""
    sizes = {"hid": 64, "layers": 3, "heads": 8, "rank": 16, "max_ck": 4096, "num_classes": 10}
    return HyperConfig(kind, **{**sizes, **changes})  # pyright: ignore[reportArgumentType]


def _micro(name: str, config: HyperConfig, **changes: Any) -> HyperPreset:
    """Two thousand steps of 96 CIFAR-10 images, one architecture a step."""
    training = replace(_MICRO, **changes.pop("training", {}))
    watch = (micro(64, 6), micro(128, 8), micro(80, 4))
    changes = {"data": ("cifar10",), "image_size": 32, "watch": watch, **changes}
    return HyperPreset(f"micro-{name}", config, training, "micro", **changes)


def _text(name: str, kind: str, **changes: Any) -> HyperPreset:
    """A thousand steps of 32 windows of 64 bytes, one architecture a step."""
    config = _small(kind, num_classes=256, primitives=18, **changes.pop("config", {}))
    training = replace(_MICRO, steps=1000, batch_size=32, lr=1e-3, precision="no")
    watch = (MICRO_GPT.kwargs(4, 64, 4), MICRO_GPT.kwargs(5, 80, 5))
    return HyperPreset(
        f"micro-{name}", config, training, MICRO_GPT, context=64, watch=watch, **changes
    )


def _paper(
    name: str,
    config: HyperConfig,
    epochs: int,
    *,
    images: int = 1_276_167,
    batch_size: int = 512,
    **changes: Any,
) -> HyperPreset:
    """LoGAH's, TAL's and PITH's training: 5 epochs of warm-up from 1e-5, mixed precision."""
    epoch = -(-images // batch_size)
    training = MetaConfig(
        steps=epochs * epoch,
        batch_size=batch_size,
        lr=3e-4,
        warmup_steps=5 * epoch,
        warmup_lr=1e-5,
        precision="bf16",
        **changes.pop("training", {}),
    )
    base = {"sampler": "vits-1k", "data": ("imagenet",), "image_size": 224, "channels": 3}
    return HyperPreset(f"paper-{name}", config, training, **{**base, **changes})


_OWN: dict[str, Any] = {"training": _SLOW, "ancestor": _ANCESTOR}

HYPERNET_PRESETS: dict[str, HyperPreset] = {
    preset.name: preset
    for preset in (
        _micro("ghn3", _small("ghn3", rank=0, max_ck=32768, max_shape=(64, 64, 11))),
        _micro("logah", _small("logah")),
        _micro("tal", _small("logah"), training=_GUIDE, ancestor=_ANCESTOR),
        _micro(
            "tal-tasks", _small("tal", task_dim=64), training=_FROZEN, stage1="micro-tal",
            data=_TASKS, channels=3, ancestor=_ANCESTOR,
        ),
        _micro("pith-shared", _small("pith", pathway="shared"), **_OWN),
        _micro("pith-dual", _small("pith"), **_OWN),
        _micro("pith-full", _small("pith", **_FULL), **_OWN),
        _micro("pith-rule", _small("pith", start="rule", **_FULL), **_OWN),
        _text("logah-gpt", "logah"),
        _text("tal-text", "tal", config={"task_dim": 64}, ancestor=_LANGUAGE),
        _paper(
            "logah", HyperConfig("logah", num_classes=100), 300, images=45_000, batch_size=64,
            data=("cifar100",), image_size=32,
        ),
        _paper("tal", HyperConfig("logah"), 75, training=_GUIDE, ancestor=_TEACHER),
        _paper(
            "tal-plus", HyperConfig("logah"), 75, batch_size=256, sampler="vits+-1k",
            training=_GUIDE, ancestor=_TEACHER,
        ),
        _paper(
            "tal-tasks", HyperConfig("tal", task_dim=768, dead_layer=False), 100,
            training=_FROZEN, stage1="paper-tal", ancestor=_TEACHER, **_NINE,
        ),
        _paper("pith", HyperConfig.pith(), 200, ancestor=_LARGE),
        _paper(
            "pith-full", HyperConfig.pith(separate=True, expansion="both"), 200, ancestor=_LARGE
        ),
        _paper(
            "pith-tasks", HyperConfig.pith(task_dim=768), 100, ancestor=_LARGE,
            features=_TEACHER, **_NINE,
        ),
    )
}  # fmt: skip


def get_hypernet_preset(name: str) -> HyperPreset:
    """Return a preset by name.

    Examples:
        >>> get_hypernet_preset("paper-tal").training.guide
        0.2
    """
    if name not in HYPERNET_PRESETS:
        raise WeightInitError(f"preset {name!r} is unknown: use one of {sorted(HYPERNET_PRESETS)}")
    return HYPERNET_PRESETS[name]
