"""Copies of channels: made where a channel is made, sharing the weights of what reads it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightinit.anatomy import Labels
from weightinit.inherit.axis import Axis
from weightinit.inherit.growth import Growth
from weightinit.inherit.transfer import Place
from weightinit.init.operators import Copies, Op, along, cycle, scale

__all__ = ["Copying"]

#: Head dims, of the blocks and of the attention pool.
HEAD_DIMS = frozenset({"k", "kp"})


class Copying:
    """Copies of the channels of every axis that grows: a method's :data:`Axes`.

    Where the head dim grows, queries and keys are scaled so that their products, divided by the
    root of the new head dim, are as before. ``choose`` returns the channels that are copied, given
    a label and its old and new size (None copies them in turn); query heads that share a key-value
    head are called ``"in group"``. ``added`` returns what uneven shares have more than even ones,
    of which the mean over copies is taken off.
    """

    def __init__(
        self,
        growth: Growth,
        choose: Callable[[str, int, int], Tensor] | None = None,
        added: Callable[[Place, Tensor, Copies], Tensor] | None = None,
    ) -> None:
        self.growth, self.choose, self.added = growth, choose, added
        self._known: dict[Labels, Copies | None] = {}

    def __call__(self, labels: Labels, place: Place) -> Axis | None:
        """Return what becomes of an axis at a place; None where it stays as it is."""
        copies = self.of(labels)
        if labels.block:  # rotations of their own for each block
            return Axis(index := torch.tensor([mix[0][0] for mix in self.growth.depth]), index)
        if copies is None:
            return None
        if place.role in self.growth.shared:
            return Axis(copies.share, copies.share)
        rows, added = self._rows(copies, labels, place), self.added
        if added is None:
            return Axis(rows, copies.share)
        return Axis(
            rows,
            lambda tensor, dim: copies.share(tensor, dim, lambda even: added(place, even, copies)),
        )

    def uneven(self, labels: Labels) -> bool:
        """Whether the channels of an axis have different numbers of copies."""
        copies = self.of(labels)
        return copies is not None and not copies.even

    def of(self, labels: Labels) -> Copies | None:
        """Return the copies of an axis by its labels; None where it does not grow."""
        if labels not in self._known:
            copies = None
            if any(x in self.growth.grown for x in labels):
                copies = self._single(labels[0])
                for inner in labels[1:]:
                    copies = copies.inside(self._single(inner), self.growth.sizes[inner][0])
            self._known[labels] = copies
        return self._known[labels]

    def _single(self, label: str) -> Copies:
        if label == "h" and self.growth.group is not None:
            # Copies of a query head must be served by copies of its own key-value head.
            before, after = self.growth.group
            return self._single("e").inside(Copies(self._chosen("in group", before, after)), before)
        return Copies(self._chosen(label, *self.growth.sizes[label]))

    def _chosen(self, label: str, old: int, new: int) -> Tensor:
        if old == new or self.choose is None:
            return cycle(old, new)
        return self.choose(label, old, new)

    def _rows(self, copies: Copies, labels: Labels, place: Place) -> Op:
        head = labels[-1]
        if head not in HEAD_DIMS & self.growth.grown.keys() or not self._product(place):
            return copies.index
        old, new = self.growth.grown[head]
        inner = self._single(head).counts.double()
        gain = ((new / old) ** 0.5 / inner).sqrt().repeat(len(copies.index) // new)
        return lambda tensor, dim: scale(along(tensor, dim, copies.index), dim, gain)

    def _product(self, place: Place) -> bool:
        """Whether a parameter is the last that scales queries or keys."""
        fact = place.facts
        if fact.letter not in ("q", "k"):
            return False
        normed = f"{fact.parent}.{fact.letter}_norm.weight"
        new = self.growth.new
        return fact.kind == "norm" or not any(normed in x for x in (*new.blocks, new.outside))
