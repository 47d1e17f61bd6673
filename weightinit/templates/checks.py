"""Whether the tensors of a template bundle are those that its config calls for, and no bomb."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from weightinit.errors import BundleError
from weightinit.files.checks import Shape, some
from weightinit.files.config import BundleConfig
from weightinit.templates.config import TemplateConfig

__all__ = ["check_expansion", "check_tensors", "template_config"]

#: A bundle may describe models of 64 times its own bytes, or of 2 GiB where that is more: scalers
#: fitted for a ViT-L over templates of width 64 take 2 MB and describe 1.2 GB of float32.
MAX_EXPANSION = 64
EXPANSION_FLOOR = 2 * 2**30
MAX_KINDS = 256
#: The axes of tensors outside the blocks, by role; "_" is any size. Families and users have more
#: roles, which only need a well-formed name.
OUTSIDE_AXES = {
    "patch.weight": "d c p q",
    "patch.bias": "d",
    "pos": "t d",
    "token.cls": "_ d",
    "token.dist": "_ d",
    "token.reg": "_ d",
    "head.weight": "n _",
    "head_dist.weight": "n _",
    "head.bias": "n",
    "head_dist.bias": "n",
    **{f"{norm}.{w}": "d" for norm in ("norm_pre", "norm") for w in ("weight", "bias")},
}
ROLE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
#: The axes of one part of a kind; "a" is the width inside attention, h times k.
KIND_AXES = {
    "attn.qkv.weight": "a d",
    "attn.qkv.bias": "a",
    "attn.proj.weight": "d a",
    "attn.proj.bias": "d",
    "mlp.fc1.weight": "m d",
    "mlp.fc1.bias": "m",
    "mlp.fc2.weight": "d m",
    "mlp.fc2.bias": "d",
    **{f"{norm}.{w}": "d" for norm in ("norm1", "norm2") for w in ("weight", "bias")},
}


def check_tensors(config: BundleConfig, shapes: Mapping[str, Shape]) -> None:
    """Raise BundleError unless the tensors are those that the config calls for."""
    template = template_config(config)
    groups = _grouped(shapes)
    depths = {f"fitted.{i}": entry["depth"] for i, entry in enumerate(config.fitted)}
    missing = [f"templates.{kind}" for kind in template.kinds if kind not in groups["templates"]]
    if template.method == "wave":
        missing += [f"scalers.{kind}" for kind in template.kinds if kind not in groups["scalers"]]
    missing += [f"{model}.<kind>" for model in depths if model not in groups]
    unknown = [
        f"{group}.{rest}"
        for group, members in groups.items()
        for rest in members
        if (group not in ("templates", "scalers", "outside") and group not in depths)
        or (group == "outside" and not ROLE.fullmatch(rest))
        or (group != "outside" and rest not in template.kinds)
    ]
    if missing or unknown:
        raise BundleError(
            f"the bundle lacks tensors [{some(missing)}] and has unknown ones "
            f"[{some(unknown)}]: its config and its weights are not of one bundle"
        )
    for kind, spec in template.kinds.items():
        _check_shape(f"templates.{kind}", groups["templates"][kind], (spec.number, *spec.shape))
        size = _auxiliary_size(config, kind)
        scaler = (
            tuple(f"s{i}" for i in range(len(spec.shape)))
            if size is None
            else template.scaler_shape(kind, size)
        )
        if kind in groups["scalers"]:
            wanted = (config.depth, spec.number, *scaler)
            _check_shape(f"scalers.{kind}", groups["scalers"][kind], wanted)
        elif size is not None and math.prod(template.scaler_shape(kind, size)) > 1:
            raise BundleError(
                f"templates.{kind} of shape {list(spec.shape)} does not span a whole part of size "
                f"{list(size)}, and there are no scalers.{kind}: add them"
            )
        for model, depth in depths.items():
            if kind in groups[model]:
                wanted = (depth, spec.number, *(f"s{i}" for i in range(len(spec.shape))))
                _check_shape(f"{model}.{kind}", groups[model][kind], wanted)
    for role, shape in groups["outside"].items():
        if role in OUTSIDE_AXES:
            wanted = tuple(config.sizes.get(axis, axis) for axis in OUTSIDE_AXES[role].split())
            _check_shape(f"outside.{role}", shape, wanted)


def _grouped(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Sort tensors by the first part of their names, which for ``fitted.<i>`` is two words."""
    groups: dict[str, dict[str, Shape]] = {"templates": {}, "scalers": {}, "outside": {}}
    for name, shape in shapes.items():
        group, _, rest = name.partition(".")
        if group == "fitted":
            number, _, rest = rest.partition(".")
            group = f"fitted.{number}"
        groups.setdefault(group, {})[rest] = shape
    return groups


