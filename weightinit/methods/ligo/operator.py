"""LiGO's operator: its expansion matrices and depth weights, how they are tied, how they start.

Wang et al., "Learning to Grow Pretrained Models for Efficient Transformer Training", ICLR 2023,
https://arxiv.org/abs/2303.00980, as its published code ties and draws them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels, Piece, Role
from weightinit.anatomy.roles import Side
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.transfer import Axes, Place
from weightinit.init.operators import Op, along

__all__ = [
    "DEPTH_INITS",
    "WIDTH_INITS",
    "DepthInit",
    "WidthInit",
    "draw_operator",
    "expand",
    "levels",
    "operator_axes",
    "operator_shapes",
]

DepthInit = Literal[
    "rand", "rand_softmax", "stackbert", "stackbert_noisy", "interlace", "interlace_noisy"
]
WidthInit = Literal["rand", "rand_softmax", "sel", "sel_noisy"]
DEPTH_INITS, WIDTH_INITS = get_args(DepthInit), get_args(WidthInit)


@dataclass(frozen=True)
class Level:
    """The place of one block of a target in its stage."""

    first: int  # index of the ancestor's first block of that stage
    old: int  # number of blocks of the ancestor's stage
    index: int  # index of the block within the target's stage
    new: int  # number of blocks of the target's stage

    def start(self, depth_init: str) -> int:
        """Return the block of the ancestor's stage at which a one-hot scheme starts."""
        if depth_init.startswith("interlace"):
            return self.index * self.old // self.new
        return self.index % self.old


def levels(old: Anatomy, new: Anatomy) -> list[Level]:
    """Return the level of every block of a target; raise ProjectionError if a stage shrinks."""
    counts = old.stages, new.stages
    if len(counts[0]) != len(counts[1]) or any(a > b for a, b in zip(*counts, strict=True)):
        raise ProjectionError(
            f"LiGO only grows, and the ancestor's stages of {[*counts[0]]} blocks cannot become "
            f"{[*counts[1]]}: use method='weight_selection' or 'auto', which shrink"
        )
    first = [0, *accumulate(old.stages)]
    return [
        Level(first[stage], before, index, after)
        for stage, (before, after) in enumerate(zip(*counts, strict=True))
        for index in range(after)
    ]


def expand(tensor: Tensor, dim: int, added: Tensor) -> Tensor:
    """Return [I; C] x along one axis of a tensor, where ``added`` is C ``[more, old]``."""
    return torch.cat([tensor, along(tensor, dim, added.to(tensor))], dim)


