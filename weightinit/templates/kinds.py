"""Kinds of weight templates: which roles share them, and which a model's blocks need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from weightinit.anatomy import Anatomy, Piece, label_of
from weightinit.errors import BundleError

__all__ = ["TemplateKind", "blocks_of", "folded", "head_dims", "kind_of", "kind_roles", "kinds_of"]

Block: TypeAlias = Mapping[str, Piece]

#: Of kinds that cover several roles: their parts, in the order of their rows.
_PARTS = {
    "attn.qkv": tuple(f"attn.{part}" for part in "qkv"),
    "ada": tuple(f"ada.{part}{i}" for i in "12" for part in ("shift", "scale", "gate")),
}
_ROLES: dict[str, tuple[str, ...]] = {
    f"{kind}.{which}": tuple(f"{part}.{which}" for part in parts)
    for kind, parts in _PARTS.items()
    for which in ("weight", "bias")
}
_KINDS = {role: kind for kind, roles in _ROLES.items() for role in roles}


@dataclass(frozen=True)
class TemplateKind:
    """The templates of one kind of parameter.

    Args:
        number: N, how many templates are summed.
        shape: template shape, ``(w1, w2)`` for matrices (stored orientation, out x in) and
            ``(w,)`` for vectors. Of a convolution the second axis holds the taps of its kernel.
        parts: how many of the kind's roles one template spans: 1 where q, k and v each take blocks
            of their own, 3 for WAVE's qkv bias, whose templates are 3 w long.
        stack: the stack of blocks that it belongs to, with whose name its own begins; ``""`` where
            all blocks share it.
    """

    number: int
    shape: tuple[int, ...]
    parts: int = 1
    stack: str = ""

    @property
    def unit(self) -> tuple[int, ...]:
        """The shape of what one template gives to one role."""
        return (self.shape[0] // self.parts, *self.shape[1:])


def kind_roles(kind: str) -> tuple[str, ...]:
    """Return the canonical roles that a kind covers, in the order of its rows."""
    return _ROLES.get(kind, (kind,))


def kind_of(role: str) -> str:
    """Return the kind whose templates a canonical role is composed from."""
    return _KINDS.get(role, role)


def blocks_of(anatomy: Anatomy, stack: str) -> tuple[Block, ...]:
    """Return the blocks that the kinds of a stack compose; ``""`` is those of all main stacks."""
    return anatomy.stacks.get(stack, ()) if stack else anatomy.blocks


def folded(piece: Piece) -> tuple[int, ...]:
    """Return the size of a piece in one or two axes: the taps of a kernel lie along the second."""
    first, *others = piece.size
    return (first, math.prod(others)) if others else (first,)


def head_dims(anatomy: Anatomy) -> frozenset[str]:
    """Return the labels inside the heads of attention, which keep their size in any width."""
    pieces = (p for block in (*anatomy.blocks, anatomy.outside) for p in block.values())
    axes = (labels for piece in pieces for labels in piece.axes)
    return frozenset(labels[-1] for labels in axes if len(labels) > 1 and labels.channel)


def kinds_of(
    anatomy: Anatomy, layers: int | None, width: int | None
) -> tuple[int, dict[str, TemplateKind]]:
    """Return the width of the templates and a kind for every role in a model's blocks.

    Raises:
        BundleError: if the blocks stand on no residual stream, or ``width`` does not divide them.
    """
    stacks = {stack: blocks for stack, blocks in anatomy.stacks.items() if blocks}
    if len(stacks) <= 1:
        stacks = {"": anatomy.blocks}
    streams = {stack: _stream(blocks[0]) if blocks else 0 for stack, blocks in stacks.items()}
    first = next(iter(streams.values()), 0)
    if not all(streams.values()) or not first:
        raise BundleError(
            f"a {anatomy.family} without blocks on a residual stream has no kinds of templates: "
            "build a TemplateConfig of kinds of your own"
        )
    scale, inside, kinds = Fraction(width or first, first), head_dims(anatomy), {}
    for stack, blocks in stacks.items():
        worth = layers or len(blocks)
        if stack and layers:
            worth = min(layers, max(1, len(blocks) // 2))
        pieces = {role: piece for block in reversed(blocks) for role, piece in block.items()}
        for role, piece in pieces.items():
            kind, roles = kind_of(role), len(kind_roles(kind_of(role)))
            name = f"{stack}.{kind}" if stack else kind
            if name in kinds or not piece.size:
                continue
            grown = [_scaled(piece, n, scale, inside) for n in range(len(piece.size))]
            if len(grown) == 1 or _taps(piece):
                shape = (roles * grown[0], *([math.prod(grown[1:])] if grown[1:] else []))
                kinds[name] = TemplateKind(2 * worth, shape, roles, stack)
            elif len(grown) == 2:
                widest = int(streams[stack] * scale)
                tiles = [
                    _tile(n, widest) if labels.channel else n
                    for n, labels in zip(grown, piece.axes, strict=True)
                ]
                number = worth * roles * math.prod(grown) // math.prod(tiles)
                kinds[name] = TemplateKind(number, tuple(tiles), 1, stack)
    return int(first * scale), kinds


def _stream(block: Block) -> int:
    """Return the width of the residual stream of a block, 0 where there is none."""
    axes = (axis for p in block.values() for axis in zip(p.size, p.axes, strict=True))
    return next((size for size, labels in axes if labels.stream), 0)


def _taps(piece: Piece) -> bool:
    """Return whether all axes behind the first are those of a kernel, as of a depthwise one."""
    return all(label_of(x).kind == "kernel" for labels in piece.axes[1:] for x in labels)


def _scaled(piece: Piece, dim: int, scale: Fraction, inside: frozenset[str]) -> int:
    """Return the size of an axis in a model as wide as the templates."""
    labels, size = piece.axes[dim], Fraction(piece.size[dim])
    if labels.channel and not inside.issuperset(labels):
        size *= scale
    if size.denominator != 1:
        raise BundleError(
            f"templates {scale} as wide as the model do not cut {piece.role} of {piece.spec.name}, "
            f"of {piece.size}: use another width"
        )
    return int(size)


def _tile(size: int, width: int) -> int:
    """Return the longest tile that divides an axis and is not wider than a template."""
    tile = max(n for n in range(1, min(size, width) + 1) if size % n == 0)
    return tile if 4 * tile >= min(size, width) else size
