"""Weight Selection: a smaller network from a subset of a larger one's channels and blocks.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024, https://arxiv.org/abs/2311.18823.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Labels, ParamSpec, Piece
from weightinit.inherit.axis import Axis
from weightinit.inherit.depth import Depth, mixes
from weightinit.inherit.fresh import fresh_part, sub_generator
from weightinit.inherit.method import Source, check_options
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import SELECTIONS, Elements, Mix, along, joint_index, select_indices
from weightinit.recipes import Inheritance, Part

__all__ = ["WeightSelection"]


@dataclass(frozen=True)
class WeightSelection:
    """Options of Weight Selection.

    Args:
        elements: channels to keep: ``"uniform"`` (the paper's best), ``"consecutive"``, or
            ``"random"`` (one draw for each axis, the same wherever it occurs).
        depth: blocks to keep: ``"first"`` (the paper's), ``"last"``, ``"mid"``, ``"uniform"``, or
            ``"first_last"``, the first ones but for the last, which is the ancestor's last; or
            their numbers, ``[0, 2, 4]``.
        heads: ``"aligned"`` keeps whole heads, q, k and v apart. ``"flat"`` is the older spelling
            of ``faithful=True``.
        rescale: whether to multiply what reads a shortened axis by the root of the ratio of its
            lengths, so that sums keep their size. Not in the paper.
        faithful: whether to follow the published code to the letter: it selects along stored axes,
            so that a head of the target is made of parts of several.

    Raises:
        ProjectionError: if a value is not one of these.

    Examples:
        >>> WeightSelection(faithful=True).elements
        'uniform'
    """

    elements: Elements = "uniform"
    depth: Depth = "first"
    heads: Literal["aligned", "flat"] = "aligned"
    rescale: bool = False
    faithful: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, elements=SELECTIONS, heads=("aligned", "flat"))

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no larger on any axis."""
        difference = Difference(source.anatomy, target)
        difference.forbid_growth("weight selection")
        depth = mixes(self.depth, source.anatomy, target)
        if self.faithful or self.heads == "flat":
            return Inheritance(self._flat(source, target, depth, seed))

        def axes(labels: Labels, place: Place) -> Axis | None:
            sizes = difference.along(labels)
            if sizes is None:
                return None
            index, factor = torch.zeros(1, dtype=torch.int64), 1.0
            for label, (before, after) in zip(labels, sizes, strict=True):
                generator = sub_generator(seed, f"select {label}")
                chosen = select_indices(before, after, self.elements, generator)
                index = joint_index(index, chosen, before)
                factor *= (before / after) ** 0.5
            if not self.rescale:
                return Axis(index, index)
            return Axis(index, lambda tensor, dim: along(tensor, dim, index) * factor)

        transfer = Transfer(axes, depth, f"{self.elements} selection, whole heads")
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))

    def _flat(
        self, source: Source, target: Anatomy, depth: list[Mix], seed: int
    ) -> dict[Piece, Part]:
        """Select along stored axes, whatever they hold: the published code."""
        old = source.anatomy
        places = [(target.outside, old.outside)] + [
            (block, old.blocks[mix[0][0]]) for block, mix in zip(target.blocks, depth, strict=True)
        ]
        pairs = {
            piece.spec.name: own[role].spec
            for pieces, own in places
            for role, piece in pieces.items()
            if role in own
        }
        how = f"{self.elements} selection of stored axes, as published"

        @lru_cache(maxsize=1)  # the pieces of a fused parameter follow one another
        def selected(spec: ParamSpec) -> Mapping[str, Tensor]:
            own = pairs[spec.name]
            value = old.merge(own, {piece.role: source.part(piece) for piece in old.pieces(own)})
            for dim, (before, after) in enumerate(zip(own.shape, spec.shape, strict=True)):
                if before != after:
                    generator = sub_generator(seed, f"select {before} {after}")
                    index = select_indices(before, after, self.elements, generator)
                    value = value.index_select(dim, index)
            return target.split(spec, value)

        def part(piece: Piece) -> Part:
            own, spec = pairs.get(piece.spec.name), piece.spec
            if own is None or not _covers(own.shape, spec.shape) or piece.facts.kind == "head":
                return fresh_part(piece, seed)
            text = f"{own.name} ({how})"
            return Part("written", text, lambda out: out.copy_(selected(spec)[piece.role]))

        return {piece: part(piece) for spec in target.specs for piece in target.pieces(spec)}


def _covers(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return len(old) == len(new) and all(a >= b for a, b in zip(old, new, strict=True))
