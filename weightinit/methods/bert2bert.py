"""bert2BERT: a wider network whose new channels are copies, or come from the next block.

Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models", ACL 2022,
https://arxiv.org/abs/2110.07143.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.anatomy.layout import Op, along
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Depth, Mix, mixes
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.growth import sizes_of
from weightinit.inherit.outside import Axis
from weightinit.inherit.transfer import Axes, Place, Source, Transfer, side, transfer_parts
from weightinit.plan import Inheritance

__all__ = ["Bert2BERT", "copies_of"]

Mode = Literal["fpi", "aki"]
Copies = Literal["even", "random"]
#: First letters of the labels that may grow.
GROWING = "dhkmez"


@dataclass(frozen=True)
class Bert2BERT:
    """Options of bert2BERT.

    One map g of new channels to old ones serves every producer and reader of an axis: one for the
    residual stream, one of whole heads for attention, one for the hidden axis of the MLPs. What
    makes an axis is copied, W'[i] = W[g(i)]; what reads it shares the weight among the copies.

    Args:
        mode: ``"fpi"`` leaves the function as it is wherever all channels of a norm have equally
            many copies (twice the width, say), and the head dim is the same. ``"aki"`` takes the
            added rows from the next block instead, so that no two channels are equal; it does not
            preserve the function, and the paper finds it the better start.
        depth: which blocks; ``"stack_top"`` is the paper's.
        copies: ``"even"`` draws each channel before any is drawn again, so that g is uniform where
            it can be; ``"random"`` is the paper's independent draws, inexact at every norm.

    Raises:
        ProjectionError: if a value is not one of these.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.methods.bert2bert import Bert2BERT
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=d, num_heads=d // 32)
        ...     for d in (64, 128))
        >>> wi.project_from(old, new, method=Bert2BERT(mode="aki")) is new
        True
    """

    mode: Mode = "fpi"
    depth: Depth = "stack_top"
    copies: Copies = "even"

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (("mode", get_args(Mode)), ("copies", get_args(Copies))):
            if getattr(self, name) not in allowed:
                raise ProjectionError(f"{name}={getattr(self, name)!r}: use one of {allowed}")

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no smaller on any axis."""
        old = source.anatomy
        depth = mixes(self.depth, old, target)
        maps = _Maps(old, target, self.copies, seed)
        how = "copied channels share their readers"
        if self.mode == "fpi":
            transfer = Transfer(maps.axis, depth, how)
            return Inheritance(transfer_parts(source, target, transfer, seed=seed))
        if any(len(mix) != 1 for mix in depth):
            raise ProjectionError(
                f"depth={self.depth!r} mixes blocks, and mode='aki' takes rows of the next one: "
                "use mode='fpi' or a depth rule that takes one block for each"
            )
        axes, roles = _upper_rows(maps, old, target, depth)
        how = "added rows from the next block"
        transfer = Transfer(axes, depth, how, roles)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))


def copies_of(old: int, new: int, copies: str, generator: torch.Generator) -> Tensor:
    """Return which of ``old`` channels each of ``new`` ones copies, an int64 ``[new]``.

    Args:
        old: how many there are.
        new: how many there shall be; the first ``old`` stay.
        copies: ``"even"`` or ``"random"``.
        generator: of the draws.

    Examples:
        >>> index = copies_of(3, 7, "even", torch.Generator().manual_seed(0))
        >>> index[:3].tolist(), index.bincount().sort().values.tolist()
        ([0, 1, 2], [2, 2, 3])
    """
    more = new - old
    if copies == "random":
        added = torch.randint(old, (more,), generator=generator)
    else:
        rounds = [torch.randperm(old, generator=generator) for _ in range(math.ceil(more / old))]
        added = torch.cat([torch.arange(0), *rounds])[:more]
    return torch.cat([torch.arange(old), added])


