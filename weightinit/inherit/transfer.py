"""Inheriting weights from one ancestor: an operator for each axis, and a mix of blocks for each.

W' = rows (sum_i c_i W_i) columns^T: every published rule of this family is a choice of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Mix
from weightinit.inherit.fresh import fresh_rule, sub_generator
from weightinit.inherit.outside import Axis, carry
from weightinit.inherit.source import Outside, Source
from weightinit.inherit.tables import TABLES, resized
from weightinit.init import operators
from weightinit.init.operators import along
from weightinit.plan import Recipe

__all__ = ["Axes", "Place", "Source", "Transfer", "side", "transfer_recipes"]


#: First letters of the labels that methods act on; b is the blocks that one table serves. Classes,
#: tokens and patches are none of them.
CHANNELS = "dhkmeb"


@dataclass(frozen=True)
class Place:
    """Where an operator acts.

    Args:
        role: canonical, of the parameter.
        target: block of the target, -1 outside the blocks.
        source: block of the ancestor that is read there.
    """

    role: str
    target: int = -1
    source: int = -1


#: From an axis, its labels joined by blanks (``"d"``, ``"h k"``, ``"m"``), to what becomes of it at
#: a place; None where it stays as it is.
Axes = Callable[[str, Place], Axis | None]


@dataclass(frozen=True)
class Transfer:
    """A method, as what it does along axes and over depth.

    Args:
        axes: of the blocks and of what is outside them.
        depth: a mix of the ancestor's blocks for each block of the target.
        how: for the report, a few words.
        roles: other mixes for single roles, e.g. weights of their own (LiGO).
        new: writes a parameter of a block that has no mix (an identity block, say) and returns
            True; where it returns False, or is None, the parameter is drawn by rule.
        finish: changes a composed part in place, given its place and generator: noise, scale.
    """

    axes: Axes
    depth: list[Mix]
    how: str
    roles: Mapping[str, list[Mix]] = field(default_factory=dict)
    new: Callable[[Place, Tensor], bool] | None = None
    finish: Callable[[Place, Tensor, torch.Generator], None] | None = None


def side(role: str, dim: int, dims: int) -> str:
    """Return how a parameter stands to one of its axes: it makes it, reads it, or scales it.

    Args:
        role: canonical.
        dim: of the axis, from 0.
        dims: of the canonical part.

    Examples:
        >>> [side("attn.proj.weight", dim, 2) for dim in (0, 1)], side("norm1.weight", 0, 1)
        (['rows', 'columns'], 'gain')
    """
    if dims == 1:
        norm = "norm" in role and role.endswith("weight")
        scale = role.startswith(("ls", "gamma")) or role.endswith(".ls")
        return "gain" if norm or scale else "rows"
    reads = dim == 1 and role.endswith("weight") and not role.startswith("embed")
    return "columns" if reads else "rows"


def transfer_recipes(
    source: Source, target: Anatomy, transfer: Transfer, *, seed: int = 0
) -> list[Recipe]:
    """Return a recipe for every parameter of a target: inherited, or fresh by rule.

    Args:
        source: of the weights.
        target: anatomy of the target.
        transfer: the method.
        seed: of every draw.
    """
    return _Inheritance(source, target, transfer, seed).recipes()


class _Inheritance:
    def __init__(self, source: Source, target: Anatomy, transfer: Transfer, seed: int) -> None:
        self.source, self.target, self.transfer, self.seed = source, target, transfer, seed
        self.outside = Outside(source)
        self.resized = partial(resized, old=source.anatomy.traits, new=target.traits)

    def recipes(self) -> list[Recipe]:
        """Return one recipe a parameter, in the target's order."""
        blocks = {
            piece.spec.name: index
            for index, block in enumerate(self.target.blocks)
            for piece in block.values()
        }
        extras = dict(self._extra_blocks())
        found = []
        for spec in self.target.specs:
            if spec.name in blocks:
                found.append(self._recipe(spec, self._in_block(spec, blocks[spec.name])))
            elif spec.name in extras:
                found.append(self._recipe(spec, self._alike(spec, extras[spec.name])))
            else:
                found.append(self._recipe(spec, self._outside(spec)))
        return found

    def _extra_blocks(self) -> Iterator[tuple[str, Mapping[str, Piece]]]:
        """Yield parameters of blocks off the main stack, and the ancestor's block of that place."""
        own: dict[str, list[Mapping[str, Piece]]] = {}
        for stack, block in self.source.anatomy.extra_blocks:
            own.setdefault(stack, []).append(block)
        seen: dict[str, int] = {}
        for stack, block in self.target.extra_blocks:
            index = seen[stack] = seen.get(stack, -1) + 1
            theirs = own.get(stack, [])
            for piece in block.values():
                yield piece.spec.name, theirs[min(index, len(theirs) - 1)] if theirs else {}

    def _in_block(self, spec: ParamSpec, index: int) -> Iterator[tuple[str, str, Any]]:
        theirs = self.source.anatomy.blocks
        for role in spec.parts:
            mix = self.transfer.roles.get(role, self.transfer.depth)[index]
            mix = tuple((i, c) for i, c in mix if role in theirs[i])
            yield role, *self._mixed(spec, role, index, mix, theirs)

    def _alike(self, spec: ParamSpec, block: Mapping[str, Piece]) -> Iterator[tuple[str, str, Any]]:
        for role in spec.parts:
            mix: Mix = ((0, 1.0),) if role in block else ()
            yield role, *self._mixed(spec, role, -1, mix, (block,))

    def _mixed(
        self, spec: ParamSpec, role: str, index: int, mix: Mix, blocks: Any
    ) -> tuple[str, Callable[[Tensor], None]]:
        transfer = self.transfer
        if not mix:
            text, rule = self._fresh(spec, role)
            new, place = transfer.new, Place(role, index)
            if new is None:
                return text, rule
            return f"new block ({transfer.how})", lambda out: None if new(place, out) else rule(out)
        generator = sub_generator(self.seed, f"{spec.key}.{role}")
        size = spec.layout.parts[spec.parts.index(role)].shape
        for i, _ in mix:
            self._check(spec, blocks[i][role], size, Place(role, index, i if index >= 0 else -1))

        def moved(out: Tensor, i: int) -> Tensor:
            piece = blocks[i][role]
            value = self.source.part(piece).to(torch.promote_types(out.dtype, torch.float32))
            value = self.resized(value, role, size)
            return self._moved(value, piece, Place(role, index, i if index >= 0 else -1))

        def inherit(out: Tensor) -> None:
            total = operators.mix((moved(out, i), weight) for i, weight in mix)
            if total.shape != out.shape:
                raise ProjectionError(
                    f"{role} of {spec.name} {list(out.shape)} would be {list(total.shape)} "
                    f"({transfer.how}): give the target the ancestor's size there"
                )
            out.copy_(total)
            if transfer.finish is not None:
                transfer.finish(Place(role, index, mix[0][0]), out, generator)

        where = ", ".join(f"{c:.2g} x block {i}" if c != 1 else f"block {i}" for i, c in mix[:3])
        more = ", ..." if len(mix) > 3 else ""
        return f"{role} of {where or 'its place'}{more} ({transfer.how})", inherit

    def _check(self, spec: ParamSpec, piece: Piece, size: tuple[int, ...], place: Place) -> None:
        """Raise ProjectionError where an axis changes that nothing acts on."""
        stuck = [
            f"{' '.join(labels)} {old} -> {new}"
            for old, new, labels in zip(piece.size, size, piece.axes, strict=False)
            if old != new
            and not all(label[0] in CHANNELS for label in labels)  # methods see to those
            and not (labels == ("u",) and TABLES.fullmatch(place.role))
            and self.transfer.axes(" ".join(labels), place) is None
        ]
        if stuck or len(piece.size) != len(size):
            raise ProjectionError(
                f"{place.role} of {piece.spec.name} {list(piece.size)} cannot become that of "
                f"{spec.name} {list(size)}: nothing changes {', '.join(stuck) or 'its axes'}; give "
                "the target the ancestor's size there"
            )

    def _moved(self, value: Tensor, piece: Piece, place: Place) -> Tensor:
        """Act along every axis of a part."""
        for dim, labels in enumerate(piece.axes):
            axis = self.transfer.axes(" ".join(labels), place)
            if axis is not None:
                value = along(value, dim, axis.op(side(place.role, dim, value.dim())))
        return value

    def _outside(self, spec: ParamSpec) -> Iterator[tuple[str, str, Any]]:
        for role in spec.parts:
            piece, place = self.target.outside[role], Place(role)
            width = next((x for axis in piece.axes for x in axis if x[0] == "d"), "d")
            stream = self.transfer.axes(width, place) or _SAME
            carried = self._inherited_head(piece, place) or self._table(piece, place)
            if (
                carried is None
                and role not in ("patch.weight", "pos")
                and not role.startswith("head")
            ):
                carried = self._moved_whole(piece, place)
            if carried is None:
                carried = carry(
                    piece, self.target, self.outside, self.source.anatomy.traits, stream
                ) or self._moved_whole(piece, place)
            if carried is None:
                carried = self._fresh(spec, role)
            yield role, *carried

    def _inherited_head(
        self, piece: Piece, place: Place
    ) -> tuple[str, Callable[[Tensor], None]] | None:
        """Return how a head comes from the token embedding, whose matrix it was in the ancestor."""
        own = self.source.anatomy.outside
        tokens = own.get("embed.token.weight")
        if place.role != "head.weight" or "head.weight" in own or tokens is None:
            return None
        if len(piece.size) != 2 or tokens.size[0] != piece.size[0]:
            return None
        axis = self.transfer.axes("d", place) or _SAME
        text = f"{tokens.role}, the ancestor's head too ({self.transfer.how})"
        return text, lambda out: out.copy_(along(self.source.part(tokens).to(out), 1, axis.columns))

    def _table(self, piece: Piece, place: Place) -> tuple[str, Callable[[Tensor], None]] | None:
        """Return how biases that all blocks share come from those of another window."""
        own = self.source.anatomy.outside.get(place.role)
        if own is None or place.role != "rel_pos.table":
            return None
        self._check(piece.spec, own, piece.size, place)

        def inherit(out: Tensor) -> None:
            value = self.resized(self.source.part(own).to(out), place.role, piece.size)
            out.copy_(self._moved(value, own, place))

        return f"{place.role} of {own.size[0]} offsets ({self.transfer.how})", inherit

    def _fresh(self, spec: ParamSpec, role: str) -> tuple[str, Callable[[Tensor], None]]:
        text, rule = fresh_rule(role, spec.shape)
        generator = sub_generator(self.seed, f"{spec.key}.{role}")
        return text, lambda out: rule(out, generator)

    def _moved_whole(
        self, piece: Piece, place: Place
    ) -> tuple[str, Callable[[Tensor], None]] | None:
        """Return how a tensor comes over whose every axis is alike or has an operator."""
        own = self.source.anatomy.outside.get(piece.role)
        if own is None or own.axes != piece.axes:
            return None
        for old, new, labels in zip(own.size, piece.size, piece.axes, strict=True):
            channels = all(label[0] in CHANNELS for label in labels)
            if old != new and (not channels or self.transfer.axes(" ".join(labels), place) is None):
                return None
        text = f"{piece.role} ({self.transfer.how})"
        return text, lambda out: out.copy_(self._moved(self.source.part(own).to(out), own, place))

    def _recipe(self, spec: ParamSpec, parts: Iterator[tuple[str, str, Any]]) -> Recipe:
        listed = list(parts)
        texts = list(dict.fromkeys(text for _, text, _ in listed))
        rules = [fresh_rule(role, spec.shape)[0] for role, _, _ in listed]
        fresh = all(text in rules for text in texts)

        def fill(out: Tensor) -> None:
            for role, _, write in listed:
                # A view made before the last write has no part in its gradient.
                write(self.target.split(spec, out)[role])

        return Recipe(spec, "fresh" if fresh else "written", "; ".join(texts), fill)


def _keep(tensor: Tensor, dim: int) -> Tensor:
    return tensor


_SAME = Axis(_keep, _keep)
