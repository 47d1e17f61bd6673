"""Inheriting weights from one ancestor: an operator for each axis, and a mix of blocks for each.

W' = rows (sum_i c_i W_i) columns^T: every published rule of this family is a choice of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from weightinit.anatomy import Anatomy, Labels, Piece, Role, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.fresh import fresh_part
from weightinit.inherit.method import Source, outside_of
from weightinit.inherit.outside import carry, resampled, resized
from weightinit.init import operators
from weightinit.init.operators import Mix, along
from weightinit.recipes import Part

__all__ = ["Axes", "Place", "Transfer", "transfer_parts"]


@dataclass(frozen=True)
class Place:
    """Where an operator acts.

    Args:
        role: canonical role of the parameter.
        target: index of the target's block, -1 outside the blocks.
        source: index of the ancestor's block that is read there.
    """

    role: str
    target: int = -1
    source: int = -1

    @property
    def facts(self) -> Role:
        """What is true of its role."""
        return facts(self.role)


#: From the labels of an axis to what becomes of it at a place; None where it stays as it is.
Axes = Callable[[Labels, Place], Axis | None]


@dataclass(frozen=True)
class Transfer:
    """A method, as what it does along axes and over depth.

    Args:
        axes: operators of the axes in the blocks and outside them.
        depth: mix of the ancestor's blocks for each block of the target.
        how: a few words for the report.
        roles: mixes for single roles that differ from ``depth``.
        new: writes a parameter of a block that has no mix (an identity block, say) and returns
            True; where it returns False, or is None, the parameter is drawn by rule.
    """

    axes: Axes
    depth: list[Mix]
    how: str
    roles: Mapping[str, list[Mix]] = field(default_factory=dict)
    new: Callable[[Place, Tensor], bool] | None = None


def transfer_parts(
    source: Source, target: Anatomy, transfer: Transfer, *, seed: int = 0
) -> dict[Piece, Part]:
    """Return what becomes of every piece of a target: inherited, or fresh by rule."""
    return dict(_Transferral(source, target, transfer, seed).parts())


class _Transferral:
    """One transfer from one source to one target."""

    def __init__(self, source: Source, target: Anatomy, transfer: Transfer, seed: int) -> None:
        self.source, self.target, self.transfer, self.seed = source, target, transfer, seed
        self.outside = outside_of(source)
        self.resized = partial(resized, old=source.anatomy.traits, new=target.traits)

    def parts(self) -> Iterator[tuple[Piece, Part]]:
        """Yield the part of every piece."""
        blocks = self.source.anatomy.blocks
        for index, block in enumerate(self.target.blocks):
            for piece in block.values():
                mix = self.transfer.roles.get(piece.role, self.transfer.depth)[index]
                mix = tuple((i, c) for i, c in mix if piece.role in blocks[i])
                yield piece, self._mixed(piece, index, mix, blocks)
        for block, like in self._extra_blocks():
            for piece in block.values():
                mix = ((0, 1.0),) if piece.role in like else ()
                yield piece, self._mixed(piece, -1, mix, (like,))
        for piece in self.target.outside.values():
            yield piece, self._outside(piece)

    def _extra_blocks(self) -> Iterator[tuple[Mapping[str, Piece], Mapping[str, Piece]]]:
        """Yield the blocks off the main stack, each with the ancestor's block of that place."""
        own: dict[str, list[Mapping[str, Piece]]] = {}
        for stack, block in self.source.anatomy.extra_blocks:
            own.setdefault(stack, []).append(block)
        seen: dict[str, int] = {}
        for stack, block in self.target.extra_blocks:
            index = seen[stack] = seen.get(stack, -1) + 1
            theirs = own.get(stack, [])
            yield block, theirs[min(index, len(theirs) - 1)] if theirs else {}

    def _mixed(
        self, piece: Piece, index: int, mix: Mix, blocks: Sequence[Mapping[str, Piece]]
    ) -> Part:
        transfer, role = self.transfer, piece.role
        if not mix:
            fresh, new, place = fresh_part(piece, self.seed), transfer.new, Place(role, index)
            draw = fresh.fill
            if new is None or draw is None:
                return fresh
            text = f"new block ({transfer.how})"
            return Part("written", text, lambda out: new(place, out) or draw(out))
        for i, _ in mix:
            self._check(blocks[i][role], piece, Place(role, index, i if index >= 0 else -1))

        def moved(out: Tensor, i: int) -> Tensor:
            place = Place(role, index, i if index >= 0 else -1)
            return self._moved(blocks[i][role], piece, place, out)

        def inherit(out: Tensor) -> None:
            total = operators.mix((moved(out, i), weight) for i, weight in mix)
            if total.shape != out.shape:
                raise ProjectionError(
                    f"{role} of {piece.spec.name} {list(out.shape)} would be {list(total.shape)} "
                    f"({transfer.how}): give the target the ancestor's size there"
                )
            out.copy_(total)

        where = ", ".join(f"{c:.2g} x block {i}" if c != 1 else f"block {i}" for i, c in mix[:3])
        more = ", ..." if len(mix) > 3 else ""
        text = f"{role} of {where if index >= 0 else 'its place'}{more} ({transfer.how})"
        mixed = tuple(mix) if index >= 0 else ()
        return Part("written", text, inherit, how=transfer.how, blocks=mixed)

    def _check(self, own: Piece, piece: Piece, place: Place) -> None:
        """Raise ProjectionError where an axis changes that nothing acts on."""
        stuck = [
            f"{labels} {old} -> {new}"
            for old, new, labels in zip(own.size, piece.size, own.axes, strict=False)
            if old != new
            and not (labels.channel or labels.block)  # methods see to those
            and not (labels.position and piece.facts.kind == "table")
            and self.transfer.axes(labels, place) is None
        ]
        if stuck or len(own.size) != len(piece.size):
            raise ProjectionError(
                f"{place.role} of {own.spec.name} {list(own.size)} cannot become that of "
                f"{piece.spec.name} {list(piece.size)}: nothing changes "
                f"{', '.join(stuck) or 'its axes'}; give the target the ancestor's size there"
            )

    def _moved(self, own: Piece, piece: Piece, place: Place, out: Tensor) -> Tensor:
        """Return a part of the ancestor, acted on along every axis."""
        value = self.resized(self.source.part(own).to(out), piece)
        for dim, labels in enumerate(own.axes):
            axis = self.transfer.axes(labels, place)
            if axis is not None:
                value = along(value, dim, axis.op(own.side(dim)))
        return value

    def _outside(self, piece: Piece) -> Part:
        """Return the part of the first carrier that has something for a piece."""
        carried = (carrier(piece, Place(piece.role)) for carrier in (self._table, self._carried))
        return next(filter(None, carried), None) or fresh_part(piece, self.seed)

    def _table(self, piece: Piece, place: Place) -> Part | None:
        """Return how biases that all blocks share come from those of another window."""
        own = self.source.anatomy.outside.get(place.role)
        if own is None or piece.facts.kind != "table":
            return None
        self._check(own, piece, place)
        how = self.transfer.how
        moved = partial(self._moved, own, piece, place)
        text = f"{place.role} of {own.size[0]} offsets ({how})"
        return Part("written", text, lambda out: out.copy_(moved(out)), how=how)

    def _carried(self, piece: Piece, place: Place) -> Part | None:
        """Return how any other tensor comes over, its channels acted on."""
        own = self.source.anatomy.outside.get(piece.role)
        if own is not None and own.axes != piece.axes and not resampled(piece):
            return None

        def axes(labels: Labels) -> Axis | None:
            return self.transfer.axes(labels, place)

        traits = self.source.anatomy.traits
        part = carry(piece, self.target, self.outside, traits, axes, self.seed)
        how = part and (part.how or part.text)
        return part and replace(part, text=f"{part.text} ({self.transfer.how})", how=how)
