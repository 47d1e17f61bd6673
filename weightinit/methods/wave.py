"""WAVE: every parameter of a target from one bundle of weight templates.

Feng et al., "WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models", CVPR
2025, https://arxiv.org/abs/2406.17503. The special cases of its appendix A share this file: their
bundles hold whole layers as templates and get their scalers from a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.bundle import TemplateBundle
from weightinit.config import KIND_PARTS, kind_roles
from weightinit.errors import ProjectionError
from weightinit.methods.carry import carry
from weightinit.methods.fresh import fresh_rule, sub_generator
from weightinit.methods.learngene import closed_form
from weightinit.methods.templates import (
    HeadDims,
    compose_into,
    linear_scalers,
    scaler_shape,
    widen_scalers,
)
from weightinit.plan import Recipe

__all__ = ["interpolate_depth", "start_scalers", "template_recipes"]

Scalers = Literal["interpolate", "linear", "fitted"]
#: Relative size of the zero-sum noise that tells the copies of one input apart.
NOISE = 0.1
_KIND_OF = {role: kind for kind, roles in KIND_PARTS.items() for role in roles}


def interpolate_depth(scalers: Tensor, depth: int) -> Tensor:
    """Interpolate scalers linearly over depth; the first and last block keep theirs.

    Args:
        scalers: ``[L, ...]`` of the auxiliary model.
        depth: of the target.

    Returns:
        ``[depth, ...]``.

    Examples:
        >>> interpolate_depth(torch.tensor([0.0, 1.0]), 3)
        tensor([0.0000, 0.5000, 1.0000])
    """
    blocks = scalers.shape[0]
    if depth == blocks:
        return scalers
    place = torch.linspace(0, blocks - 1, depth) if depth > 1 else torch.tensor([(blocks - 1) / 2])
    low = place.floor().long()
    weight = (place - low).view(-1, *(1,) * (scalers.dim() - 1)).to(scalers)
    return torch.lerp(scalers[low], scalers[(low + 1).clamp(max=blocks - 1)], weight)


def start_scalers(
    bundle: TemplateBundle,
    anatomy: Anatomy,
    scalers: str = "interpolate",
    *,
    seed: int = 0,
    noise: float = NOISE,
) -> dict[str, Tensor]:
    """Return the scalers that a bundle gives to a target of any size.

    Args:
        bundle: the templates.
        anatomy: of the target.
        scalers: ``"interpolate"``, ``"linear"`` (Eq. B.1) or ``"fitted"``.
        seed: of the noise.
        noise: see :func:`weightinit.methods.templates.widen_scalers`.

    Returns:
        From kind to ``[depth, N, *scaler_shape]``, for the kinds that the target has.

    Raises:
        ProjectionError: if the bundle has no fitted scalers of this size, or the value is unknown.
    """
    if scalers not in get_args(Scalers):
        raise ProjectionError(f"scalers={scalers!r} is not one of {get_args(Scalers)}")
    config = bundle.template_config
    if scalers == "linear" and config.method != "wave":
        raise ProjectionError(
            f"scalers='linear' is WAVE's Eq. B.1; {config.method} templates are whole layers: use "
            "'interpolate', which takes the method's own closed form"
        )
    heads = head_dims(bundle, anatomy)
    fitted = fitted_index(bundle, anatomy)
    if scalers == "fitted" and fitted is None:
        raise ProjectionError(
            f"the bundle has no scalers fitted for {size_key(anatomy)}: fit them with "
            "weightinit.fit_scalers, or use scalers='interpolate'"
        )
    found: dict[str, Tensor] = {}
    for kind in config.kinds:
        piece = _first_piece(anatomy, kind)
        if piece is None:
            continue
        generator = sub_generator(seed, f"scalers.{kind}")
        if scalers == "fitted":
            values = bundle.tensors.get(f"fitted.{fitted}.{kind}")
            number = config.kinds[kind].number
            wanted = (anatomy.depth, number, *scaler_shape(config, kind, piece.size, heads))
            found_shape = None if values is None else tuple(values.shape)
            if values is None or found_shape != wanted:
                raise ProjectionError(
                    f"fitted scalers of {kind} have shape {found_shape} and the model needs "
                    f"{wanted}: fit them anew with weightinit.fit_scalers"
                )
            found[kind] = values.double()
        elif scalers == "linear":
            shape = scaler_shape(config, kind, piece.size, heads)
            found[kind] = linear_scalers(config, kind, shape, anatomy.depth, generator=generator)
        else:
            found[kind] = widen_scalers(
                config,
                kind,
                _auxiliary_scalers(bundle, kind, anatomy.depth),
                tuple(
                    math.prod(bundle.config.sizes[label] for label in axis) for axis in piece.axes
                ),
                piece.size,
                heads=heads,
                noise=noise,
                generator=generator,
            )
    return found


def _auxiliary_scalers(bundle: TemplateBundle, kind: str, depth: int) -> Tensor:
    """Return scalers at the auxiliary model's width and the target's depth."""
    config = bundle.template_config
    if config.method == "wave":
        return interpolate_depth(bundle.tensors[f"scalers.{kind}"].double(), depth)
    spec = config.kinds[kind]
    values = closed_form(config.method, spec.number, depth).double()
    return values.view(depth, spec.number, *(1,) * len(spec.shape))


def _first_piece(anatomy: Anatomy, kind: str) -> Piece | None:
    """Return the first parameter of a kind in a target's blocks: all blocks are alike in size."""
    roles = kind_roles(kind)
    pieces = (block[role] for block in anatomy.blocks for role in roles if role in block)
    return next(pieces, None)


