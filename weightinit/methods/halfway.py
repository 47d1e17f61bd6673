"""One axis grows and another shrinks: a network between the two, first shrunk to, then grown from.

Its every axis has the smaller of the two lengths. It is never built: methods read anatomies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.anatomy.layout import Layout, View
from weightinit.inherit.depth import stages
from weightinit.inherit.growth import sizes_of
from weightinit.inherit.method import Method
from weightinit.inherit.running import Runnable
from weightinit.inherit.transfer import CHANNELS
from weightinit.methods.lemon import LEMON
from weightinit.plan import Inheritance, Part

__all__ = ["Halfway", "ShrinkThenGrow", "smaller"]


@dataclass(frozen=True)
class ShrinkThenGrow:
    """Shrink every axis that is longer in the ancestor, then grow the others without loss.

    Args:
        shrink: a method that shrinks.
        grow: without changing what the shrunk network computes.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d, num_heads=d // 32)
        ...     for n, d in ((4, 96), (2, 192)))
        >>> method = ShrinkThenGrow(wi.WeightSelection())
        >>> print(wi.plan_projection(old, new, method=method).report().notes[0])
        shrinks depth 4 -> 2 by WeightSelection; what that computes grows: LEMON is lossless here
    """

    shrink: Method
    grow: LEMON = field(default_factory=LEMON)

    def plan(
        self,
        source: Runnable,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> Inheritance:
        """Return a recipe for every parameter of a target of any size."""
        between = smaller(source.anatomy, target)
        shrunk = self.shrink.plan(source, between, seed=seed, calibration=calibration)
        grown = self.grow.plan(Halfway(between, shrunk.parts), target, seed=seed)
        name = type(self.shrink).__name__
        parts = {
            piece: replace(part, text=f"{part.text} of what {name} shrank")
            if part.action == "written"
            else part
            for piece, part in grown.parts.items()
        }
        changes = self._changes(source.anatomy, between)
        note = f"shrinks {changes} by {name}; what that computes grows: {'; '.join(grown.notes)}"
        return Inheritance(parts, [*shrunk.notes, note])

    def _changes(self, old: Anatomy, between: Anatomy) -> str:
        sizes = {
            label: (size, between.sizes[label])
            for label, size in old.sizes.items()
            if label in between.sizes and label[0] in CHANNELS
        } | {"depth": (old.depth, between.depth)}
        return ", ".join(f"{x} {a} -> {b}" for x, (a, b) in sizes.items() if a != b)


class Halfway:
    """What weights are inherited from after a method has shrunk them.

    Args:
        between: anatomy that the parts are of.
        parts: one for each of its pieces; fresh ones are left to who inherits.
    """

    def __init__(self, between: Anatomy, parts: Mapping[Piece, Part]) -> None:
        self._parts = parts
        fresh = {piece.spec.name for piece, part in parts.items() if part.action == "fresh"}
        self.anatomy = replace(
            between, specs=tuple(spec for spec in between.specs if spec.name not in fresh)
        )

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part, in fp64."""
        value = torch.empty(piece.size, dtype=torch.float64)
        fill = self._parts[piece].fill
        assert fill is not None
        fill(value)
        return value


def smaller(old: Anatomy, new: Anatomy) -> Anatomy:
    """Return the target's anatomy with every channel axis, and every stack, of the smaller length.

    Each canonical part is a parameter of its own there.

    Args:
        old: anatomy of the ancestor.
        new: of the target.
    """
    before, after = sizes_of(old), sizes_of(new)
    least = {
        label: min(size, before[label]) if label[0] in CHANNELS and label in before else size
        for label, size in after.items()
    }
    depth = dict(zip(dict.fromkeys(_stacks(new)), stages(old), strict=False))
    specs = [
        _spec(piece, least, after)
        for spec in new.specs
        if spec.block is None or spec.block < depth.get(spec.stack, spec.block + 1)
        for piece in _pieces(new, spec)
    ]
    number = sum(min(depth[stack], _stacks(new).count(stack)) for stack in depth)
    return replace(new, specs=tuple(specs), sizes={x: least[x] for x in new.sizes}, depth=number)


def _stacks(seen: Anatomy) -> list[str]:
    """Return the stack of every block of the main stack."""
    return [next(iter(block.values())).spec.stack for block in seen.blocks]


def _pieces(seen: Anatomy, spec: ParamSpec) -> list[Piece]:
    return [
        Piece(role, view.shape, spec, view.axes)
        for role, view in zip(spec.parts, spec.layout.parts, strict=True)
    ]


def _spec(piece: Piece, least: Mapping[str, int], sizes: Mapping[str, int]) -> ParamSpec:
    """Return a canonical part as a parameter of its own, of other sizes."""
    shape = tuple(
        size * math.prod(least[x] for x in labels if x in least)
        // math.prod(sizes[x] for x in labels if x in least)
        for size, labels in zip(piece.size, piece.axes, strict=True)
    )  # fmt: skip
    spec, order = piece.spec, tuple(range(len(shape)))
    stored = View(0, 0, shape, order, shape, piece.axes, plain=True, turned=False)
    return replace(
        spec,
        name=f"{spec.name}:{piece.role}",
        key=f"{spec.key}:{piece.role}",
        role=piece.role,
        pattern=" ".join(f"({' '.join(labels)})" for labels in piece.axes),
        shape=shape,
        parts=(piece.role,),
        layout=Layout(shape, -1, (stored,)),
    )
