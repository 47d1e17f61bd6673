"""Weight Selection: a smaller network from a subset of a larger one's channels and blocks.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024, https://arxiv.org/abs/2311.18823.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Labels, ParamSpec, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.depth import Depth, mixes
from weightinit.inherit.fresh import fresh_part, sub_generator
from weightinit.inherit.transfer import Axes, Place, Source, Transfer, transfer_parts
from weightinit.init.operators import SELECTIONS, along, joint_index, select_indices
from weightinit.plan import Inheritance, Part

__all__ = ["WeightSelection"]

Elements = Literal["uniform", "consecutive", "random"]


@dataclass(frozen=True)
class WeightSelection:
    """Options of Weight Selection.

    Args:
        elements: which channels: ``"uniform"`` (the paper's best), ``"consecutive"``, or
            ``"random"`` (one draw for each axis, the same wherever it occurs).
        depth: which blocks: ``"first"`` (the paper's), ``"last"``, ``"mid"``, ``"uniform"``, or
            ``"first_last"``: the last in place of the last that is kept.
        heads: ``"aligned"`` keeps whole heads, q, k and v apart; ``"flat"`` is the published code:
            stored axes as they are, so that a head of the target is made of parts of several.
        rescale: multiplies what reads a shortened axis by the root of the ratio of its lengths, so
            that sums keep their size. Not in the paper.

    Raises:
        ProjectionError: if a value is not one of these.

    Examples:
        >>> WeightSelection(heads="flat").elements
        'uniform'
    """

    elements: Elements = "uniform"
    depth: Depth = "first"
    heads: Literal["aligned", "flat"] = "aligned"
    rescale: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (("elements", SELECTIONS), ("heads", ("aligned", "flat"))):
            if getattr(self, name) not in allowed:
                raise ProjectionError(f"{name}={getattr(self, name)!r}: use one of {allowed}")

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no larger on any axis."""
        Difference(source.anatomy, target).forbid_growth("weight selection")
        if self.heads == "flat":
            return Inheritance(_flat(self, source, target, seed))
        how = f"{self.elements} selection, whole heads"
        transfer = Transfer(
            self._axes(source.anatomy, target, seed),
            mixes(self.depth, source.anatomy, target),
            how,
        )
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))

    def _axes(self, old: Anatomy, new: Anatomy, seed: int) -> Axes:
        known: dict[Labels, Axis | None] = {}

        def find(labels: Labels, place: Place) -> Axis | None:
            if labels not in known:
                known[labels] = self._axis(labels, old, new, seed)
            return known[labels]

        return find

    def _axis(self, labels: Labels, old: Anatomy, new: Anatomy, seed: int) -> Axis | None:
        if any(part not in old.sizes or part not in new.sizes for part in labels):
            return None
        if all(old.sizes[part] == new.sizes[part] for part in labels):
            return None
        index = torch.zeros(1, dtype=torch.int64)
        scale = 1.0
        for part in labels:
            size = old.sizes[part], new.sizes[part]
            chosen = select_indices(*size, self.elements, sub_generator(seed, f"select {part}"))
            index = joint_index(index, chosen, size[0])
            scale *= (size[0] / size[1]) ** 0.5
        if not self.rescale:
            return Axis(index, index)
        return Axis(index, lambda tensor, dim: along(tensor, dim, index) * scale)


def _flat(method: WeightSelection, source: Source, target: Anatomy, seed: int) -> dict[Piece, Part]:
    """Select along stored axes, whatever they hold: the published code."""
    depth = mixes(method.depth, source.anatomy, target)
    stored = dict(_pairs(source.anatomy, target, depth))
    how = f"{method.elements} selection of stored axes, as published"

    @lru_cache(maxsize=1)  # the pieces of a fused parameter follow one another
    def selected(spec: ParamSpec) -> Mapping[str, Tensor]:
        own = stored[spec.name]
        value = _stored(source, own)
        for dim, (before, after) in enumerate(zip(own.shape, spec.shape, strict=True)):
            if before != after:
                draw = sub_generator(seed, f"select {before} {after}")
                index = select_indices(before, after, method.elements, draw)
                value = value.index_select(dim, index)
        return target.split(spec, value)

    def part(piece: Piece) -> Part:
        own, spec = stored.get(piece.spec.name), piece.spec
        if own is None or not _covers(own.shape, spec.shape) or piece.facts.kind == "head":
            return fresh_part(piece, seed)
        text = f"{own.name} ({how})"
        return Part("written", text, lambda out: out.copy_(selected(spec)[piece.role]))

    return {piece: part(piece) for spec in target.specs for piece in target.pieces(spec)}


def _covers(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return len(old) == len(new) and all(a >= b for a, b in zip(old, new, strict=True))


def _stored(source: Source, spec: ParamSpec) -> Tensor:
    """Return a tensor as it is stored, from its parts."""
    old = source.anatomy
    return old.merge(spec, {piece.role: source.part(piece) for piece in old.pieces(spec)})


def _pairs(old: Anatomy, new: Anatomy, depth: list[tuple]) -> Iterator[tuple[str, ParamSpec]]:
    """Yield the target's parameters in the ancestor, by role and block."""
    for piece in new.outside.values():
        if piece.role in old.outside:
            yield piece.spec.name, old.outside[piece.role].spec
    for index, block in enumerate(new.blocks):
        theirs = old.blocks[depth[index][0][0]]
        for piece in block.values():
            if piece.role in theirs:
                yield piece.spec.name, theirs[piece.role].spec
