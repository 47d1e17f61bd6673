"""Bundles of weight templates: what their tensors must be, and what no file may expand to."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, label_of
from weightinit.errors import BundleError
from weightinit.files.bundle import Bundle, Wanted, copies
from weightinit.files.checks import Shape
from weightinit.files.config import BundleConfig
from weightinit.files.locate import names
from weightinit.templates.checks import (
    any_size,
    auxiliary_size,
    axes_of,
    scaler_size,
    stack_place,
    template_config,
)
from weightinit.templates.config import TemplateConfig
from weightinit.text import some

__all__ = ["TemplateBundle", "as_bundle", "fitted_index", "list_templates", "size_entry"]

#: A bundle may describe models of 64 times its own bytes, or of 2 GiB where that is more: scalers
#: fitted for a ViT-L over templates of width 64 take 2 MB and describe 1.2 GB of float32.
MAX_EXPANSION = 64
EXPANSION_FLOOR = 2 * 2**30
#: Those of tensors outside the blocks; "_" is any size. Families and users have more roles, which
#: only need a well-formed name.
OUTSIDE_AXES = {
    "patch": "d c p q", "pos": "t d", "token.cls": "_ d", "token.dist": "_ d", "token.reg": "_ d",
    "norm_pre": "d", "norm": "d", "head": "n _", "head_dist": "n _",
}  # fmt: skip
ROLE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
#: How a model is made in a card's example, by family.
MODELS = {
    "vit": 'model = timm.create_model("vit_small_patch16_224", depth=9, num_classes=100)',
    "convnext": 'model = timm.create_model("{}_atto", depths=(2, 2, 8, 2), num_classes=100)',
}


class TemplateBundle(Bundle):
    """Weight templates, their trained scalers, and the tensors outside the blocks.

    Frozen; the tensors keep their stored dtype. Their names, in :attr:`tensors`:

    - ``templates.<kind>``: ``[N, *shape]``, of every kind in :attr:`template_config`;
    - ``scalers.<kind>``: ``[depth, N, *s]``, of the auxiliary model; may be missing for methods
      other than wave, whose scalers are closed forms;
    - ``fitted.<i>.<kind>``: ``[depth, N, *s]``, of ``config.fitted[i]``;
    - ``outside.<role>``: canonical tensors (patch embedding, positions, tokens, norms, head).

    Args:
        config: see :class:`BundleConfig`.
        tensors: by name.
        source: where they come from, with the resolved commit.
        card: text of README.md; default: generated on saving.

    Raises:
        BundleError: if a tensor is missing, unknown, or of another shape than the config says.

    Examples:
        >>> import tempfile, torch
        >>> from weightinit.files.config import BundleConfig
        >>> from weightinit.templates.bundle import TemplateBundle
        >>> from weightinit.templates.config import TemplateConfig
        >>> options = TemplateConfig.layers("share", 8, 1).to_dict()
        >>> sizes = {"d": 8, "h": 2, "k": 4, "m": 32}
        >>> config = BundleConfig("templates", "share", options, sizes, 1, "Apache-2.0")
        >>> shapes = {kind: [1, *spec["shape"]] for kind, spec in options["kinds"].items()}
        >>> tensors = {f"templates.{kind}": torch.ones(shape) for kind, shape in shapes.items()}
        >>> bundle = TemplateBundle(config, tensors)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bundle.save_pretrained(folder)
        ...     same = TemplateBundle.from_pretrained(folder)
        >>> same.tensors["templates.mlp.fc1.weight"].shape
        torch.Size([1, 32, 8])
    """

    kind: ClassVar[str] = "templates"

    @property
    def template_config(self) -> TemplateConfig:
        """The template set: its kinds, their number and shapes."""
        return template_config(self.config)

    @classmethod
    def wanted(cls, config: BundleConfig) -> Mapping[str, Wanted]:
        """Return the templates, and the scalers of methods that train them."""
        template = template_config(config)
        shapes: dict[str, Wanted] = {}
        for kind, spec in template.kinds.items():
            shapes[f"templates.{kind}"] = (spec.number, *spec.shape)
            if template.trained:
                shapes[f"scalers.{kind}"] = scaler_size(config, template, kind)
        return shapes

    @classmethod
    def optional(cls, config: BundleConfig, names: Set[str]) -> Mapping[str, Wanted]:
        """Return closed forms' scalers, scalers fitted for other sizes, tensors outside blocks."""
        template = template_config(config)
        shapes: dict[str, Wanted] = {}
        for kind, spec in template.kinds.items():
            shapes[f"scalers.{kind}"] = scaler_size(config, template, kind)
            for i, entry in enumerate(config.fitted):
                depth = entry["depth"]
                if spec.stack:
                    depth = entry["sizes"].get(f"depth{stack_place(config, spec.stack)}", depth)
                shapes[f"fitted.{i}.{kind}"] = (depth, spec.number, *any_size(spec.shape))
        for name in names:
            role = name.removeprefix("outside.")
            if role != name and ROLE.fullmatch(role):
                shapes[name] = (
                    tuple(config.sizes.get(a, a) for a in axes_of(OUTSIDE_AXES, role)) or None
                )
        return {name: shape for name, shape in shapes.items() if name in names}

    @classmethod
    def check(cls, config: BundleConfig, shapes: Mapping[str, Shape]) -> None:
        """Raise BundleError unless the tensors are those that the config calls for."""
        super().check(config, shapes)
        template = template_config(config)
        for kind, spec in template.kinds.items():
            size = auxiliary_size(config, template, kind)
            if f"scalers.{kind}" in shapes or size is None:
                continue
            if math.prod(template.scaler_shape(kind, size)) > 1:
                raise BundleError(
                    f"templates.{kind} of shape {list(spec.shape)} does not span a whole part of "
                    f"size {list(size)}, and there are no scalers.{kind}: add them"
                )
        models = {_model(name)[0] for name in shapes}
        lost = [f"fitted.{i}" for i in range(len(config.fitted)) if f"fitted.{i}" not in models]
        if lost:
            raise BundleError(
                f"the bundle lacks tensors [{some(f'{model}.<kind>' for model in lost)}]: its "
                "config and its weights are not of one bundle"
            )

    @classmethod
    def check_expansion(
        cls, config: BundleConfig, shapes: Mapping[str, Shape], nbytes: int, max_bytes: int
    ) -> None:
        """Raise BundleError if ``nbytes`` of tensors describe a model out of all proportion."""
        allowed = min(max(MAX_EXPANSION * nbytes, EXPANSION_FLOOR), max_bytes)
        kinds = template_config(config).kinds
        for kind, spec in kinds.items():
            # The scalers of any target are N / (w1 w2) times its size, whatever the scalers here.
            allowed_each = 1 if len(spec.shape) == 2 else MAX_EXPANSION
            if spec.number > allowed_each * math.prod(spec.shape):
                raise BundleError(
                    f"the bundle is an expansion bomb: kind {kind} has {spec.number} templates of "
                    f"{math.prod(spec.shape)} values, allowed are {allowed_each} for each value. "
                    "Do not use this bundle"
                )
        described: Counter[str] = Counter()
        for name, shape in shapes.items():
            model, kind = _model(name)
            if model not in ("templates", "outside"):
                values = shape[0] * math.prod(shape[2:]) * math.prod(kinds[kind].shape)
                described[model] += 4 * values
        for model, size in described.items():
            if size > allowed:
                raise BundleError(
                    f"the bundle is an expansion bomb: its tensors take {nbytes} bytes, and "
                    f"{model} expand them to {size}, over the limit of {allowed} "
                    f"({MAX_EXPANSION} times the file or {EXPANSION_FLOOR}, and max_bytes="
                    f"{max_bytes}). Do not use this bundle"
                )

    @classmethod
    def about(cls, config: BundleConfig, name: str) -> tuple[str, str, str]:
        """Return the card's own words: a model that is filled, and the sizes that were trained."""
        sizes = _named(config.sizes)
        stages = "-".join(map(str, config.traits.get("depths", [config.depth])))
        lines = [f"Learned with an auxiliary model of {stages} blocks, sizes {sizes}."]
        if config.fitted:
            lines += ["", "## Fitted sizes", ""]
        for entry in config.fitted:
            sizes = _named(entry["sizes"])
            lines.append(f"- scalers fitted for depth {entry['depth']}, {sizes}")
        family = config.traits.get("family", "vit")
        responds = any(".grn." in kind for kind in template_config(config).kinds)
        model = MODELS.get(family, f"model = ...  # {family}, of any size")
        model = model.format("convnextv2" if responds else "convnext")
        code = f"import timm, weightinit as wi\n{model}\nwi.init_from_templates(model, {name})"
        return f"Weight templates ({config.method})", code, "\n".join(lines)