def _check_shape(name: str, shape: Shape, wanted: tuple[int | str, ...]) -> None:
    """Compare a shape with the one wanted, in which a string stands for any size."""
    if len(shape) != len(wanted) or any(
        w != n for w, n in zip(wanted, shape, strict=True) if not isinstance(w, str)
    ):
        raise BundleError(
            f"tensor {name} has shape {list(shape)}, the config calls for "
            f"[{', '.join(map(str, wanted))}]: its config and its weights are not of one bundle"
        )


def _auxiliary_size(config: BundleConfig, kind: str) -> Shape | None:
    """Return the size of one part of a kind in the auxiliary model; None for rarer kinds."""
    axes = KIND_AXES.get(kind, "").split()
    labels = " ".join(axes).replace("a", "h k").split()
    absent = [label for label in labels if label not in config.sizes]
    if absent:
        raise BundleError(
            f"sizes of the bundle lack {some(absent)}, which kind {kind} needs: save the sizes of "
            "the auxiliary model with it"
        )
    sizes = {**config.sizes, "a": config.sizes.get("h", 0) * config.sizes.get("k", 0)}
    return tuple(sizes[axis] for axis in axes) or None


def check_expansion(
    config: BundleConfig, shapes: Mapping[str, Shape], nbytes: int, max_bytes: int
) -> None:
    """Raise BundleError if ``nbytes`` of tensors describe a model out of all proportion to them."""
    allowed = min(max(MAX_EXPANSION * nbytes, EXPANSION_FLOOR), max_bytes)
    kinds = template_config(config).kinds
    for kind, spec in kinds.items():
        # The scalers of any target are N / (w1 w2) times its size, whatever the scalers here.
        if spec.number > MAX_EXPANSION * math.prod(spec.shape):
            raise BundleError(
                f"the bundle is an expansion bomb: kind {kind} has {spec.number} templates of "
                f"{math.prod(spec.shape)} values, allowed are {MAX_EXPANSION} for each value. Do "
                "not use this bundle"
            )
    for model, members in _grouped(shapes).items():
        if model in ("templates", "outside"):
            continue
        size = sum(
            4 * shape[0] * math.prod(shape[2:]) * math.prod(kinds[kind].shape)
            for kind, shape in members.items()
        )
        if size > allowed:
            raise BundleError(
                f"the bundle is an expansion bomb: its tensors take {nbytes} bytes, and "
                f"{model} expand them to {size}, over the limit of {allowed} "
                f"({MAX_EXPANSION} times the file or {EXPANSION_FLOOR}, and max_bytes="
                f"{max_bytes}). Do not use this bundle"
            )


def template_config(config: BundleConfig) -> TemplateConfig:
    """Return the template set that a bundle's options describe, or raise BundleError."""
    kinds = config.options.get("kinds")
    if isinstance(kinds, Mapping) and len(kinds) > MAX_KINDS:
        raise BundleError(f"the bundle has {len(kinds)} kinds: allowed are {MAX_KINDS}")
    template = TemplateConfig.from_dict(config.options)
    entries = config.options["kinds"].items()
    odd = [kind for kind, entry in entries if set(entry) != {"number", "shape", "parts"}]
    if odd or not entries:
        raise BundleError(
            f"options of the bundle have {len(entries)} kinds, of which [{some(odd)}] have unknown "
            "entries: use one kind or more, each of number, shape and parts"
        )
    if config.method != template.method:
        raise BundleError(
            f"method is {config.method!r} in the bundle's config and {template.method!r} in its "
            "options: they must agree"
        )
    width = config.sizes.get("d", template.width)
    if width < template.width:
        raise BundleError(
            f"width of the templates is {template.width}, and the auxiliary model's is {width}: "
            "templates must not be wider than the model they were trained in"
        )
    return template
