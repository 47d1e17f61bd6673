"""Bundles of weight templates: what their tensors must be, and what no file may expand to."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Set
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, label_of
from weightinit.errors import BundleError
from weightinit.files.bundle import Bundle, Wanted, copies
from weightinit.files.checks import Shape, some
from weightinit.files.config import BundleConfig
from weightinit.files.locate import names
from weightinit.templates.config import TemplateConfig

__all__ = ["TemplateBundle", "as_bundle", "fitted_index", "list_templates", "size_entry"]

#: A bundle may describe models of 64 times its own bytes, or of 2 GiB where that is more: scalers
#: fitted for a ViT-L over templates of width 64 take 2 MB and describe 1.2 GB of float32.
MAX_EXPANSION = 64
EXPANSION_FLOOR = 2 * 2**30
MAX_KINDS = 256
#: The axes of one part of a kind, by module; "a" is the width inside attention, h times k, and "_"
#: any size. A bias has the first; in one of several stacks the labels have its number. Other kinds
#: may have any shape.
KIND_AXES = {
    "attn.qkv": "a d", "attn.proj": "d a", "mlp.fc1": "m d", "mlp.fc2": "d m", "norm1": "d",
    "norm2": "d", "ada": "d d", "conv_dw": "d _",
}  # fmt: skip
#: Those of tensors outside the blocks; "_" is any size. Families and users have more roles, which
#: only need a well-formed name.
OUTSIDE_AXES = {
    "patch": "d c p q", "pos": "t d", "token.cls": "_ d", "token.dist": "_ d", "token.reg": "_ d",
    "norm_pre": "d", "norm": "d", "head": "n _", "head_dist": "n _",
}  # fmt: skip
ROLE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


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
        return _template_config(self.config)

    @classmethod
    def wanted(cls, config: BundleConfig) -> Mapping[str, Wanted]:
        """Return the templates, and the scalers of methods that train them."""
        template = _template_config(config)
        shapes: dict[str, Wanted] = {}
        for kind, spec in template.kinds.items():
            shapes[f"templates.{kind}"] = (spec.number, *spec.shape)
            if template.trained:
                shapes[f"scalers.{kind}"] = _scalers(config, template, kind)
        return shapes

    @classmethod
    def optional(cls, config: BundleConfig, names: Set[str]) -> Mapping[str, Wanted]:
        """Return closed forms' scalers, scalers fitted for other sizes, tensors outside blocks."""
        template = _template_config(config)
        shapes: dict[str, Wanted] = {}
        for kind, spec in template.kinds.items():
            shapes[f"scalers.{kind}"] = _scalers(config, template, kind)
            for i, entry in enumerate(config.fitted):
                shapes[f"fitted.{i}.{kind}"] = (entry["depth"], spec.number, *_any(spec.shape))
        for name in names:
            role = name.removeprefix("outside.")
            if role != name and ROLE.fullmatch(role):
                shapes[name] = (
                    tuple(config.sizes.get(a, a) for a in _axes(OUTSIDE_AXES, role)) or None
                )
        return {name: shape for name, shape in shapes.items() if name in names}

    @classmethod
    def check(cls, config: BundleConfig, shapes: Mapping[str, Shape]) -> None:
        """Raise BundleError unless the tensors are those that the config calls for."""
        super().check(config, shapes)
        template = _template_config(config)
        for kind, spec in template.kinds.items():
            size = _auxiliary_size(config, template, kind)
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
        kinds = _template_config(config).kinds
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
        lines = [f"Learned with an auxiliary model of {config.depth} blocks, sizes {sizes}."]
        if config.fitted:
            lines += ["", "## Fitted sizes", ""]
        for entry in config.fitted:
            sizes = _named(entry["sizes"])
            lines.append(f"- scalers fitted for depth {entry['depth']}, {sizes}")
        code = (
            "import timm, weightinit as wi\n"
            'model = timm.create_model("vit_small_patch16_224", depth=9, num_classes=100)\n'
            f"wi.init_from_templates(model, {name})"
        )
        return f"Weight templates ({config.method})", code, "\n".join(lines)


def _template_config(config: BundleConfig) -> TemplateConfig:
    """Return the template set that a bundle's options describe, or raise BundleError."""
    kinds = config.options.get("kinds")
    if isinstance(kinds, Mapping) and len(kinds) > MAX_KINDS:
        raise BundleError(f"the bundle has {len(kinds)} kinds: allowed are {MAX_KINDS}")
    template = TemplateConfig.from_dict(config.options)
    entries = config.options["kinds"].items()
    known = {"number", "shape", "parts", "stack"}
    odd = [kind for kind, entry in entries if set(entry) | {"stack"} != known]
    if odd or not entries:
        raise BundleError(
            f"options of the bundle have {len(entries)} kinds, of which [{some(odd)}] have unknown "
            "entries: use one kind or more, each of number, shape, parts and stack"
        )
    _check_traits(config)
    stacks = set(config.traits.get("main_stacks", ()))
    stray = [kind for kind, spec in template.kinds.items() if spec.stack not in {"", *stacks}]
    if stray:
        raise BundleError(
            f"kinds [{some(stray)}] belong to none of the bundle's stacks {sorted(stacks)}: its "
            "options and its traits are not of one bundle"
        )
    if config.method != template.method:
        raise BundleError(
            f"method is {config.method!r} in the bundle's config and {template.method!r} in its "
            "options: they must agree"
        )
    width = next((n for label, n in config.sizes.items() if label_of(label).stream), template.width)
    if width < template.width:
        raise BundleError(
            f"width of the templates is {template.width}, and the auxiliary model's is {width}: "
            "templates must not be wider than the model they were trained in"
        )
    return template