def head_dims(bundle: TemplateBundle, anatomy: Anatomy) -> HeadDims:
    """Return the head dims of a bundle's auxiliary model and of a target."""
    return HeadDims(bundle.config.sizes["k"], anatomy.sizes["k"])


def size_key(anatomy: Anatomy) -> dict[str, int]:
    """Return what tells two sizes apart for fitted scalers: depth, width, heads, MLP."""
    return {"depth": anatomy.depth, **{label: anatomy.sizes[label] for label in "dhkm"}}


def fitted_index(bundle: TemplateBundle, anatomy: Anatomy) -> int | None:
    """Return which of the bundle's fitted scalers belong to a target's size, if any."""
    key = size_key(anatomy)
    for index, entry in enumerate(bundle.config.fitted):
        if {"depth": entry["depth"], **entry["sizes"]} == key:
            return index
    return None


def template_recipes(
    bundle: TemplateBundle,
    anatomy: Anatomy,
    *,
    scalers: str = "interpolate",
    seed: int = 0,
) -> list[Recipe]:
    """Return a recipe for every parameter of a target: composed, carried, or fresh by rule.

    Args:
        bundle: the templates.
        anatomy: of the target.
        scalers: see :func:`start_scalers`; with ``"interpolate"``, scalers fitted for exactly this
            size are taken where the bundle has them.
        seed: of every draw.

    Raises:
        ProjectionError: if the target is of another family than the bundle's auxiliary model.
    """
    family = bundle.config.traits.get("family", "vit")
    if anatomy.family != family:
        raise ProjectionError(
            f"a {anatomy.family} cannot be composed from templates of a {family}: use templates "
            f"trained on a {anatomy.family}, or weightinit.constrain to train them"
        )
    if scalers == "interpolate" and fitted_index(bundle, anatomy) is not None:
        scalers = "fitted"
    return _Composer(bundle, anatomy, scalers, seed).recipes()