class _Maps:
    """The map g of every axis that grows: the same wherever the axis occurs."""

    def __init__(self, old: Anatomy, new: Anatomy, copies: str, seed: int) -> None:
        self.old, self.new = sizes_of(old), sizes_of(new)
        self.copies, self.seed = copies, seed
        self._known: dict[str, Tensor | None] = {}
        if ("e" in self.old) != ("e" in self.new):
            raise ProjectionError(
                "one of the two models has grouped key-value heads and the other has not: use an "
                "ancestor of the same kind of attention"
            )
        smaller = [
            f"{label} {self.old[label]} -> {size}"
            for label, size in self.new.items()
            if label[0] in GROWING and size < self.old.get(label, 0)
        ]
        if old.depth > new.depth:
            smaller.append(f"depth {old.depth} -> {new.depth}")
        if smaller:
            raise ProjectionError(
                f"bert2BERT only grows, and the target is smaller in {', '.join(smaller)}: use "
                "method='auto', which shrinks too"
            )
        token, head = new.outside.get("embed.token.weight"), new.outside.get("head.weight")
        tied = token is not None and bool(token.spec.tied) and head is None
        last = "pre_logits.norm" if "pre_logits.norm.weight" in new.outside else "norm"
        #: The head reads the embedding's copies unshared: the norm before it must share instead.
        self.shared = {f"{last}.weight", f"{last}.bias"} if tied else set()

    def axis(self, label: str, place: Place) -> Axis | None:
        """Return what becomes of an axis; None where it stays."""
        index = self.index(label)
        if index is None:
            return None
        share = _shared(index)
        return Axis(share, share) if place.role in self.shared else Axis(index, share)

    def index(self, label: str) -> Tensor | None:
        """Return g of an axis, int64 ``[new]``; None where it stays."""
        if label not in self._known:
            self._known[label] = self._index(label)
        return self._known[label]

    def _index(self, joined: str) -> Tensor | None:
        labels = joined.split()
        if any(x[0] not in GROWING or x not in self.old or x not in self.new for x in labels):
            return None
        if all(self.old[x] == self.new[x] for x in labels):
            return None
        for label in labels:
            if label[0] == "k" and self.old[label] != self.new[label]:
                raise ProjectionError(
                    f"bert2BERT copies whole heads, and the head dim ({label}) grows from "
                    f"{self.old[label]} to {self.new[label]}: give the target another number of "
                    "heads, or use method='auto' or 'ligo'"
                )
        first, *inner = labels
        index = self._heads() if first == "h" else self._copies(first)
        for label in inner:
            size = self.old[label]
            index = (index[:, None] * size + torch.arange(size)).flatten()
        return index

    def _copies(self, label: str) -> Tensor:
        generator = sub_generator(self.seed, f"bert2bert {label}")
        return copies_of(self.old[label], self.new[label], self.copies, generator)

    def _heads(self) -> Tensor:
        """Return g of the query heads: with grouped keys and values, a copy joins their copy."""
        if "e" not in self.old or "e" not in self.new:
            return self._copies("h")
        before, after = (sizes["h"] // sizes["e"] for sizes in (self.old, self.new))
        if after < before:
            raise ProjectionError(
                f"each key-value head serves {before} heads of the ancestor and only {after} of "
                "the target: give the target more heads, or fewer key-value heads"
            )
        inside = copies_of(
            before, after, self.copies, sub_generator(self.seed, "bert2bert inside a group")
        )
        return (self._copies("e")[:, None] * before + inside).flatten()


def _shared(index: Tensor) -> Op:
    """Return the selection that divides every channel by the number of its copies."""
    share = index.bincount().double().reciprocal()[index]

    def op(tensor: Tensor, dim: int) -> Tensor:
        shape = [-1 if i == dim % tensor.dim() else 1 for i in range(tensor.dim())]
        return along(tensor, dim, index) * share.to(tensor).view(shape)

    return op


def _upper_rows(
    maps: _Maps, old: Anatomy, new: Anatomy, depth: list[Mix]
) -> tuple[Axes, dict[str, list[Mix]]]:
    """Return AKI: axes that keep the first rows of a block and the added ones of the next.

    The two meet in the sum over the blocks of a mix. Norms and layer scales are copied (the paper's
    expansion of vectors), and so is everything of a last block, which has no next.
    """
    roles = {
        piece.role
        for block in new.blocks
        for piece in block.values()
        if "norm" not in piece.role
        for dim, labels in enumerate(piece.axes)
        if side(piece.role, dim, len(piece.axes)) == "rows"
        and maps.index(" ".join(labels)) is not None
    }
    stacks = [next(iter(block.values())).spec.stack for block in old.blocks]

    def has_next(index: int, role: str) -> bool:
        upper = index + 1
        return upper < old.depth and stacks[upper] == stacks[index] and role in old.blocks[upper]

    def axes(label: str, place: Place) -> Axis | None:
        axis, index = maps.axis(label, place), maps.index(label)
        if axis is None or index is None or place.role not in roles or place.target < 0:
            return axis
        own = depth[place.target][0][0]
        if not has_next(own, place.role):
            return axis
        first = _first(index)
        rows = _only(index, first if place.source == own else ~first)
        return Axis(rows, axis.columns)

    pairs = {
        role: [((i, 1.0), (i + 1, 1.0)) if has_next(i, role) else ((i, 1.0),)
               for ((i, _),) in depth]
        for role in roles
    }  # fmt: skip
    return axes, pairs


def _first(index: Tensor) -> Tensor:
    """Return where each value of an index vector stands first."""
    place = torch.arange(len(index))
    start = torch.full((int(index.max()) + 1,), len(index))
    return start.scatter_reduce(0, index, place, "amin")[index] == place


def _only(index: Tensor, kept: Tensor) -> Op:
    """Return the selection of some of an index vector's rows; the others are zero."""

    def op(tensor: Tensor, dim: int) -> Tensor:
        shape = [-1 if i == dim % tensor.dim() else 1 for i in range(tensor.dim())]
        return along(tensor, dim, index) * kept.to(tensor).view(shape)

    return op
