"""How large a trial is: what its sources are trained with, and its targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from weightinit.training.config import TrainingConfig
from weightinit.training.presets import Preset, get_preset
from weightinit.training.teacher import Network

EPOCH = 45_000 // 512  # of CIFAR-10 without its validation images, in steps of 512


@dataclass(frozen=True)
class Scale:
    """The size of everything.

    Args:
        name: of the preset.
        presets: one a width of templates: data, auxiliary model, ancestor, and the full budget,
            which every learned source gets.
        short: the short budget of a target; its rate is for random weights.
        lr: that of a target whose weights were learned, chosen on validation images.
        fit_steps: of fitted scalers.
        fit_lr: their rate.
        seeds: of the main rows; the others take the first.
        widths: of wider targets by template width: the last does not divide.
        packs: of the downstream tasks.
        depths: of the targets.
        deeper: of those with many more blocks.
        shrink_from: width and depth of the ancestors of smaller targets.
        grow_from: of larger ones.
        source_lr: of single kinds of sources, where validation chose another than the preset's.
    """

    name: str
    presets: tuple[Preset, ...]
    short: TrainingConfig
    lr: float
    fit_steps: int
    fit_lr: float
    seeds: tuple[int, ...]
    widths: Mapping[int, tuple[int, ...]]
    packs: tuple[str, ...] = ()
    source_lr: Mapping[str, float] | None = None
    depths: tuple[int, ...] = (4, 6, 8, 10, 12)
    deeper: tuple[int, ...] = (24, 36)
    shrink_from: tuple[tuple[int, int], ...] = ()
    grow_from: tuple[tuple[int, int], ...] = ()

    @property
    def budget(self) -> int:
        """How many times the short budget the full one is."""
        return round(self.presets[0].training.steps / self.short.steps)

    def preset(self, width: int) -> Preset:
        """Return the preset of a template width."""
        return next(preset for preset in self.presets if preset.width == width)


def smoke(scale: Scale) -> Scale:
    """Return a scale whose every training takes two steps: it shows that things start."""
    presets = tuple(
        replace(
            preset,
            training=replace(preset.training, steps=2, batch_size=4, warmup_steps=1),
            ancestor=preset.ancestor and _quick(preset.ancestor),
        )
        for preset in scale.presets
    )
    short = replace(scale.short, steps=2, batch_size=4, warmup_steps=1)
    return replace(scale, presets=presets, short=short, fit_steps=2, seeds=scale.seeds[:1])


def _quick(network: Network) -> Network:
    training = network.training and replace(network.training, steps=2, batch_size=4)
    return replace(network, training=training)


def _plain(preset: Preset, name: str, config: TrainingConfig) -> Preset:
    """Return a preset that trains its auxiliary model at one depth and pooling, as published."""
    return replace(preset, name=name, pools=("avg",), depths=(), training=config)


def _small() -> tuple[Preset, ...]:
    tiny = get_preset("cifar10-w192")
    kwargs = {**tiny.auxiliary.kwargs, "embed_dim": 384, "num_heads": 6}
    wide = replace(tiny, auxiliary=Network(tiny.auxiliary.model, kwargs))
    slower = replace(tiny.training, lr=2.5e-4)
    return _plain(tiny, "small-w192", tiny.training), _plain(wide, "small-w384", slower)


def _paper() -> tuple[Preset, ...]:
    given = (get_preset(f"imagenet-w{width}") for width in (192, 384, 768))
    return tuple(_plain(preset, f"paper-w{preset.width}", preset.training) for preset in given)


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="micro",
            presets=(
                _plain(
                    get_preset("cifar10-w64"),
                    "micro-w64",
                    TrainingConfig(3600, batch_size=64, lr=3e-3, warmup_steps=180, loss="soft+ce"),
                ),
            ),
            short=TrainingConfig(240, batch_size=64, lr=2e-3, warmup_steps=24),
            lr=1e-3,
            fit_steps=100,
            fit_lr=2e-2,
            seeds=(1, 2, 3),
            source_lr={"tleg": 8e-4, "share": 6e-3, "vit": 1.5e-3},
            widths={64: (128, 192, 96)},
            shrink_from=((96, 8),),
            grow_from=((64, 4),),
            packs=("gtsrb", "clothing", "omniglot_small", "spoken_digits", "pneumonia"),
        ),
        Scale(
            name="small",
            presets=_small(),
            short=replace(
                _small()[0].training,
                steps=10 * EPOCH,
                warmup_steps=EPOCH,
                loss="ce",
                augment="light",
            ),
            lr=5e-4,
            fit_steps=400,
            fit_lr=2e-2,
            seeds=(1, 2, 3),
            widths={192: (384, 576, 320), 384: (768, 1152, 512)},
            shrink_from=((384, 12),),
            grow_from=((128, 6),),
            packs=("gtsrb", "clothing", "omniglot_small", "spoken_digits", "pneumonia"),
        ),
        Scale(
            name="paper",
            presets=_paper(),
            short=replace(
                _paper()[0].training,
                steps=_paper()[0].training.steps // 15,
                warmup_steps=0,
                loss="ce",
            ),
            lr=5e-4,
            fit_steps=400,
            fit_lr=2e-2,
            seeds=(1,),
            widths={192: (384, 576, 320), 384: (768, 1152, 512), 768: (1536,)},
        ),
    )
}
