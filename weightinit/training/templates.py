"""Weight templates from scratch: train an ancestor, distil it into an auxiliary model (WAVE)."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any

import timm
import torch
from torch import Tensor

from weightinit.anatomy import anatomy
from weightinit.errors import WeightInitError
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.constrain import ConstrainedModel, constrain
from weightinit.training.config import Run
from weightinit.training.data import load_data
from weightinit.training.images import ImageData
from weightinit.training.loop import accelerator, train
from weightinit.training.presets import Preset, get_preset
from weightinit.training.teacher import as_published, get_ancestor, scores

__all__ = ["MixedModel", "build_auxiliary", "train_templates"]

#: Templates of each kind, by method; WAVE's config says its own.
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

    def scores(self, data: ImageData) -> dict[str, float]:
        """Return validation accuracy in percent by pooling, and at other depths with the first."""
        model: Any = self.model
        found = {}
        for model.global_pool in self.pools:
            found[model.global_pool] = round(data.score(self), 2)
        model.global_pool = self.pools[0]
        for depth in sorted({*self.depths} - {self.depth}):
            self.depth_used = depth
            found[f"depth {depth}"] = round(data.score(self), 2)
        self.depth_used = None
        return found


def build_auxiliary(preset: Preset, data: ImageData, method: str, seed: int) -> MixedModel:
    """Return the untrained auxiliary model of a preset for the classes and channels of the data."""
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
    given = (
        {kind: held[kind.replace(".", "_")] for kind in start.config.kinds}
        for held in (start.templates, start.scalers)
    )
    mixed = MixedModel(largest, Composer(start.config, anatomy(largest)), *given)
    mixed.pools, mixed.depths = preset.pools, preset.depths
    return mixed


def train_templates(
    preset: str | Preset,
    data: str | os.PathLike[str] | ImageData | None = None,
    *,
    method: str = "wave",
    dtype: torch.dtype = torch.float32,
    **run: Any,
) -> TemplateBundle:
    """Train a template bundle and save it.

    The ancestor is trained first, unless it is at hand; then the auxiliary model, whose blocks are
    composed of templates, learns its soft labels (WAVE, Eq. 6 and 7).

    Args:
        preset: name of a preset, or one of your own.
        data: what :func:`weightinit.training.data.load_data` takes; None is the preset's own.
        method: ``"wave"``, ``"tleg"`` or ``"share"`` (whose scalers are closed forms).
        dtype: dtype of the saved tensors.
        **run: see :class:`weightinit.training.config.Run`; ``out``, the folder, is required.

    Returns:
        The bundle, with its validation and test accuracy in ``config.provenance``.

    Raises:
        WeightInitError: if the data is not found or does not fit the preset.
    """
    given = Run(**run)
    preset = get_preset(preset) if isinstance(preset, str) else preset
    config, images = given.config(preset.training), _data(preset, data, given)
    if preset.ancestor.training is None:
        published = timm.create_model(preset.ancestor.model, pretrained=True)
        ancestor, (images,) = as_published(published, [images])
        card = {"network": asdict(preset.ancestor), **scores(ancestor, [images])}
    else:
        ancestor, card = get_ancestor(preset.ancestor, [images], **given.ancestor_options)
    auxiliary = build_auxiliary(preset, images, method, given.seed)
    history = train(
        auxiliary, images, config, ancestor=ancestor, **given.options(config.steps // 10)
    )
    auxiliary.cpu()
    described = {
        "network": asdict(preset.auxiliary_at(auxiliary.depth)),
        "recipe": asdict(config),
        "pools": preset.pools,
        "depths": preset.depths,
        "seconds": round(history.seconds),
        "val": auxiliary.scores(images),
        "test": round(images.score(auxiliary, images.test), 2),
    }
    provenance = given.provenance(
        preset.name, data=images.describe(), ancestor=card, auxiliary=described
    )
    bundle = auxiliary.to_bundle(provenance=provenance, dtype=dtype)
    if accelerator().is_main_process:
        bundle.save_pretrained(given.folder)
    return bundle


def _data(preset: Preset, data: str | os.PathLike[str] | ImageData | None, run: Run) -> ImageData:
    size = preset.auxiliary.kwargs["img_size"]
    if not isinstance(data, ImageData):
        data = load_data(data or preset.data, seed=run.seed, image_size=size, cache_dir=run.cache)
    if data.val.size != (size, size):
        raise WeightInitError(
            f"{data.name} has images of {data.val.size} pixels, and {preset.name} is for {size}: "
            "name other data, or another preset"
        )
    return data