class _Composer:
    """Recipes for one target: holds the scalers of its size and the templates."""

    def __init__(self, bundle: TemplateBundle, anatomy: Anatomy, scalers: str, seed: int) -> None:
        self.bundle, self.anatomy, self.seed = bundle, anatomy, seed
        self.config = bundle.template_config
        self.heads = head_dims(bundle, anatomy)
        self.how = scalers
        self.scalers = start_scalers(bundle, anatomy, scalers, seed=seed)
        self.templates: Callable[[str, torch.dtype], Tensor] = cache(
            lambda kind, dtype: bundle.tensors[f"templates.{kind}"].to(dtype)
        )
        self.outside = {
            name.removeprefix("outside."): value
            for name, value in bundle.tensors.items()
            if name.startswith("outside.")
        }

    def recipes(self) -> list[Recipe]:
        blocks = [(index, block) for index, block in enumerate(self.anatomy.blocks)]
        blocks += [(-1, block) for _, block in self.anatomy.extra_blocks]
        place = {
            piece.spec.name: (index, block) for index, block in blocks for piece in block.values()
        }
        return [
            self._block(spec, *place[spec.name]) if spec.name in place else self._outside(spec)
            for spec in self.anatomy.specs
        ]

    def _block(self, spec: ParamSpec, index: int, block: Mapping[str, Piece]) -> Recipe:
        kinds = dict.fromkeys(_KIND_OF.get(role, role) for role in spec.parts)
        fills: list[Callable[[Mapping[str, Tensor]], None]] = []
        texts: list[str] = []
        for kind in kinds:
            source = self._glu_source(kind, block)
            scaler = self.scalers.get(source)
            if scaler is not None and bool(scaler[index].any()):
                number = self.config.kinds[source].number
                texts.append(f"{number} templates of {source}, {self.how} scalers")
                fills.append(self._compose(kind, source, scaler[index]))
            else:
                text, fill = self._glu_rule(kind, block) or self._fresh(spec, kind)
                texts.append(text)
                fills.append(fill)
        written = any("templates" in text for text in texts)
        return self._recipe(spec, "written" if written else "fresh", texts, fills)

    def _compose(
        self, kind: str, source: str, scaler: Tensor
    ) -> Callable[[Mapping[str, Tensor]], None]:
        rename = dict(zip(kind_roles(kind), kind_roles(source), strict=True))

        def fill(views: Mapping[str, Tensor]) -> None:
            mine = {rename[role]: view for role, view in views.items() if role in rename}
            dtype = next(iter(mine.values())).dtype
            compose_into(
                self.config,
                source,
                self.templates(source, dtype),
                scaler.to(dtype),
                mine,
                heads=self.heads,
            )

        return fill

    def _glu_source(self, kind: str, block: Mapping[str, Piece]) -> str:
        """Return the templates for a kind: a GLU's other half without a bias takes fc1's."""
        if kind == "mlp.up.weight" and "mlp.up.bias" not in block and kind not in self.scalers:
            return "mlp.fc1.weight"
        return kind

    def _glu_rule(
        self, kind: str, block: Mapping[str, Piece]
    ) -> tuple[str, Callable[[Mapping[str, Tensor]], None]] | None:
        """Return the rule for a GLU's other half: a constant 1, so the MLP is the composed one."""
        if kind not in ("mlp.up.weight", "mlp.up.bias") or "mlp.up.bias" not in block:
            return None
        value = float(kind == "mlp.up.bias")

        def fill(views: Mapping[str, Tensor]) -> None:
            views[kind].fill_(value)

        return f"{value:g} (the gate alone is the composed MLP)", fill

    def _outside(self, spec: ParamSpec) -> Recipe:
        piece = self.anatomy.outside[spec.parts[0]]
        carried = carry(piece, self.anatomy, self.outside, self.bundle.config.traits)
        if carried is None:
            text, fill = self._fresh(spec, piece.role)
            return self._recipe(spec, "fresh", [text], [fill])
        text, copy = carried
        return self._recipe(spec, "written", [text], [lambda views: copy(views[piece.role])])

    def _fresh(
        self, spec: ParamSpec, kind: str
    ) -> tuple[str, Callable[[Mapping[str, Tensor]], None]]:
        text, rule = fresh_rule(kind, spec.shape)

        def fill(views: Mapping[str, Tensor]) -> None:
            for role in kind_roles(kind):
                if role in views:
                    rule(views[role], sub_generator(self.seed, f"{spec.key}.{role}"))

        return text, fill

    def _recipe(
        self,
        spec: ParamSpec,
        action: Literal["written", "fresh"],
        texts: list[str],
        fills: list[Callable[[Mapping[str, Tensor]], None]],
    ) -> Recipe:
        def fill(out: Tensor) -> None:
            views = self.anatomy.split(spec, out)
            for each in fills:
                each(views)

        return Recipe(spec, action, "; ".join(dict.fromkeys(texts)), fill)
