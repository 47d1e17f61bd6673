"""Weight templates from scratch: distilled from an ancestor (WAVE), or by labels alone (WeiT)."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from weightinit.anatomy import anatomy
from weightinit.errors import WeightInitError
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.constrain import constrain
from weightinit.templates.constrained import ConstrainedModel
from weightinit.templates.nested import NestedModel
from weightinit.templates.sizes import Size, Sizes
from weightinit.training.data import load_data
from weightinit.training.fleet import accelerator, plain_attention
from weightinit.training.images import ImageData
from weightinit.training.loop import train
from weightinit.training.presets import Preset, get_preset
from weightinit.training.run import Run
from weightinit.training.teacher import get_ancestor, open_teacher

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["MixedModel", "build_auxiliary", "train_templates"]

Start = Literal["drawn", "linear"]

#: Layers that are templates, by method; those of WAVE and WeiT are smaller.
METHODS = {"wave": 0, "weit": 0, "tleg": 2, "share": 1}


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


def build_auxiliary(
    preset: Preset, data: ImageData, method: str, seed: int, scalers: Start = "drawn"
) -> MixedModel | NestedModel:
    """Return the untrained auxiliary model of a preset for the classes and channels of the data."""
    if method not in METHODS:
        raise WeightInitError(f"method {method!r} trains no templates: use one of {list(METHODS)}")
    if scalers != "drawn" and (scalers, method) != ("linear", "wave"):
        raise WeightInitError(
            f"scalers {scalers!r} of method {method!r}: use 'drawn', or with 'wave' 'linear'"
        )
    depth, width = preset.auxiliary.kwargs["depth"], preset.width

    def built(depth: int, **changes: Any) -> nn.Module:
        model = preset.auxiliary_at(depth, **changes).build(data, seed)
        if accelerator().device.type == "cpu":
            plain_attention(model)
        return model

    model = built(depth)
    draw = torch.Generator().manual_seed(seed)
    if method == "weit":
        config = TemplateConfig.of(anatomy(model), layers=2, method="weit")
        depths = tuple(own for own in preset.depths if own <= depth)
        sizes = Sizes(depths=depths, widths=preset.widths, seed=seed)

        def build(size: Size) -> nn.Module:
            return built(size.depth, embed_dim=size.width, num_heads=size.heads)

        nested = constrain(model, config, sizes=sizes, build=build, generator=draw)
        assert isinstance(nested, NestedModel)
        return nested
    config = (
        TemplateConfig.wave(width)
        if method == "wave"
        else TemplateConfig.layers(method, width, METHODS[method])
    )
    start = constrain(model, config, scalers=scalers, generator=draw)
    # Blocks enough for the deepest; the scalers are those of the auxiliary model's own depth.
    largest = built(max(depth, *preset.depths, 0))
    composer = Composer(start.config, anatomy(largest))
    mixed = MixedModel(largest, composer, start.template_values(), start.scaler_values())
    mixed.pools, mixed.depths = preset.pools, preset.depths
    return mixed


def train_templates(
    preset: str | Preset,
    data: str | os.PathLike[str] | ImageData | None = None,
    *,
    method: str | None = None,
    ancestor: AncestorLike | None = None,
    scalers: Start = "drawn",
    scaler_lr: float | None = None,
    dtype: torch.dtype = torch.float32,
    **run: Any,
) -> TemplateBundle:
    """Train a template bundle and save it.

    The blocks of an auxiliary model are composed of templates. WAVE's learns the soft labels of an
    ancestor (Eq. 6 and 7), which is trained first, unless it is at hand; WeiT's learns the labels
    alone, with smaller networks inside it. What of WeiT is our reconstruction is said in
    :class:`weightinit.NestedModel`.

    Args:
        preset: name of a preset, or one of your own.
        data: what :func:`weightinit.training.data.load_data` takes; None is the preset's own.
        method: ``"wave"``, ``"weit"``, ``"tleg"`` or ``"share"`` (whose scalers are closed forms);
            None is the preset's own.
        ancestor: the classifier whose soft labels are learned: what
            :func:`weightinit.project_from` takes, or any name of timm's; ``"none"`` for labels
            alone; None is the preset's own, and of ``"weit"`` none.
        scalers: what they start at: ``"drawn"``, or of WAVE ``"linear"``, Eq. B.1, for targets
            that are started so.
        scaler_lr: rate of the scalers over that of the templates; None is the preset's, and half
            of it for ``"linear"``, whose scalers must stay near.
        dtype: dtype of the saved tensors.
        **run: see :class:`weightinit.training.run.Run`; ``out``, the folder, is required.

    Returns:
        The bundle, with its validation and test accuracy in ``config.provenance``.

    Raises:
        WeightInitError: if the data is not found or does not fit the preset, the ancestor does not
            fit the data, or the folder holds what would be overwritten.
    """
    given = Run(**run)
    preset = get_preset(preset) if isinstance(preset, str) else preset
    method = method or preset.method
    if scaler_lr is None and scalers == "linear":
        scaler_lr = preset.training.scaler_lr / 2
    config = given.config(preset.training, scaler_lr=scaler_lr)
    images = _data(preset, data, given)
    images.check(config.batch_size, config.augment, accelerator().num_processes)
    auxiliary = build_auxiliary(preset, images, method, given.seed, scalers)
    if accelerator().is_main_process:
        given.prepare()
    teacher, card = None, None
    if ancestor is None:
        own = None if method == "weit" else preset.ancestor
        if own is not None and own.training is None:
            ancestor = own.model
        elif own is not None:
            teacher, card = get_ancestor(own, [images], **given.ancestor_options)
    if ancestor is not None and ancestor != "none":
        teacher, images, card = open_teacher(ancestor, images)
    soft = config.loss if config.loss != "ce" else "soft+ce"
    config = replace(config, loss="ce" if teacher is None else soft)
    options = given.options("auxiliary model", config.steps // 10)
    history = train(auxiliary, images, config, ancestor=teacher, **options)
    auxiliary.cpu()
    described = {
        "network": asdict(preset.auxiliary_at(preset.auxiliary.kwargs["depth"])),
        "recipe": asdict(config),
        "pools": preset.pools,
        "depths": preset.depths,
        "scalers": scalers,
        "seconds": round(history.seconds),
        "val": _scores(auxiliary, images),
        "test": round(images.score(auxiliary, images.test), 2),
    }
    provenance = given.provenance(
        preset.name, method=method, data=images.describe(), ancestor=card, auxiliary=described
    )
    bundle = auxiliary.to_bundle(provenance=provenance, dtype=dtype)
    if accelerator().is_main_process:
        bundle.save_pretrained(given.folder)
    return bundle


def _scores(auxiliary: MixedModel | NestedModel, data: ImageData) -> dict[str, float]:
    """Return validation accuracy in percent by pooling and depth, or by size."""
    if isinstance(auxiliary, MixedModel):
        return auxiliary.scores(data)
    found = {}
    for size in auxiliary.sizes:
        with auxiliary.at(size):
            found[f"{size.width}x{size.depth}"] = round(data.score(auxiliary), 2)
    return found


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