def _check_traits(config: BundleConfig) -> None:
    """Raise BundleError if a trait that filling a model relies on is of another form."""

    def whole(value: Any, least: int = 0) -> bool:
        return type(value) is int and least <= value < 2**24

    def listed(value: Any, sound: Callable[[Any], bool] = lambda n: whole(n, 1)) -> bool:
        return isinstance(value, list | tuple) and all(map(sound, value))

    forms: dict[str, tuple[Callable[[Any], bool], str]] = {
        "grid": (lambda x: listed(x) and len(x) == 2, "two whole numbers"),
        "pos_prefix": (whole, "a whole number"),
        "prefix_tokens": (whole, "a whole number"),
        "main_stacks": (lambda x: listed(x, lambda n: isinstance(n, str)), "a list of names"),
        "depths": (listed, "a list of whole numbers"),
        "trained_depths": (lambda x: listed(x, lambda n: whole(n, 1) or listed(n)), "depths"),
        "trained_widths": (
            lambda x: listed(x, lambda f: type(f) in (int, float) and 2**-12 <= f <= 1),
            "a list of fractions of the width",
        ),
        "family": (lambda x: isinstance(x, str), "a name"),
    }
    traits = config.traits
    for name, (sound, form) in forms.items():
        value = traits.get(name)
        if value is not None and not sound(value):
            raise BundleError(f"trait {name} of the bundle is {value!r:.80}: it must be {form}")
    stacks, depths = traits.get("main_stacks") or (), traits.get("depths") or ()
    if len(stacks) > 1 and (len(depths) != len(stacks) or sum(depths) != config.depth):
        raise BundleError(
            f"the bundle has stacks {list(stacks)} of depths {list(depths)} and depth "
            f"{config.depth}: there must be a depth for each, which sum to it"
        )


def _model(name: str) -> tuple[str, str]:
    """Split a tensor's name into what it belongs to, such as ``fitted.0``, and its kind or role."""
    words = name.split(".")
    number = 2 if words[0] == "fitted" else 1
    return ".".join(words[:number]), ".".join(words[number:])


def _scalers(config: BundleConfig, template: TemplateConfig, kind: str) -> Wanted:
    spec, size = template.kinds[kind], _auxiliary_size(config, template, kind)
    if size is not None and len(size) != len(spec.shape):
        raise BundleError(
            f"templates of kind {kind} have {len(spec.shape)} axes, and what they make has "
            f"{len(size)}: they must agree"
        )
    covered = _any(spec.shape) if size is None else template.scaler_shape(kind, size)
    depth = config.depth
    if spec.stack:
        depth = config.traits["depths"][config.traits["main_stacks"].index(spec.stack)]
    return (depth, spec.number, *covered)


def _any(shape: Shape) -> tuple[str, ...]:
    return tuple(f"s{i}" for i in range(len(shape)))


def _axes(known: Mapping[str, str], role: str) -> list[str]:
    """Return the axes of a role in a table; none if it is not there."""
    module, _, which = role.rpartition(".")
    axes = known.get(module if which in ("weight", "bias") else role, "").split()
    return axes[:1] if which == "bias" else axes


def _auxiliary_size(config: BundleConfig, template: TemplateConfig, kind: str) -> Shape | None:
    """Return the size of one part of a kind in the auxiliary model; None for rarer kinds."""
    spec = template.kinds[kind]
    number = config.traits["main_stacks"].index(spec.stack) if spec.stack else ""
    axes = _axes(KIND_AXES, kind[len(spec.stack) + 1 :] if spec.stack else kind)
    size = []
    for axis, tile in zip(axes, (*spec.unit, 1, 1), strict=False):
        labels = {"a": ["h", "k"], "_": []}.get(axis, [f"{axis}{number}"])
        absent = [label for label in labels if label not in config.sizes]
        if absent:
            raise BundleError(
                f"sizes of the bundle lack {some(absent)}, which kind {kind} needs: save the sizes "
                "of the auxiliary model with it"
            )
        size.append(math.prod(config.sizes[x] for x in labels) if labels else tile)
    return tuple(size) or None


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


def list_templates() -> list[str]:
    """Return the names of the template bundles that ship with weightinit.

    Examples:
        >>> from weightinit.templates.bundle import list_templates
        >>> isinstance(list_templates(), list)
        True
    """
    return names(TemplateBundle.kind)
