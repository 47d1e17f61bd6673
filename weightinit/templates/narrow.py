"""The narrower networks inside a set of templates: of every template and tensor the first channels.

WeiT (Feng et al., 2026, https://arxiv.org/abs/2604.14769) trains templates under prefix masks over
depth and width. Cutting is what trains exactly the function that a narrower target computes (masked
channels would still count in the means of its norms); the rule is our reading of the published
descriptions, for the paper's code and full text were not available.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from torch import Tensor

from weightinit.anatomy import Anatomy, Labels, Piece, label_of
from weightinit.errors import ProjectionError
from weightinit.init.operators import corner
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import head_dims

__all__ = ["Narrowing", "exact", "narrowed"]


@dataclass(frozen=True)
class Narrowing:
    """The first part of every template: what a network of a fraction of the width is made of.

    Matrices keep the first channels along each axis. Templates that span several tiles of the
    matrices beside them, as those of vectors do, keep the first channels of every tile.

    Args:
        config: the template set.
        pieces: a parameter of each kind, for its axes.
        fraction: part of the width that is kept.
        inside: labels inside the heads, which stay whole.
    """

    config: TemplateConfig
    pieces: Mapping[str, Piece]
    fraction: Fraction
    inside: frozenset[str]

    def scales(self, labels: Labels) -> bool:
        """Return whether an axis is as much shorter as the network is narrower."""
        return labels.channel and not self.inside.issuperset(labels)

    @cached_property
    def cuts(self) -> Mapping[str, tuple[tuple[int, int, int], ...]]:
        """By kind, for each axis of a template: its tiles, and their length before and after."""
        tiles: dict[tuple[str, Labels], int] = {}
        for kind, piece in self.pieces.items():
            spec = self.config.kinds[kind]
            for labels, length in zip(piece.axes, spec.unit, strict=False):
                key = spec.stack, labels
                tiles[key] = min(length, tiles.get(key, length))
        return {kind: tuple(self._cuts(kind, piece, tiles)) for kind, piece in self.pieces.items()}

    def _cuts(
        self, kind: str, piece: Piece, tiles: Mapping[tuple[str, Labels], int]
    ) -> list[tuple[int, int, int]]:
        spec, cuts = self.config.kinds[kind], []
        for dim, (labels, length) in enumerate(zip(piece.axes, spec.unit, strict=False)):
            tile = tiles[spec.stack, labels]
            kept = tile * self.fraction if self.scales(labels) else Fraction(tile)
            if length % tile or kept.denominator != 1:
                raise ProjectionError(
                    f"templates of {kind}, {list(spec.shape)}, cannot be cut to "
                    f"{float(self.fraction):g} of their width: use a width that keeps whole "
                    "channels and heads of every tile"
                )
            cuts.append((length // tile * (1 if dim else spec.parts), tile, int(kept)))
        return cuts

    @cached_property
    def narrow(self) -> TemplateConfig:
        """The template set of what is kept."""
        kinds = {
            kind: replace(spec, shape=tuple(count * kept for count, _, kept in self.cuts[kind]))
            for kind, spec in self.config.kinds.items()
            if kind in self.cuts
        }
        return replace(self.config, width=int(self.config.width * self.fraction), kinds=kinds)

    def template(self, kind: str, templates: Tensor) -> Tensor:
        """Return what is kept of the templates of a kind, ``[N, *shape]``; differentiable."""
        for dim, (count, tile, kept) in enumerate(self.cuts[kind], start=1):
            if kept != tile:
                tiles = templates.unflatten(dim, (count, tile)).narrow(dim + 1, 0, kept)
                templates = tiles.flatten(dim, dim + 1)
        return templates


def exact(bundle: TemplateBundle, target: Anatomy) -> Fraction | None:
    """Return the part of a bundle's width that tiles a target without rest; None if none does.

    With the smallest whole number of copies whose width is no more than the templates', no less
    than the narrowest that was trained, and of whole channels and heads.
    """
    trained, sizes = bundle.config.traits.get("trained_widths"), bundle.config.sizes
    streams = [x for x in sizes if label_of(x).stream and x in target.sizes]
    ratios = {Fraction(target.sizes[x], sizes[x]) for x in streams}
    if not trained or len(ratios) != 1:
        return None
    ratio, least = ratios.pop(), min(Fraction(f).limit_denominator(4096) for f in trained)
    inside = head_dims(target)
    whole = [n for x, n in sizes.items() if label_of(x).kind == "channel" and x not in inside]
    for copies in range(math.ceil(ratio), int(ratio / least) + 1):
        if all((n * ratio / copies).denominator == 1 for n in whole):
            return ratio / copies
    return None


def narrowed(bundle: TemplateBundle, target: Anatomy) -> TemplateBundle:
    """Return a bundle cut to the width of :func:`exact`, or the bundle itself where there is none.

    Tiled over the target, it computes what the network of that width inside the auxiliary model
    does.
    """
    fraction = exact(bundle, target)
    if fraction is None or fraction == 1:
        return bundle
    config, inside = bundle.config, head_dims(target)
    pieces = bundle.template_config.pieces(target)
    blocks = {x for p in pieces.values() for labels in p.axes for x in labels}
    stream = next(x for x in config.sizes if label_of(x).stream and x in target.sizes)
    copies = Fraction(target.sizes[stream], config.sizes[stream]) / fraction

    def factor(label: str) -> Fraction:
        size = config.sizes.get(label, 0)
        channel = label_of(label).kind == "channel" and label not in inside
        # A width outside the blocks may be one of its own.
        inherits = label in blocks or target.sizes.get(label) == copies * fraction * size
        return fraction if channel and inherits else Fraction(1)

    cut = Narrowing(bundle.template_config, pieces, fraction, inside)
    axes: dict[str, tuple[Labels, ...]] = {}
    for piece in target.outside.values():
        for role in (piece.role, *piece.facts.substitutes):
            axes.setdefault(role, piece.axes)
    tensors: dict[str, Tensor] = {}
    for name, value in bundle.tensors.items():
        what, _, rest = name.partition(".")
        if what == "outside" and rest in axes:
            factors = [math.prod(map(factor, labels)) for labels in axes[rest]]
            size = [int(n * f) for n, f in zip(value.shape, factors, strict=False)]
            tensors[name] = corner(value, size)
        elif what == "templates" and rest in pieces:
            tensors[name] = cut.template(rest, value)
        elif any(name.endswith(f".{kind}") for kind in pieces) and what != "outside":
            tensors[name] = value
    sizes = {label: int(size * factor(label)) for label, size in config.sizes.items()}
    traits = {name: value for name, value in config.traits.items() if name != "trained_widths"}
    config = replace(config, sizes=sizes, options=cut.narrow.to_dict(), traits=traits, sha256="")
    return TemplateBundle(config, tensors, bundle.source)
