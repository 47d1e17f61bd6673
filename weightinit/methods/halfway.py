"""A target that is larger on one axis and smaller on another, by way of a network between the two.

Every axis of that network has the smaller of the two lengths. It is never built; only its anatomy
is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Piece
from weightinit.inherit.calibration import Calibration
from weightinit.inherit.method import Method, Runnable
from weightinit.methods.lemon import LEMON
from weightinit.recipes import Inheritance, Part

__all__ = ["ShrinkThenGrow", "smaller"]


@dataclass(frozen=True)
class ShrinkThenGrow:
    """Shrink every axis that is longer in the ancestor, then grow the others without loss.

    Args:
        shrink: a method that shrinks.
        grow: growth of the shrunk network, which keeps what it computes.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d, num_heads=d // 32)
        ...     for n, d in ((4, 96), (2, 192)))
        >>> method = ShrinkThenGrow(wi.WeightSelection())
        >>> print(wi.plan_projection(old, new, method=method).report().notes[-1])
        shrinks depth 4 -> 2 by WeightSelection; what that computes grows: LEMON is lossless here
    """

    shrink: Method
    grow: LEMON = field(default_factory=LEMON)

    def plan(
        self, source: Runnable, target: Anatomy, *, seed: int = 0, calibration: Calibration = None
    ) -> Inheritance:
        """Return a part for every piece of a target of any size."""
        between = smaller(source.anatomy, target)
        shrunk = self.shrink.plan(source, between, seed=seed, calibration=calibration)
        grown = self.grow.plan(ShrunkSource(between, shrunk.parts), target, seed=seed)
        name = type(self.shrink).__name__
        same = between.stages == source.anatomy.stages
        parts = {
            piece: replace(
                part,
                text=f"{part.text} of what {name} shrank",
                how=f"{part.how} of what {name} shrank" if part.how else "",
                blocks=part.blocks if same else (),
            )
            if part.action == "written"
            else part
            for piece, part in grown.parts.items()
        }
        changes = Difference.text(Difference(source.anatomy, between).shrunk)
        note = f"shrinks {changes} by {name}; what that computes grows: {'; '.join(grown.notes)}"
        return Inheritance(parts, [*shrunk.notes, note])


class ShrunkSource:
    """A network that a method has shrunk, as a source of weights; it lacks what is fresh in it."""

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
    """Return the target's anatomy, no wider than the ancestor's and no stack of it deeper."""
    widths = {label: min(sizes) for label, sizes in Difference(old, new).widths.items()}
    stages = [min(depths) for depths in zip(old.stages, new.stages, strict=True)]
    return new.reshaped(widths, stages)
