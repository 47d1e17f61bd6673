"""What methods learn from: template sets and plain models, each trained once, all alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trials.data import load
from trials.remember import remember
from trials.scales import Scale
from weightinit import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.constrain import constrain
from weightinit.templates.constrained import ConstrainedModel
from weightinit.training.checkpoint import load_checkpoint
from weightinit.training.config import TrainingConfig
from weightinit.training.fleet import accelerator
from weightinit.training.images import ImageData, ImageFiles
from weightinit.training.loop import train
from weightinit.training.teacher import Network, get_ancestor, open_teacher
from weightinit.training.templates import build_auxiliary


def _scaled(config: TemplateConfig, *, times: float) -> TemplateConfig:
    """Return a template set with so many times the number of templates."""
    kinds = {
        name: replace(kind, number=max(1, round(kind.number * times)))
        for name, kind in config.kinds.items()
    }
    return replace(config, kinds=kinds)


#: The end of a kind whose scalers start at Eq. B.1, as published, and move at this part of the
#: templates' rate, so that they stay near; ours start at random values and move at the full rate.
PUBLISHED, PUBLISHED_RATE = "-published", 0.5

#: Template sets by name, from the width.
CONFIGS: dict[str, Callable[[int], TemplateConfig]] = {
    "wave": TemplateConfig.wave,
    "tleg": lambda width: TemplateConfig.layers("tleg", width, 2),
    "share": lambda width: TemplateConfig.layers("share", width, 1),
    # Table 6: half the number; half the size and four times the number
    "wave-fewer": lambda width: _scaled(TemplateConfig.wave(width), times=0.5),
    "wave-smaller": lambda width: _scaled(TemplateConfig.wave(width // 2), times=4),
}


@dataclass(frozen=True)
class Source:
    """One thing to train.

    Args:
        kind: of :data:`CONFIGS`, :data:`PUBLISHED` after it for scalers as published;
            ``"wave-mixed"``, which is trained at several depths at once, as the shipped bundles
            are; or ``"vit"`` for a plain model.
        width: of its templates, which names the preset.
        depth: of a plain model; template sets have the auxiliary model's.
        embed: width of a plain model; 0 is that of the templates.
    """

    kind: str
    width: int
    depth: int = 0
    embed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        name = f"{self.kind}-w{self.width}" + (f"-d{self.depth}" if self.depth else "")
        return name + (f"-e{self.embed}" if self.embed else "")

    @property
    def published(self) -> bool:
        """Whether its scalers start, and move, as published."""
        return self.kind.endswith(PUBLISHED)


class Lab:
    """Where trials are run: data, ancestor and sources, made when they are first needed.

    Args:
        scale: how large everything is.
        folder: of sources and runs, which are kept.
        cache_dir: of decoded data and ancestors.
        data: replaces the presets' own.
        recall: whether the ancestor's logits are recorded once for all sources.
        limit: how many images of each part are used; 0 uses all.
        quick: side of the images and steps of an ancestor that is trained more quickly than the
            preset's; None is the preset's.
    """

    def __init__(
        self,
        scale: Scale,
        folder: Path,
        cache_dir: Path,
        *,
        data: str = "",
        recall: bool = True,
        limit: int = 0,
        quick: tuple[int, int] | None = None,
    ) -> None:
        self.scale, self.folder, self.cache_dir = scale, folder, cache_dir
        self.name, self.recall, self.limit = data or scale.presets[0].data, recall, limit
        self.quick = quick
        self._data: dict[str, ImageData] = {}

    def data(self, name: str = "") -> ImageData:
        """Return the data of the sources, or a downstream pack in images of their size."""
        name = name or self.name
        if name not in self._data:
            size = self.scale.presets[0].auxiliary.kwargs["img_size"]
            found = load(name, image_size=size, cache_dir=self.cache_dir)
            self._data[name] = _limited(_padded(found, size), self.limit)
        return self._data[name]

    def data_hash(self, name: str = "") -> str:
        """Return a digest of all images and labels, in their three parts."""
        data, found = self.data(name), hashlib.sha256()
        for part in (data.train, data.val, data.test):
            images = part.images
            if isinstance(images, ImageFiles):
                found.update("".join(path.name for path in images.paths).encode())
            else:
                found.update(images.numpy().data)
            found.update(part.labels.numpy().data)
        return found.hexdigest()[:16]

    def ancestor(self, width: int) -> nn.Module:
        """Return the ancestor, trained if it was not; or what it said, recorded."""
        preset, data = self.scale.preset(width), self.data()
        size = f"{preset.training.steps}x{preset.training.batch_size}"
        file = self.folder / "sources" / f"ancestor-{size}.safetensors"
        if self.recall and file.exists():
            return remember(nn.Identity(), data, preset.training, file)
        network = preset.ancestor
        assert network is not None
        if network.training is None:
            ancestor, _, described = open_teacher(network.model, data)
        else:
            image_size, steps = self.quick or (network.image_size, None)
            network = replace(network, image_size=image_size)
            ancestor, described = get_ancestor(
                network, [data], cache_dir=self.cache_dir, steps=steps
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "ancestor.json").write_text(json.dumps(described))
        return remember(ancestor, data, preset.training, file) if self.recall else ancestor

    def config(self, source: Source) -> TrainingConfig:
        """Return the config of a source: the full budget."""
        config = self.scale.preset(source.width).training
        lr = (self.scale.source_lr or {}).get(source.kind, config.lr)
        return replace(config, lr=lr, scaler_lr=PUBLISHED_RATE if source.published else 1.0)

    def path(self, source: Source) -> Path:
        """Return the folder of a source."""
        return self.folder / "sources" / source.name

    def build(self, source: Source) -> nn.Module:
        """Return the untrained model of a source."""
        preset = self.scale.preset(source.width)
        depth = source.depth or preset.auxiliary.kwargs["depth"]
        network = sized(preset.auxiliary_at(depth), source.embed or source.width)
        model = network.build(self.data(), 0)
        if source.kind == "vit":
            return model
        if source.kind == "wave-mixed":
            mixed = replace(preset, depths=tuple(depth + step for step in (-2, -1, 1, 2)))
            return build_auxiliary(mixed, self.data(), "wave", 0)
        generator = torch.Generator().manual_seed(0)
        scalers = "linear" if source.published else "drawn"
        config = CONFIGS[source.kind.removesuffix(PUBLISHED)](source.width)
        return constrain(model, config, scalers=scalers, generator=generator)

    def train(self, source: Source, *, workers: int = 0) -> None:
        """Train a source from the ancestor's soft labels, unless it is there already."""
        folder, data = self.path(source), self.data()
        if (folder / "source.json").exists():
            return
        model, config = self.build(source), self.config(source)
        history = train(
            model,
            data,
            config,
            ancestor=self.ancestor(source.width),
            out=folder,
            resume=True,
            eval_every=max(1, config.steps // 10),
            workers=workers,
        )
        model.cpu()
        described: dict[str, Any] = {
            **asdict(source),
            "recipe": asdict(config),
            "seconds": round(history.seconds, 1),
            "val": round(history.val, 2),
            "test": round(data.score(model, data.test), 2),
        }
        if accelerator().is_main_process:
            if isinstance(model, ConstrainedModel):
                model.to_bundle(provenance=described).save_pretrained(folder)
            (folder / "source.json").write_text(json.dumps(described, indent=1) + "\n")
        accelerator().wait_for_everyone()

    def described(self, source: Source) -> dict[str, Any]:
        """Return what a trained source scored, and what it took."""
        return json.loads((self.path(source) / "source.json").read_text())

    def bundle(self, source: Source) -> TemplateBundle:
        """Return a trained template set."""
        return TemplateBundle.from_pretrained(self.path(source))

    def model(self, source: Source) -> nn.Module:
        """Return a trained plain model."""
        model = self.build(source)
        load_checkpoint(self.path(source) / "checkpoint.safetensors", model)
        return model


def sized(network: Network, width: int) -> Network:
    """Return a network of another width, its head dim kept."""
    kwargs = network.kwargs
    heads = kwargs["num_heads"] * width // kwargs["embed_dim"]
    return replace(network, kwargs={**kwargs, "embed_dim": width, "num_heads": heads})


def _padded(data: ImageData, size: int) -> ImageData:
    """Return data whose smaller images stand in the middle of black ones."""
    images = data.train.images
    if not isinstance(images, torch.Tensor) or images.shape[1] >= size:
        return data
    rest = size - images.shape[1]
    sides = (0, 0, *(rest // 2, rest - rest // 2) * 2)
    parts = {
        part: replace(
            getattr(data, part),
            images=nn.functional.pad(getattr(data, part).images, sides),
        )
        for part in ("train", "val", "test")
    }
    return replace(data, **parts)


def _limited(data: ImageData, limit: int) -> ImageData:
    if not limit:
        return data
    chosen = torch.arange(limit)
    parts = {
        part: getattr(data, part).rows(chosen % len(getattr(data, part)))
        for part in ("train", "val", "test")
    }
    return replace(data, **parts)
