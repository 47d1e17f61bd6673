"""What each named hypernetwork is trained on, as data: for two cores, and as in the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightinit.errors import WeightInitError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.samplers import Sampler, micro
from weightinit.training.hypernet_loss import MetaRecipe
from weightinit.training.loop import Recipe
from weightinit.training.presets import Network

__all__ = ["HYPERNET_PRESETS", "HyperPreset", "get_hypernet_preset"]


@dataclass(frozen=True)
class HyperPreset:
    """One way to make a hypernetwork.

    Args:
        name: of the preset.
        config: of the hypernetwork.
        recipe: of its training.
        sampler: of the architectures.
        data: what ``load_data``, or ``load_text``, takes by default; several are several tasks.
        image_size: that every image is brought to, in pixels.
        channels: of the images, 3 brings grey ones to colour; 0 keeps theirs.
        context: tokens that a model of texts reads at once, bytes; 0 trains on images.
        ancestor: of PITH, and that TAL takes features from; None where none is needed. Of texts its
            kwargs are GPT2Config's.
        ancestor_recipe: of its own training; None where it is pretrained.
        stage1: preset of the training that this one goes on from.
        watch: architectures whose zero-shot validation accuracy is measured on the way.
    """

    name: str
    config: HyperConfig
    recipe: MetaRecipe
    sampler: str | Sampler
    data: tuple[str, ...]
    image_size: int = 0
    channels: int = 0
    context: int = 0
    ancestor: Network | None = None
    ancestor_recipe: Recipe | None = None
    stage1: str = ""
    watch: tuple[Mapping[str, Any], ...] = field(default=())


#: Widths up to 512: 2,048 rows of an MLP, 4,096 of a patch embedding of 8 pixels.
_SMALL: dict[str, Any] = {
    "hid": 64, "layers": 3, "heads": 8, "rank": 16, "max_ck": 4096, "num_classes": 10
}  # fmt: skip
_FULL: dict[str, Any] = {"separate": True, "expansion": "both"}
_TASKS = ("cifar10", "gtsrb", "clothing", "omniglot_small", "spoken_digits")


#: Rates by validation accuracy after 300 to 400 steps.
_MICRO = MetaRecipe(
    steps=2000, batch_size=96, lr=3e-3, warmup_steps=100, label_smoothing=0.0, precision="bf16"
)
_PITH: dict[str, Any] = {"recipe": {"lr": 1e-3}}
_ANCESTOR: dict[str, Any] = {
    "ancestor": Network("vit_tiny_patch16_224", micro(64, 6)),
    "ancestor_recipe": Recipe(steps=6000, lr=3e-3, warmup_steps=500),
}


def _micro(name: str, config: HyperConfig, **changes: Any) -> HyperPreset:
    """Two thousand steps of 96 CIFAR-10 images, one architecture a step."""
    return HyperPreset(
        name=f"micro-{name}",
        config=config,
        recipe=replace(_MICRO, **changes.pop("recipe", {})),
        sampler="micro",
        image_size=32,
        watch=(micro(64, 6), micro(128, 8), micro(80, 4)),
        **{"data": ("cifar10",), **changes},
    )


def _paper(name: str, config: HyperConfig, *, epochs: int, **changes: Any) -> HyperPreset:
    """LoGAH's, TAL's and PITH's training: 5 epochs of warm-up from 1e-5, mixed precision."""
    batch = changes.pop("batch_size", 512)
    epoch = -(-changes.pop("images", 1_276_167) // batch)
    recipe = MetaRecipe(
        steps=epochs * epoch,
        batch_size=batch,
        lr=3e-4,
        warmup_steps=5 * epoch,
        warmup_lr=1e-5,
        precision="bf16",
    )
    return HyperPreset(
        name=f"paper-{name}",
        config=config,
        recipe=replace(recipe, **changes.pop("recipe", {})),
        **{
            "sampler": "vits-1k",
            "data": ("imagenet",),
            "image_size": 224,
            "channels": 3,
            **changes,
        },
    )


_TEACHER = Network("vit_base_patch16_224.orig_in21k_ft_in1k", pretrained=True)
_LARGE = Network("vit_large_patch16_224.augreg_in21k_ft_in1k", pretrained=True)
#: The Visual Decathlon's nine tasks beside ImageNet; folders or packs of these names.
_DECATHLON = (
    "aircraft", "cifar100", "daimlerpedcls", "dtd", "gtsrb", "omniglot", "svhn", "ucf101",
    "vgg-flowers",
)  # fmt: skip
#: Training images of all nine together.
_DECATHLON_IMAGES = 3334 + 40_000 + 23_520 + 1880 + 31_367 + 17_853 + 47_217 + 7585 + 1020

#: GPTs-1K for two cores; no training draw has a width of 80 or a depth of 5.
MICRO_GPT = Sampler(
    "micro-gpt", dict.fromkeys((2, 3, 4, 6), (48, 64, 96)), "sixteenths", {}, family="gpt2"
)


def _text(name: str, config: HyperConfig, **changes: Any) -> HyperPreset:
    """A thousand steps of 32 windows of 64 bytes, one architecture a step."""
    return HyperPreset(
        name=f"micro-{name}",
        config=config,
        recipe=replace(_MICRO, steps=1000, batch_size=32, lr=1e-3, precision="no"),
        sampler=MICRO_GPT,
        context=64,
        watch=(MICRO_GPT.kwargs(4, 64, 4), MICRO_GPT.kwargs(5, 80, 5)),
        **changes,
    )


_LANGUAGE: dict[str, Any] = {**_SMALL, "num_classes": 256, "primitives": 18}

HYPERNET_PRESETS: dict[str, HyperPreset] = {
    preset.name: preset
    for preset in (
        _micro(
            "ghn3",
            HyperConfig("ghn3", hid=64, layers=3, heads=8, max_shape=(64, 64, 11), num_classes=10),
        ),
        _micro("logah", HyperConfig("logah", **_SMALL)),
        _micro("tal", HyperConfig("logah", **_SMALL), recipe={"guide": 0.2}, **_ANCESTOR),
        _micro(
            "tal-tasks",
            HyperConfig("tal", task_dim=64, **_SMALL),
            recipe={"frozen": True},
            data=_TASKS,
            channels=3,
            stage1="micro-tal",
            **_ANCESTOR,
        ),
        _micro(
            "pith-shared", HyperConfig("pith", pathway="shared", **_SMALL), **_PITH, **_ANCESTOR
        ),
        _micro("pith-dual", HyperConfig("pith", **_SMALL), **_PITH, **_ANCESTOR),
        _micro("pith-full", HyperConfig("pith", **_SMALL, **_FULL), **_PITH, **_ANCESTOR),
        _micro(
            "pith-rule",
            HyperConfig("pith", start="rule", **_SMALL, **_FULL),
            **_PITH,
            **_ANCESTOR,
        ),
        _text("logah-gpt", HyperConfig("logah", **_LANGUAGE), data=("docstrings",)),
        _text(
            "tal-text",
            HyperConfig("tal", task_dim=64, **_LANGUAGE),
            data=("docstrings", "licences", "python"),
            ancestor=Network("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4}),
            ancestor_recipe=Recipe(steps=500, batch_size=32, lr=3e-3, warmup_steps=50),
        ),
        _paper(
            "logah",
            HyperConfig("logah", num_classes=100),
            epochs=300,
            batch_size=64,
            images=45_000,
            data=("cifar100",),
            image_size=32,
        ),
        _paper(
            "tal",
            HyperConfig("logah"),
            epochs=75,
            recipe={"guide": 0.2},
            ancestor=_TEACHER,
        ),
        _paper(
            "tal-plus",
            HyperConfig("logah"),
            epochs=75,
            batch_size=256,
            sampler="vits+-1k",
            recipe={"guide": 0.2},
            ancestor=_TEACHER,
        ),
        _paper(
            "tal-tasks",
            HyperConfig("tal", task_dim=768),
            epochs=100,
            batch_size=256,
            images=_DECATHLON_IMAGES,
            recipe={"frozen": True},
            data=_DECATHLON,
            ancestor=_TEACHER,
            stage1="paper-tal",
        ),
        _paper("pith", HyperConfig.pith(), epochs=200, ancestor=_LARGE),
        _paper(
            "pith-full",
            HyperConfig.pith(separate=True, expansion="both"),
            epochs=200,
            ancestor=_LARGE,
        ),
        _paper(
            "pith-tasks",
            HyperConfig.pith(task_dim=1024),
            epochs=100,
            batch_size=256,
            images=_DECATHLON_IMAGES,
            data=_DECATHLON,
            ancestor=_LARGE,
        ),
    )
}


def get_hypernet_preset(name: str) -> HyperPreset:
    """Return a preset by name.

    Examples:
        >>> get_hypernet_preset("paper-tal").recipe.guide
        0.2
    """
    if name not in HYPERNET_PRESETS:
        raise WeightInitError(f"preset {name!r} is unknown: use one of {sorted(HYPERNET_PRESETS)}")
    return HYPERNET_PRESETS[name]
