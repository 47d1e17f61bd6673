"""Operators along one axis of a tensor: what the initializers and the methods are built on.

Each is differentiable in the tensors that it is given, and leaves them as they are. What it returns
may be a view of them where nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.errors import AnatomyError

__all__ = [
    "SELECTIONS",
    "Copies",
    "Elements",
    "Mix",
    "Op",
    "along",
    "corner",
    "cycle",
    "interpolation",
    "joint_index",
    "mix",
    "pad",
    "repeat",
    "scale",
    "select_indices",
    "share",
]

#: What is done along one axis: select indices, multiply by a matrix [new, old], or call f(x, dim).
Op = Tensor | Callable[[Tensor, int], Tensor]
#: A weighted sum of blocks, as pairs of a block's index and its weight.
Mix = tuple[tuple[int, float], ...]

Elements = Literal["uniform", "consecutive", "random"]
SELECTIONS = get_args(Elements)


def along(tensor: Tensor, dim: int, op: Op) -> Tensor:
    """Act along one axis of a tensor; AnatomyError if the operator does not fit it."""
    if not isinstance(op, Tensor):
        return op(tensor, dim)
    if op.dtype == torch.int64 and op.ndim == 1:
        return tensor.index_select(dim, op)
    if op.ndim == 2 and op.is_floating_point() and op.shape[1] == tensor.shape[dim]:
        return (tensor.movedim(dim, -1) @ op.T).movedim(-1, dim)
    raise AnatomyError(
        f"an operator of shape {tuple(op.shape)} and type {op.dtype} cannot act on an axis of "
        f"length {tensor.shape[dim]}: use a 1-D LongTensor or a matrix [new, {tensor.shape[dim]}]"
    )


def scale(tensor: Tensor, dim: int, factors: Tensor) -> Tensor:
    """Multiply every index of an axis by a factor of its own.

    Examples:
        >>> scale(torch.ones(2, 2), 0, torch.tensor([2.0, 3.0]))
        tensor([[2., 2.],
                [3., 3.]])
    """
    after = tensor.dim() - 1 - dim % tensor.dim()
    return tensor * factors.to(tensor).view(-1, *(1,) * after)


def pad(tensor: Tensor, dim: int, size: int, value: Tensor | None = None) -> Tensor:
    """Repeat one slice, of length 1 along ``dim``, after the end of an axis; None is zeros.

    Examples:
        >>> pad(torch.tensor([1.0, 2.0]), 0, 4)
        tensor([1., 2., 0., 0.])
    """
    shape = [*tensor.shape]
    shape[dim] = size - tensor.shape[dim]
    if shape[dim] == 0:
        return tensor
    rest = tensor.new_zeros(shape) if value is None else value.expand(shape)
    return torch.cat([tensor, rest], dim)


def corner(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> Tensor:
    """Return a view of the first entries of several axes, the first of which is ``dim``."""
    for axis, size in enumerate(sizes, dim):
        tensor = tensor.narrow(axis, 0, size)
    return tensor


def mix(parts: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return a weighted sum of tensors, which are read one at a time, like the first.

    Examples:
        >>> mix([(torch.tensor([1.0, 2.0]), 0.5), (torch.tensor([3.0, 6.0]), 0.5)])
        tensor([2., 4.])
    """
    parts = iter(parts)
    first, weight = next(parts)
    total = first if weight == 1 else first * weight
    for tensor, weight in parts:
        tensor = tensor.to(total)
        total = total + (tensor if weight == 1 else tensor * weight)
    return total


def interpolation(old: int, new: int) -> list[Mix]:
    """Return which of ``old`` blocks make each of ``new`` ones by linear interpolation.

    The first and last block keep theirs; a single block takes the middle.

    Examples:
        >>> interpolation(2, 3)
        [((0, 1.0),), ((0, 0.5), (1, 0.5)), ((1, 1.0),)]
    """
    mixes: list[Mix] = []
    for block in range(new):
        place = block * (old - 1) / (new - 1) if new > 1 else (old - 1) / 2
        low = int(place)
        part = place - low
        mixes.append(((low, 1 - part), (low + 1, part)) if part else ((low, 1.0),))
    return mixes


