"""bert2BERT: a wider network whose new channels are copies, or come from the next block.

Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models", ACL 2022,
https://arxiv.org/abs/2110.07143.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.copies import Copying
from weightinit.inherit.depth import Depth
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.growth import Growth
from weightinit.inherit.method import Source, check_options
from weightinit.inherit.transfer import Axes, Place, Transfer, transfer_parts
from weightinit.init.operators import Mix, along, scale
from weightinit.recipes import Inheritance

__all__ = ["Bert2BERT", "copies_of"]

Mode = Literal["fpi", "aki"]
Choice = Literal["even", "random"]


@dataclass(frozen=True)
class Bert2BERT:
    """Options of bert2BERT.

    One map g of new channels to old ones serves every producer and reader of an axis: one for the
    residual stream, one of whole heads for attention, one for the hidden axis of the MLPs. What
    makes an axis is copied, W'[i] = W[g(i)]; what reads it shares the weight among the copies.

    Args:
        mode: origin of the added rows. ``"fpi"`` copies them and keeps the function wherever all
            channels of a norm have equally many copies (twice the width, say) and the head dim is
            the same. ``"aki"`` takes them from the next block, so that no two channels are equal;
            it does not keep the function, and the paper finds it the better start.
        depth: depth rule; ``"stack_top"`` is the paper's. Or the ancestor's block for each of the
            target's, ``[0, 1, 0, 1]``.
        copies: choice of g: ``"even"`` draws each channel before any is drawn again, so that g is
            uniform where it can be; ``"random"`` is the paper's independent draws, inexact at every
            norm.

    Raises:
        ProjectionError: if a value is not one of these.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=d, num_heads=d // 32)
        ...     for d in (64, 128))
        >>> wi.project_from(old, new, method=wi.Bert2BERT(mode="aki")) is new
        True
    """

    mode: Mode = "fpi"
    depth: Depth = "stack_top"
    copies: Choice = "even"

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, mode=get_args(Mode), copies=get_args(Choice))

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no smaller on any axis."""
        copying = self._copying(source.anatomy, target, seed)
        growth = copying.growth
        transfer = Transfer(copying, growth.depth, "copied channels share their readers")
        _, notes = growth.claim("bert2BERT", copying.uneven, self._faults(growth))
        if self.mode == "aki":
            if any(len(mix) != 1 for mix in growth.depth):
                raise ProjectionError(
                    f"depth={self.depth!r} mixes blocks, and mode='aki' takes rows of the next "
                    "one: use mode='fpi' or a depth rule that takes one block for each"
                )
            axes, roles = _upper_rows(copying, growth.depth)
            transfer = Transfer(axes, growth.depth, "added rows from the next block", roles)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed), notes)

    def _faults(self, growth: Growth) -> Iterator[str]:
        if growth.reordered:
            yield "blocks are copied or left out, which changes the function"
        if self.mode == "aki" and growth.grown:
            yield "mode='aki' takes the added rows from the next block"

    def _copying(self, old: Anatomy, new: Anatomy, seed: int) -> Copying:
        if ("e" in old.widths) != ("e" in new.widths):
            raise ProjectionError(
                "one of the two models has grouped key-value heads and the other has not: use an "
                "ancestor of the same kind of attention"
            )
        growth = Growth("bert2BERT", old, new, depth=self.depth, lossless=False)
        for label in ("k", "kp"):
            if label in growth.grown:
                before, after = growth.grown[label]
                raise ProjectionError(
                    f"bert2BERT copies whole heads, and the head dim ({label}) grows from {before} "
                    f"to {after}: give the target as many heads as have a head dim of {before}, or "
                    "use method='ligo'"
                )

        def choose(label: str, before: int, after: int) -> Tensor:
            return copies_of(before, after, self.copies, sub_generator(seed, f"bert2bert {label}"))

        return Copying(growth, choose)


def copies_of(old: int, new: int, copies: str, generator: torch.Generator) -> Tensor:
    """Return which of ``old`` channels each of ``new`` ones copies, int64; the first stay."""
    more = new - old
    if copies == "random":
        added = torch.randint(old, (more,), generator=generator)
    else:
        rounds = [torch.randperm(old, generator=generator) for _ in range(math.ceil(more / old))]
        added = torch.cat([torch.arange(0), *rounds])[:more]
    return torch.cat([torch.arange(old), added])


def _upper_rows(copying: Copying, depth: list[Mix]) -> tuple[Axes, dict[str, list[Mix]]]:
    """Return the axes and mixes of AKI: the first rows of a block, the added rows of the next.

    The two meet in the sum over the blocks of a mix. Norms and layer scales are copied (the paper's
    expansion of vectors), and so is every parameter of a last block, which has no next.
    """
    old, new = copying.growth.old, copying.growth.new
    roles = {
        piece.role
        for block in new.blocks
        for piece in block.values()
        if piece.facts.kind != "norm"
        for dim, labels in enumerate(piece.axes)
        if piece.side(dim) == "rows" and copying.of(labels) is not None
    }
    tops = {total - 1 for total in accumulate(old.stages)}

    def has_next(index: int, role: str) -> bool:
        return index not in tops and role in old.blocks[index + 1]

    def axes(labels: Labels, place: Place) -> Axis | None:
        axis, copies = copying(labels, place), copying.of(labels)
        if axis is None or copies is None or place.role not in roles or place.target < 0:
            return axis
        block = depth[place.target][0][0]
        if not has_next(block, place.role):
            return axis
        kept = (copies.turns == 0) == (place.source == block)
        return Axis(
            lambda tensor, dim: scale(along(tensor, dim, copies.index), dim, kept), axis.columns
        )

    pairs = {
        role: [((i, 1.0), (i + 1, 1.0)) if has_next(i, role) else ((i, 1.0),)
               for ((i, _),) in depth]
        for role in roles
    }  # fmt: skip
    return axes, pairs