def operator_shapes(old: Anatomy, new: Anatomy, *, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of everything that an operator between two models holds.

    ``width.*`` are matrices C ``[added, old]`` of [I; C], ``depth.<block>.<role>`` vectors
    ``[ancestor's blocks]``, one a parameter: weights and biases have their own. If ``tied`` there
    is one matrix for the residual stream of all layers (and one for the classifier's
    transformation), and for each layer one for q, for k, for v with what reads it, and for the
    hidden axis of the MLP. Otherwise every module has its own on each side.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    name = _Names(new, tied)
    smaller: dict[str, None] = {}

    def widths(piece: Piece, before: Sequence[int], block: int) -> None:
        lengths = zip(piece.axes, before, piece.size, strict=True)
        for dim, (labels, was, length) in enumerate(lengths):
            if was == length or not labels.channel:
                continue
            if length < was:
                smaller[f"{labels} {was} -> {length}"] = None
            shapes[name(labels, piece.facts, block, piece.side(dim))] = length - was, was

    for block, (level, pieces) in enumerate(zip(levels(old, new), new.blocks, strict=True)):
        stage = old.blocks[level.first : level.first + level.old]
        for role, piece in pieces.items():
            own = next((b[role] for b in stage if role in b), None)
            if own is not None:
                shapes[f"depth.{block}.{role}"] = (level.old,)
                widths(piece, own.size, block)
    extra = {(stack, role): p for stack, block in old.extra_blocks for role, p in block.items()}
    for stack, pieces in new.extra_blocks:
        for role, piece in pieces.items():
            if (stack, role) in extra:
                widths(piece, extra[stack, role].size, -1)
    for piece in new.outside.values():
        # The ancestor may call it otherwise; its channels are those of the label all the same.
        widths(piece, _lengths(piece, old), -1)
    if smaller:
        raise ProjectionError(
            f"LiGO only grows, and the target is smaller in {', '.join(smaller)}: use "
            "method='weight_selection' or 'auto', which shrink"
        )
    return shapes


def _lengths(piece: Piece, old: Anatomy) -> list[int]:
    """Return the lengths of a piece's axes in the ancestor; its own where that lacks the label."""
    return [
        math.prod(old.sizes[label] for label in labels) if old.sizes.keys() >= set(labels) else size
        for labels, size in zip(piece.axes, piece.size, strict=True)
    ]


class _Names:
    """The names of the matrices that act along axes, which say what is tied."""

    def __init__(self, target: Anatomy, tied: bool) -> None:
        self.tied = tied
        # A head that shares the embedding's weights reads the residual stream's channels.
        self.transformed = {"pre_logits.weight", "head.weight"} <= target.outside.keys()

    def __call__(self, labels: Labels, role: Role, block: int, side: Side) -> str:
        """Return the name of the matrix that acts along an axis of a role, on one side."""
        layer = f"{block}." if block >= 0 else ""
        if not self.tied:
            end = "in" if side == "columns" else "out"
            return f"width.{layer}{role.module}.{end}:{labels}"
        if labels.shared:
            weight = role.kind == "head" and not role.bias
            classifier = weight or (role.representation and side != "columns")
            separate = labels.stream and classifier and self.transformed
            return "width.head" if separate else f"width.{labels}"
        if len(labels) == 1:
            return f"width.{layer}{role.parent}:{labels}"
        # What follows the values, their projection first, reads them as they were made.
        part = role.letter if role.letter in ("q", "k") and role.kind != "norm" else "v"
        return f"width.{layer}{role.parent}.{part}" + (":e" if labels == ("e", "k") else "")


def operator_axes(operator: Mapping[str, Tensor], target: Anatomy, *, tied: bool) -> Axes:
    """Return what an operator does along the axes of a target; it is read when it acts."""
    name = _Names(target, tied)

    def acting(where: str) -> Op:
        return lambda tensor, dim: expand(tensor, dim, operator[where])

    def axes(labels: Labels, place: Place) -> Axis | None:
        rows = name(labels, place.facts, place.target, "rows")
        columns = name(labels, place.facts, place.target, "columns")
        if rows not in operator and columns not in operator:
            return None
        return Axis(acting(rows), acting(columns))

    return axes


def draw_operator(
    old: Anatomy,
    new: Anatomy,
    depth_init: str,
    width_init: str,
    *,
    tied: bool = True,
    noise: float = 0.03,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return an operator as the published code starts it, fp32, named as its shapes are."""
    places = levels(old, new)
    operator = {}
    for name, shape in operator_shapes(old, new, tied=tied).items():
        generator = sub_generator(seed, f"ligo.{name}")
        if name.startswith("width."):
            chosen = torch.randint(shape[1], shape[:1], generator=generator)
            operator[name] = _draw(width_init, shape, chosen, noise, generator)
            continue
        index = torch.tensor([places[int(name.split(".")[1])].start(depth_init)])
        value = _draw(depth_init, (1, *shape), index, noise, generator)
        operator[name] = value[0] / value.sum()
    return operator


def _draw(
    scheme: str, shape: tuple[int, ...], chosen: Tensor, noise: float, generator: torch.Generator
) -> Tensor:
    """Return rows that are one-hot at ``chosen``, with noise elsewhere, or random and sum to 1."""
    drawn = torch.rand(shape, generator=generator, dtype=torch.float32)
    if scheme == "rand_softmax":
        return drawn.softmax(-1)
    if scheme == "rand":
        return drawn / drawn.sum(-1, keepdim=True)
    drawn *= noise if scheme.endswith("noisy") else 0.0
    return drawn.scatter_(-1, chosen[:, None], 1.0)
