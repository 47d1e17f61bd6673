"""Weight templates from scratch: train an ancestor, distil it into an auxiliary model (WAVE)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightinit._version import __version__
from weightinit.anatomy import anatomy
from weightinit.errors import WeightInitError
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.constrain import ConstrainedModel, constrain
from weightinit.training.checkpoint import load_weights
from weightinit.training.data import load_data
from weightinit.training.images import ImageData, ImageFiles
from weightinit.training.loop import History, accelerator, evaluate, train
from weightinit.training.presets import Network, Preset, Taught, get_preset

__all__ = ["MixedModel", "build_auxiliary", "get_ancestor", "train_templates", "versions"]

METHODS = {"wave": 0, "tleg": 2, "share": 1}


class MixedModel(ConstrainedModel):
    """An auxiliary model that trains with several poolings at once, and at several depths.

    So its templates serve targets with and without a class token, and of other depths. In eval mode
    it is the model of :attr:`depth_used` blocks that pools as its ``global_pool`` says. Depths are
    drawn from torch's global generator, like drop path.

    Attributes:
        pools: values of timm's ``global_pool``.
        depths: numbers of blocks; every other step takes one of them.
    """

    pools: tuple[str, ...] = ("avg",)
    depths: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, classes]``, in training ``[B, poolings, classes]``."""
        model: Any = self.model
        own, blocks, pool = self.depth_used, model.blocks, model.global_pool
        try:
            if self.training:
                choices = [*self.depths, *[self.depth] * len(self.depths)] or [self.depth]
                self.depth_used = choices[int(torch.randint(len(choices), ()))]
            model.blocks = blocks[: self.depth_used or self.depth]
            if not self.training:
                return super().forward(images)
            self.compose()
            features = model.forward_features(images)
            logits = []
            for model.global_pool in self.pools:
                logits.append(model.forward_head(features))
            return torch.stack(logits, 1)
        finally:
            self.depth_used, model.blocks, model.global_pool = own, blocks, pool

    def to_bundle(self, **options: Any) -> TemplateBundle:
        """Return the bundle, which says at which depths it was trained."""
        bundle = super().to_bundle(**options)
        traits = {**bundle.config.traits, "trained_depths": sorted({*self.depths, self.depth})}
        return TemplateBundle(replace(bundle.config, traits=traits), bundle.tensors, bundle.source)


def build_auxiliary(preset: Preset, data: ImageData, method: str, seed: int) -> MixedModel:
    """Return the untrained auxiliary model of a preset.

    Args:
        preset: names its size.
        data: its classes and channels.
        method: ``"wave"``, ``"tleg"`` or ``"share"``.
        seed: of templates, scalers and what is outside the blocks.
    """
    if method not in METHODS:
        raise WeightInitError(f"method {method!r} trains no templates: use one of {list(METHODS)}")
    depth, width = preset.auxiliary.kwargs["depth"], preset.width
    config = (
        TemplateConfig.wave(width)
        if method == "wave"
        else TemplateConfig.layers(method, width, METHODS[method])
    )
    start = constrain(
        preset.auxiliary_at(depth).build(data, seed),
        config,
        generator=torch.Generator().manual_seed(seed),
    )
    # Blocks enough for the deepest; the scalers are those of the auxiliary model's own depth.
    largest = preset.auxiliary_at(max(depth, *preset.depths, 0)).build(data, seed)
    given = [
        {kind: held[kind.replace(".", "_")] for kind in start.config.kinds}
        for held in (start.templates, start.scalers)
    ]
    mixed = MixedModel(largest, Composer(start.config, anatomy(largest)), *given)
    mixed.pools, mixed.depths = preset.pools, preset.depths
    return mixed