def _model(name: str) -> tuple[str, str]:
    """Split a tensor's name into what it belongs to, such as ``fitted.0``, and its kind or role."""
    words = name.split(".")
    number = 2 if words[0] == "fitted" else 1
    return ".".join(words[:number]), ".".join(words[number:])


def _named(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{label}={size}" for label, size in sizes.items())


def as_bundle(
    anatomy: Anatomy,
    config: TemplateConfig,
    tensors: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    *,
    depth: int,
    licence: str,
    provenance: Mapping[str, Any],
    traits: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> TemplateBundle:
    """Return a bundle of templates, scalers and a model's tensors outside its blocks, by name.

    ``depth`` is that of the auxiliary model, ``provenance`` that of the training, and ``traits``
    are those beside the anatomy's; both are plain JSON.
    """
    named = {**tensors, **{f"outside.{role}": value for role, value in outside.items()}}
    return TemplateBundle(
        BundleConfig(
            kind=TemplateBundle.kind,
            method=config.method,
            options=config.to_dict(),
            sizes=dict(anatomy.sizes),
            depth=depth,
            licence=licence,
            traits={
                "family": anatomy.family,
                **anatomy.traits.to_dict(),
                "depths": [depth] if len(anatomy.stages) == 1 else list(anatomy.stages),
                **(traits or {}),
            },
            provenance=dict(provenance),
        ),
        copies(named, dtype),
    )


def size_entry(anatomy: Anatomy) -> dict[str, Any]:
    """Return what tells two sizes apart for fitted scalers: depth, width, heads, MLP."""
    labels = {
        x for block in anatomy.blocks for p in block.values() for axis in p.axes for x in axis
    }
    channels = [x for x in sorted(labels) if label_of(x).kind == "channel" and x in anatomy.sizes]
    sizes = {label: anatomy.sizes[label] for label in channels}
    if len(anatomy.stages) > 1:
        sizes |= {f"depth{i}": count for i, count in enumerate(anatomy.stages)}
    return {"depth": anatomy.depth, "sizes": sizes}


def fitted_index(bundle: TemplateBundle, anatomy: Anatomy) -> int | None:
    """Return which of the bundle's fitted scalers belong to a target's size, if any."""
    entries, entry = list(bundle.config.fitted), size_entry(anatomy)
    return entries.index(entry) if entry in entries else None


def list_templates(family: str = "") -> list[str]:
    """Return the names of the template bundles that ship with weightinit.

    Args:
        family: of the models that they are for, such as ``"vit"`` or ``"convnext"``; by default
            all.

    Examples:
        >>> import weightinit as wi
        >>> wi.list_templates("convnext")
        ['cifar10-convnextv2']
    """
    return names(TemplateBundle.kind, family)
