"""What a bundle's config says of its templates, checked: it may come from a stranger's file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weightinit.anatomy import label_of
from weightinit.errors import BundleError
from weightinit.files.bundle import Wanted
from weightinit.files.checks import Shape
from weightinit.files.config import BundleConfig
from weightinit.templates.config import TemplateConfig
from weightinit.text import some

__all__ = ["any_size", "auxiliary_size", "axes_of", "scaler_size", "stack_place", "template_config"]

MAX_KINDS = 256
#: The axes of one part of a kind, by module; "a" is the width inside attention, h times k, and "_"
#: any size. A bias has the first; in one of several stacks the labels have its number. Other kinds
#: may have any shape.
KIND_AXES = {
    "attn.qkv": "a d", "attn.proj": "d a", "mlp.fc1": "m d", "mlp.fc2": "d m", "norm1": "d",
    "norm2": "d", "ada": "d d", "conv_dw": "d _",
}  # fmt: skip
#: The form of traits that filling a model relies on; a list is of any of its items.
TRAITS: dict[str, Any] = {
    **dict.fromkeys("family library form pool act norm rope glu".split(), str),
    **dict.fromkeys(("first_position", "prefix_tokens", "pos_prefix"), int),
    "grid": [int],
    "main_stacks": [str],
    "depths": [int],
    "trained_depths": [int, [int]],
    "trained_widths": [float, int],
}


def template_config(config: BundleConfig) -> TemplateConfig:
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
    _check_traits(config, template)
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


def _fits(value: object, form: Any) -> bool:
    if isinstance(form, list):
        several = isinstance(value, list | tuple)
        return several and all(any(_fits(item, one) for one in form) for item in value)
    return type(value) is form and (form is str or 0 <= value < 2**24)  # type: ignore[operator]


def _check_traits(config: BundleConfig, template: TemplateConfig) -> None:
    """Raise BundleError if a trait is of another form, or kinds belong to no stack."""
    traits = {name: value for name, value in config.traits.items() if value is not None}
    for name in TRAITS.keys() & traits.keys():
        value, sound = traits[name], _fits(traits[name], TRAITS[name])
        sound = sound and (name != "grid" or (len(value) == 2 and min(value) > 0))
        sound = sound and (name != "trained_widths" or all(2**-12 <= f <= 1 for f in value))
        if not sound:
            raise BundleError(
                f"trait {name} of the bundle is {value!r:.80}: it must be as a training writes it "
                f"({TRAITS[name]}, two of them for a grid, and widths up to 1)"
            )
    stacks, depths = traits.get("main_stacks", ()), traits.get("depths", ())
    apart = len(stacks) > 1 or any(kind.stack for kind in template.kinds.values())
    if apart and (len(depths) != len(stacks) or sum(depths) != config.depth):
        raise BundleError(
            f"the bundle has stacks {list(stacks)} of depths {list(depths)} and depth "
            f"{config.depth}: there must be a depth for each, which sum to it"
        )
    stray = [kind for kind, spec in template.kinds.items() if spec.stack not in {"", *stacks}]
    if stray:
        raise BundleError(
            f"kinds [{some(stray)}] belong to none of the bundle's stacks {list(stacks)}: its "
            "options and its traits are not of one bundle"
        )


def scaler_size(config: BundleConfig, template: TemplateConfig, kind: str) -> Wanted:
    """Return the shape of the auxiliary model's scalers of a kind."""
    spec, size = template.kinds[kind], auxiliary_size(config, template, kind)
    if size is not None and len(size) != len(spec.shape):
        raise BundleError(
            f"templates of kind {kind} have {len(spec.shape)} axes, and what they make has "
            f"{len(size)}: they must agree"
        )
    covered = any_size(spec.shape) if size is None else template.scaler_shape(kind, size)
    depth = config.traits["depths"][stack_place(config, spec.stack)] if spec.stack else config.depth
    return (depth, spec.number, *covered)


def stack_place(config: BundleConfig, stack: str) -> int:
    """Return the place of a stack among the main ones."""
    return config.traits["main_stacks"].index(stack)


def any_size(shape: Shape) -> tuple[str, ...]:
    """Return a shape of as many axes and any lengths."""
    return tuple(f"s{i}" for i in range(len(shape)))


def axes_of(known: Mapping[str, str], role: str) -> list[str]:
    """Return the axes of a role in a table; none if it is not there."""
    module, _, which = role.rpartition(".")
    axes = known.get(module if which in ("weight", "bias") else role, "").split()
    return axes[:1] if which == "bias" else axes


def auxiliary_size(config: BundleConfig, template: TemplateConfig, kind: str) -> Shape | None:
    """Return the size of one part of a kind in the auxiliary model; None for rarer kinds."""
    spec = template.kinds[kind]
    number = stack_place(config, spec.stack) if spec.stack else ""
    axes = axes_of(KIND_AXES, kind[len(spec.stack) + 1 :] if spec.stack else kind)
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