def get_ancestor(
    preset: Taught,
    data: ImageData,
    *,
    cache_dir: Path,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the ancestor and its provenance: timm's own, or trained here and cached.

    A training that was interrupted goes on where it stopped.

    Args:
        preset: names the ancestor and its recipe.
        data: to train it on.
        cache_dir: holds ``ancestors/<hash of the recipe>``.
        seed: of its initial weights and of its training.
        progress: see :func:`weightinit.training.loop.train`.
    """
    network = preset.ancestor
    model = network.build(data, seed)
    described: dict[str, Any] = {"network": asdict(network)}
    if preset.ancestor_recipe is not None:
        recipe = replace(preset.ancestor_recipe, seed=seed)
        described |= {"recipe": asdict(recipe), "data": data.describe()}
        text = json.dumps(described, sort_keys=True)
        folder = cache_dir / "ancestors" / hashlib.sha256(text.encode()).hexdigest()[:16]
        file = folder / "checkpoint.safetensors"
        if not file.exists() or load_weights(file, model)["step"] < recipe.steps:
            train(
                model,
                data,
                recipe,
                out=folder,
                resume=True,
                eval_every=max(1, recipe.steps // 10),
                progress=progress,
            )
        history = History(**load_weights(file, model)["history"])
        described["seconds"] = round(history.seconds)
        del described["data"]
    described["val"] = round(evaluate(model, data.val, data), 2)
    described["test"] = round(evaluate(model, data.test, data), 2)
    return model, described


def train_templates(
    preset: str | Preset,
    data: str | os.PathLike[str] | ImageData | None = None,
    *,
    out: str | os.PathLike[str],
    method: str = "wave",
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    precision: str | None = None,
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    command: str = "",
    progress: bool | None = None,
) -> TemplateBundle:
    """Train a template bundle and save it.

    The ancestor is trained first, unless it is at hand; then the auxiliary model, whose blocks are
    composed of templates, learns its soft labels (WAVE, Eq. 6 and 7).

    Args:
        preset: by name, or one of your own.
        data: what :func:`weightinit.training.data.load_data` takes; None is the preset's own.
        out: folder of the bundle; ``training/`` in it holds the checkpoint and the history.
        method: ``"wave"``, ``"tleg"`` or ``"share"`` (whose scalers are closed forms).
        steps: of the distillation, the warm-up scaled along; None is the preset's.
        seed: of everything.
        resume: go on from the checkpoint in ``out``.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None is the preset's.
        workers: processes that augment images.
        cache_dir: of decoded data and ancestors (default ``~/.cache/weightinit``).
        dtype: of the saved tensors.
        command: for the provenance.
        progress: None shows bars on a terminal.

    Returns:
        The bundle, with its validation and test accuracy in ``config.provenance``.

    Raises:
        WeightInitError: if the data is not found or does not fit the preset.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    folder = Path(out).expanduser()
    cache = Path(cache_dir or Path.home() / ".cache" / "weightinit").expanduser()
    data = _data(preset, data, seed, cache)
    recipe = preset.recipe.planned(steps=steps, seed=seed, precision=precision)
    ancestor, ancestor_card = get_ancestor(
        preset, data, cache_dir=cache, seed=seed, progress=progress
    )
    auxiliary = build_auxiliary(preset, data, method, seed)
    history = train(
        auxiliary,
        data,
        recipe,
        ancestor=ancestor,
        out=folder / "training",
        resume=resume,
        eval_every=max(1, recipe.steps // 10),
        workers=workers,
        progress=progress,
    )
    auxiliary.cpu()
    provenance = {
        "command": command,
        "preset": preset.name,
        "data": data.describe(),
        "ancestor": ancestor_card,
        "auxiliary": {
            "network": asdict(preset.auxiliary_at(preset.auxiliary.kwargs["depth"])),
            "recipe": asdict(recipe),
            "pools": preset.pools,
            "depths": preset.depths,
            "seconds": round(history.seconds),
            "val": scores(auxiliary, data),
            "test": round(evaluate(auxiliary, data.test, data), 2),
        },
        "versions": versions(),
    }
    bundle = auxiliary.to_bundle(provenance=json.loads(json.dumps(provenance)), dtype=dtype)
    if accelerator().is_main_process:
        bundle.save_pretrained(folder)
    return bundle


def scores(auxiliary: MixedModel, data: ImageData) -> dict[str, float]:
    """Return validation accuracy in percent by pooling, and at other depths with the first."""
    model: Any = auxiliary.model
    found = {}
    for pool in auxiliary.pools:
        model.global_pool = pool
        found[pool] = round(evaluate(auxiliary, data.val, data), 2)
    model.global_pool = auxiliary.pools[0]
    for depth in sorted({*auxiliary.depths} - {auxiliary.depth}):
        auxiliary.depth_used = depth
        found[f"depth {depth}"] = round(evaluate(auxiliary, data.val, data), 2)
    auxiliary.depth_used = None
    return found


def _data(
    preset: Preset, data: str | os.PathLike[str] | ImageData | None, seed: int, cache: Path
) -> ImageData:
    size = preset.auxiliary.kwargs["img_size"]
    if not isinstance(data, ImageData):
        data = load_data(data or preset.data, seed=seed, image_size=size, cache_dir=cache)
    images = data.val.images
    given = images.size if isinstance(images, ImageFiles) else tuple(images.shape[1:3])
    if given not in (size, (size, size)):
        raise WeightInitError(
            f"{data.name} has images of {given} pixels, and {preset.name} is for {size}: name "
            "other data, or another preset"
        )
    return _as_pretrained(preset.ancestor, data)


def _as_pretrained(network: Network, data: ImageData) -> ImageData:
    """Normalise images as a pretrained ancestor expects them."""
    if not network.pretrained:
        return data
    import timm

    config = timm.get_pretrained_cfg(network.model)
    assert config is not None
    return replace(data, mean=tuple(config.mean), std=tuple(config.std))


def versions() -> dict[str, str]:
    """Return the versions of what a training depends on."""
    import accelerate
    import timm

    return {
        "weightinit": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }
