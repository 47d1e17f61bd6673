"""Each axis by its own rule: evenly chosen where it shrinks, repeated where it grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis, tiled
from weightinit.inherit.depth import mixes
from weightinit.inherit.transfer import Axes, Place, Source, Transfer, transfer_parts
from weightinit.init.operators import cycle, joint_index, select_indices
from weightinit.plan import Inheritance

__all__ = ["EachAxis"]


@dataclass(frozen=True)
class EachAxis:
    """Choose channels and whole heads evenly where there are fewer, and repeat them where more.

    Copies share the weights of what reads them. Blocks are chosen evenly, or repeated in a row,
    stage by stage: it serves models of several widths, such as ConvNeXts, which LEMON has no rule
    for. Not lossless but for whole multiples of the widths.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("convnext_atto", depths=(1, 1, n, 1), dims=(8, 16, 32, d))
        ...     for n, d in ((3, 64), (2, 96)))
        >>> wi.project_from(old, new, method=EachAxis()) is new
        True
    """

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target of any size, its head dim the same."""
        before, after = (seen.sizes.get("k") for seen in (source.anatomy, target))
        if before != after:
            raise ProjectionError(
                f"the head dim {before} -> {after} changes together with other axes: keep the "
                "ancestor's head dim (embed_dim / num_heads) in the target"
            )
        old = source.anatomy
        depth = mixes("uniform" if target.depth < old.depth else "interlace", old, target)
        transfer = Transfer(self.axes(old, target), depth, "chosen or repeated, axis by axis")
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))

    def axes(self, old: Anatomy, new: Anatomy) -> Axes:
        """Return what becomes of every axis.

        Args:
            old: anatomy of the ancestor.
            new: anatomy of the target.
        """

        def find(labels: Labels, place: Place) -> Axis | None:
            if not labels.channel or any(x not in old.sizes or x not in new.sizes for x in labels):
                return None
            before, after = ([seen.sizes[label] for label in labels] for seen in (old, new))
            if before == after:
                return None
            if len(labels) == 1 and after[0] > before[0]:
                return tiled(after[0])
            chosen = torch.zeros(1, dtype=torch.int64)
            for size, more in zip(before, after, strict=True):
                chosen = joint_index(chosen, _index(size, more), size)
            if len(labels) > 1 and after[0] > before[0] and after[1:] == before[1:]:
                return tiled(len(chosen))
            return Axis(chosen, chosen)

        return find


def _index(before: int, after: int) -> Tensor:
    return select_indices(before, after) if after < before else cycle(before, after)