def select_indices(
    old: int, new: int, elements: Elements = "uniform", generator: torch.Generator | None = None
) -> Tensor:
    """Return which of ``old`` elements a shorter axis of ``new`` takes, an int64 ``[new]``.

    Args:
        old: length of the larger tensor's axis.
        new: length of the smaller one's.
        elements: ``"uniform"``: every old/new-th where that is whole, else as a float32 linspace
            rounds, as in the published code; ``"consecutive"``: the first; ``"random"``: a draw.
        generator: source of the draw.

    Examples:
        >>> select_indices(6, 3).tolist(), select_indices(5, 3).tolist()
        ([0, 2, 4], [0, 2, 4])
    """
    if elements == "consecutive":
        return torch.arange(new)
    if elements == "random":
        return torch.randperm(old, generator=generator)[:new].sort().values
    if new and old % new == 0:
        return torch.arange(new) * (old // new)
    return torch.linspace(0, old - 1, new, dtype=torch.float32).round().long()


def cycle(old: int, new: int) -> Tensor:
    """Return the indices of ``old`` channels, over and over, an int64 ``[new]``."""
    return torch.arange(new) % max(old, 1)


def joint_index(outer: Tensor, inner: Tensor, size: int) -> Tensor:
    """Return the indices along two axes taken together, of which the inner one has ``size``.

    Examples:
        >>> joint_index(torch.tensor([0, 2]), torch.tensor([0, 1]), 3).tolist()
        [0, 1, 6, 7]
    """
    return (outer[:, None] * size + inner).flatten()


def repeat(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Repeat a tensor along an axis that makes channels; cut it where it is too long.

    Examples:
        >>> repeat(torch.tensor([1.0, 2.0]), 0, 5)
        tensor([1., 2., 1., 2., 1.])
    """
    length = tensor.shape[dim]
    if size <= length:
        return tensor.narrow(dim, 0, size)
    return tensor.index_select(dim, cycle(length, size).to(tensor.device))


def share(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Repeat a tensor along an axis that reads channels which :func:`repeat` made.

    Whole copies share the weight, and a cut copy is not read. A shorter axis is cut and rescaled by
    the root of the ratio.

    Examples:
        >>> share(torch.tensor([1.0, 2.0]), 0, 5)
        tensor([0.5000, 1.0000, 0.5000, 1.0000, 0.0000])
    """
    length = tensor.shape[dim]
    if size == length:
        return tensor
    if size < length:
        return tensor.narrow(dim, 0, size) * (length / size) ** 0.5
    copies = size // length
    return pad(repeat(tensor, dim, copies * length) / copies, dim, size)


@dataclass(frozen=True)
class Copies:
    """Which old channel each new one copies; what follows the copies is not read.

    Args:
        index: int64 ``[copies]``, every old channel at least once.
        rest: number of channels after the copies.

    Examples:
        >>> copies = Copies(torch.tensor([0, 1, 0]))
        >>> copies.counts.tolist(), copies.turns.tolist(), copies.even
        ([2, 1, 2], [0, 0, 1], False)
        >>> copies.share(torch.tensor([4.0, 6.0]), 0)
        tensor([2., 6., 2.])
    """

    index: Tensor
    rest: int = 0

    @property
    def size(self) -> int:
        """The number of new channels."""
        return len(self.index) + self.rest

    @cached_property
    def counts(self) -> Tensor:
        """The number of copies of each copy's own channel, int64 ``[copies]``."""
        return self.index.bincount()[self.index]

    @cached_property
    def turns(self) -> Tensor:
        """The number of copies of the same channel before each one, int64 ``[copies]``."""
        order = self.index.argsort(stable=True)
        counts = self.index.bincount()
        first = (counts.cumsum(0) - counts)[self.index[order]]
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first)

    @property
    def even(self) -> bool:
        """Whether every channel has as many copies."""
        return bool((self.counts == self.counts[0]).all())

    def inside(self, inner: Copies, size: int) -> Copies:
        """Return the copies of an axis of two labels, of whose inner one there were ``size``."""
        return Copies(joint_index(self.index, inner.index, size))

    def repeat(self, tensor: Tensor, dim: int, value: Tensor | None = None) -> Tensor:
        """Copy channels where they are made; ``value`` stands in each after them, None is zeros."""
        index = self.index.to(tensor.device)
        return pad(tensor.index_select(dim, index), dim, self.size, value)

    def share(
        self, tensor: Tensor, dim: int, added: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Divide what reads old channels among their copies: W_j = W_g(j) / c_j + R_j - mean R.

        ``added`` returns R, of the size of the even shares that it is given; the mean is over the
        copies of each channel, so that their sum stays W. Channels after the copies hold R alone.
        """
        index, part = self.index.to(tensor.device), self.counts.to(tensor).reciprocal()
        even = scale(tensor.index_select(dim, index), dim, part)
        if added is None:
            return pad(even, dim, self.size)
        extra, free = added(pad(even, dim, self.size)).split([len(index), self.rest], dim)
        total = torch.zeros_like(tensor).index_add_(dim, index, extra)
        mean = scale(total.index_select(dim, index), dim, part)
        return torch.cat([even + (extra - mean), free], dim)
