"""Each axis by its own rule: evenly chosen where it shrinks, repeated where it grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weightinit.anatomy import Anatomy, Difference, Labels
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis, tiled
from weightinit.inherit.depth import blocks_for, mixes
from weightinit.inherit.growth import Growth
from weightinit.inherit.method import Source
from weightinit.inherit.transfer import Axes, Place, Transfer, transfer_parts
from weightinit.init.operators import Mix, cycle, joint_index, select_indices
from weightinit.recipes import Inheritance

__all__ = ["EachAxis"]


@dataclass(frozen=True)
class EachAxis:
    """Choose channels and whole heads evenly where the target has fewer, else repeat them.

    Copies share the weights of what reads them. Blocks are chosen evenly, or repeated in a row,
    stage by stage. The method serves models of several widths, such as ConvNeXts, of which some
    grow and others shrink, or which grow by no whole multiples. It is lossless only for whole
    multiples of the widths at the same depth; the report says so.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("convnext_atto", depths=(1, 1, n, 1), dims=(8, 16, 32, d))
        ...     for n, d in ((3, 64), (2, 96)))
        >>> wi.project_from(old, new, method=wi.EachAxis()) is new
        True
    """

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target of any size, its head dim the same."""
        old = source.anatomy
        before, after = old.sizes.get("k"), target.sizes.get("k")
        if before != after:
            raise ProjectionError(
                f"the head dim {before} -> {after} changes together with other axes: keep the "
                "ancestor's head dim (embed_dim / num_heads) in the target"
            )
        depth = mixes(_evenly, old, target)
        transfer = Transfer(self.axes(old, target), depth, "chosen or repeated, axis by axis")
        parts = transfer_parts(source, target, transfer, seed=seed)
        return Inheritance(parts, self._notes(Difference(old, target)))

    def _notes(self, difference: Difference) -> list[str]:
        """Return whether the function is kept."""
        if difference.shrunk:
            left = Difference.text(difference.shrunk)
            return [f"EachAxis is not lossless here: it leaves out channels or blocks ({left})"]
        growth = Growth("EachAxis", difference.old, difference.new, depth=_evenly, lossless=False)

        def uneven(labels: Labels) -> bool:
            return any(after % before for before, after in difference.along(labels) or ())

        copied = ["blocks are repeated, which changes the function"] if growth.reordered else []
        return growth.claim("EachAxis", uneven, copied)[1]

    def axes(self, old: Anatomy, new: Anatomy) -> Axes:
        """Return what becomes of every axis between the anatomies of an ancestor and a target."""
        difference = Difference(old, new)

        def find(labels: Labels, place: Place) -> Axis | None:
            sizes = difference.along(labels) if labels.channel else None
            if sizes is None:
                return None
            (before, after), *inner = sizes
            if after > before and all(a == b for a, b in inner):
                return tiled(after * math.prod(size for size, _ in inner))
            index = torch.zeros(1, dtype=torch.int64)
            for before, after in sizes:
                chosen = select_indices(before, after) if after < before else cycle(before, after)
                index = joint_index(index, chosen, before)
            return Axis(index, index)

        return find


def _evenly(old: int, new: int) -> list[Mix]:
    """Return blocks of a stage, chosen evenly or each several times in a row."""
    return blocks_for("uniform" if new < old else "interlace", old, new)
