"""The narrower networks inside a set of templates: of every template and tensor the first channels.

WeiT (Feng et al., 2026, https://arxiv.org/abs/2604.14769) trains templates under prefix masks over
depth and width. Cutting is what trains exactly the function that a narrower target computes (masked
channels would still count in the means of its norms); the rule is our reading of the published
descriptions, for the paper's code and full text were not available.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from torch import Tensor
from torch.nn import functional

from weightinit.anatomy import Anatomy, Labels, label_of
from weightinit.errors import ProjectionError
from weightinit.init.operators import corner
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import head_dims
from weightinit.templates.sizes import fraction_of

__all__ = ["Narrowing", "exact", "narrowed"]


@dataclass(frozen=True)
class Narrowing:
    """The first part of every template: what a network of a fraction of the width is made of.

    Matrices keep the first channels along each axis. Templates that span several tiles of the
    matrices beside them, as those of vectors do, keep the first channels of every tile.

    Args:
        config: the template set.
        model: anatomy of a model that has its kinds, for their axes.
        fraction: part of the width that is kept; heads stay whole.
    """

    config: TemplateConfig
    model: Anatomy
    fraction: Fraction

    @cached_property
    def inside(self) -> frozenset[str]:
        """The labels that keep their size."""
        return head_dims(self.model)

    def factor(self, labels: Iterable[str]) -> Fraction:
        """Return by how much an axis is shorter."""
        scaled = any(label_of(x).kind == "channel" and x not in self.inside for x in labels)
        return self.fraction if scaled else Fraction(1)

    @cached_property
    def cuts(self) -> Mapping[str, list[tuple[int, int, int]]]:
        """By kind, for each axis of a template: its tiles, and their length before and after."""
        pieces, tiles = self.config.pieces(self.model), {}
        for kind, piece in pieces.items():
            spec = self.config.kinds[kind]
            for labels, length in zip(piece.axes, spec.unit, strict=False):
                key = spec.stack, labels
                tiles[key] = min(length, tiles.get(key, length))
        found: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in pieces}
        for kind, piece in pieces.items():
            spec = self.config.kinds[kind]
            for dim, (labels, length) in enumerate(zip(piece.axes, spec.unit, strict=False)):
                tile = tiles[spec.stack, labels]
                kept = tile * self.factor(labels)
                if length % tile or kept.denominator != 1:
                    raise ProjectionError(
                        f"templates of {kind}, {list(spec.shape)}, cannot be cut to "
                        f"{float(self.fraction):g} of their width: use a width that keeps whole "
                        "channels and heads of every tile"
                    )
                count = length // tile * (1 if dim else spec.parts)
                found[kind].append((count, tile, int(kept)))
        return found

    @cached_property
    def narrow(self) -> TemplateConfig:
        """The template set of what is kept."""
        kinds = {
            kind: replace(
                self.config.kinds[kind], shape=tuple(count * kept for count, _, kept in cuts)
            )
            for kind, cuts in self.cuts.items()
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
    than the narrowest that was trained, and of whole channels and heads. A target that is wider
    than the templates is made of as few copies as can be, of a width that was trained. If there is
    none, the whole width with part of it once more is the better start.
    """
    trained, sizes = bundle.config.traits.get("trained_widths"), bundle.config.sizes
    streams = [x for x in sizes if label_of(x).stream and x in target.sizes]
    ratios = {Fraction(target.sizes[x], sizes[x]) for x in streams}
    if not trained or len(ratios) != 1:
        return None
    ratio, widths = ratios.pop(), {fraction_of(width) for width in trained}
    if ratio > 1:
        fraction = ratio / math.ceil(ratio)
        return fraction if fraction in widths else None
    inside = head_dims(target)
    whole = [n for x, n in sizes.items() if label_of(x).kind == "channel" and x not in inside]
    for copies in range(1, int(ratio / min(widths)) + 1):
        if all((n * ratio / copies).denominator == 1 for n in whole):
            return ratio / copies
    return None


def narrowed(bundle: TemplateBundle, target: Anatomy) -> TemplateBundle:
    """Return a bundle cut to the width of :func:`exact`, or the bundle itself where there is none.

    Tiled over the target, it computes what the network of that width inside the auxiliary model
    does. Kernels become the target's size.
    """
    bundle, fraction = _resampled(bundle, target), exact(bundle, target)
    if fraction is None or fraction == 1:
        return bundle
    config, cut = bundle.config, Narrowing(bundle.template_config, target, fraction)
    axes: dict[str, tuple[Labels, ...]] = {}
    for piece in target.outside.values():
        for role in (piece.role, *piece.facts.substitutes):
            axes.setdefault(role, piece.axes)
    tensors: dict[str, Tensor] = {}
    for name, value in bundle.tensors.items():
        what, _, rest = name.partition(".")
        if what == "outside" and rest in axes:
            pairs = zip(value.shape, axes[rest], strict=False)
            tensors[name] = corner(value, [int(n * cut.factor(labels)) for n, labels in pairs])
        elif what == "templates" and rest in cut.cuts:
            tensors[name] = cut.template(rest, value)
        elif what != "outside" and any(name.endswith(f".{kind}") for kind in cut.cuts):
            tensors[name] = value
    config = replace(
        config,
        sizes={label: int(size * cut.factor([label])) for label, size in config.sizes.items()},
        options=cut.narrow.to_dict(),
        traits={name: value for name, value in config.traits.items() if name != "trained_widths"},
        sha256="",
    )
    return TemplateBundle(config, tensors, bundle.source)


def _resampled(bundle: TemplateBundle, target: Anatomy) -> TemplateBundle:
    """Return a bundle whose kernels have as many taps as a target's, of the same sum."""
    kinds, tensors = dict(bundle.template_config.kinds), dict(bundle.tensors)
    for kind, piece in bundle.template_config.pieces(target).items():
        spec, size = kinds[kind], piece.size[1:]
        taps = spec.shape[-1]
        if len(piece.size) < 3 or taps == math.prod(size):
            continue
        side = math.isqrt(taps)
        if side * side != taps:
            raise ProjectionError(
                f"templates of {kind} have {taps} taps, which are no square kernel, and the target "
                f"needs {list(size)}: give it a kernel of as many taps"
            )
        kernels = tensors[f"templates.{kind}"].float().unflatten(-1, (side, side))
        kernels = functional.interpolate(kernels, size, mode="bilinear") * taps / math.prod(size)
        tensors[f"templates.{kind}"] = kernels.flatten(2).to(tensors[f"templates.{kind}"])
        kinds[kind] = replace(spec, shape=(spec.shape[0], math.prod(size)))
    if kinds == bundle.template_config.kinds:
        return bundle
    options = replace(bundle.template_config, kinds=kinds).to_dict()
    return TemplateBundle(replace(bundle.config, options=options), tensors, bundle.source)
