"""Weight scalers of a target's depth and width: moved from an auxiliary model, or by a formula.

Over depth, all scalers are interpolated where they were trained at several depths, the upper half
where not. Over width they are tiled, so that growing by an integer factor leaves the function
unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.init.operators import cycle, interpolation, mix

__all__ = [
    "Cover",
    "closed_form",
    "interpolate_depth",
    "linear_scalers",
    "stretch_depth",
    "widen_scalers",
]


@dataclass(frozen=True)
class Cover:
    """How templates, side by side, cover one axis of a parameter.

    Heads of another head dim than the templates' are made of copies: the axis is covered once for
    each copy, then every head is put together of its copies, the last of which may be cut.

    Args:
        size: length of the axis.
        unit: length of one template along it.
        head_dims: head dim of the templates and of the target; 1 and 1 where they do not matter.
    """

    size: int
    unit: int
    head_dims: tuple[int, int] = (1, 1)

    @property
    def folded(self) -> bool:
        """Whether heads are made of copies."""
        return self.head_dims[0] != self.head_dims[1]

    @property
    def heads(self) -> int:
        """How many heads the axis has."""
        return self.size // self.head_dims[1]

    @property
    def copies(self) -> int:
        """How many copies of the templates' head dim cover the target's."""
        return math.ceil(self.head_dims[1] / self.head_dims[0])

    @property
    def full(self) -> int:
        """How many of the copies are whole."""
        return self.head_dims[1] // self.head_dims[0]

    @property
    def inner(self) -> int:
        """The length of one copy: the target's heads at the templates' head dim."""
        return self.heads * self.head_dims[0]

    @property
    def length(self) -> int:
        """The length of what whole templates cover: at least that of the axis."""
        return self.copies * math.ceil(self.inner / self.unit) * self.unit

    @property
    def gain(self) -> float:
        """The factor on q and on k that keeps q k / sqrt(head_dim) as it was."""
        ratio = self.head_dims[1] / self.head_dims[0]
        return math.sqrt(math.sqrt(ratio) / (self.full or ratio))


def interpolate_depth(scalers: Tensor, depth: int) -> Tensor:
    """Interpolate scalers ``[L, ...]`` linearly over depth; the first and last block keep theirs.

    Examples:
        >>> interpolate_depth(torch.tensor([0.0, 1.0]), 3)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if depth == len(scalers):
        return scalers
    blocks = interpolation(len(scalers), depth)
    return torch.stack([mix((scalers[i], weight) for i, weight in each) for each in blocks])


def stretch_depth(scalers: Tensor, depth: int) -> Tensor:
    """Keep the first half of the scalers, and interpolate the others over the blocks that are left.

    For templates that were trained at one depth, whose first blocks do what no average of blocks
    does; a shallower target takes the first blocks alone (ours; chosen on validation images).

    Examples:
        >>> stretch_depth(torch.tensor([0.0, 1.0, 2.0, 3.0]), 5)
        tensor([0.0000, 1.0000, 2.0000, 2.5000, 3.0000])
    """
    blocks = scalers.shape[0]
    if depth <= blocks:
        return scalers[:depth]
    half = blocks // 2
    return torch.cat([scalers[:half], interpolate_depth(scalers[half:], depth - half)])


def closed_form(method: str, number: int, depth: int) -> Tensor:
    """Return the scalers ``[depth, number]`` of a method of WAVE's appendix A.

    TLEG (Xia et al., AAAI 2024, https://arxiv.org/abs/2312.05614) is base + (l / L) slope, with l =
    0 .. L - 1 as in its code (WAVE's Eq. A.5 prints l = 1 .. L); Share Init is TLEG without a
    slope. A row of zeros is a block that the method leaves random.

    Examples:
        >>> closed_form("tleg", 2, 4)[:, 1].tolist()
        [0.0, 0.25, 0.5, 0.75]
        >>> closed_form("heur_lg", 2, 3).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if method == "tleg":
        slope = torch.arange(depth, dtype=torch.float64) / depth
        return torch.stack([torch.ones_like(slope), slope], 1)
    if method == "share":
        return torch.ones(depth, 1, dtype=torch.float64)
    first = depth - number if method == "heur_lg" else 0
    return (torch.arange(depth)[:, None] - first == torch.arange(number)).double()


def linear_scalers(
    number: int,
    shape: tuple[int, ...],
    depth: int,
    *,
    epsilon: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return WAVE's linear-padding scalers (Eq. B.1), to the letter.

    S^(l,t) = alpha_t 1_(i,j) + epsilon N(0, 1), alpha_t = 1 for t <= N / 2 and l / L after, where
    i = floor(((t - 1) mod s1 s2) / s2) and j = (t - 1) mod s2 in the paper's orientation, in x out;
    ``shape`` is that of one scaler, out x in. The paper gives the noise no mean and variance: they
    are 0 and 1 here.

    Returns:
        ``[depth, N, *shape]``.
    """
    noise = torch.randn(depth, number, *shape, generator=generator, dtype=torch.float32)
    scalers = epsilon * noise.double()
    layers = torch.arange(1, depth + 1, dtype=torch.float64) / depth
    for t in range(number):
        column, row = divmod(t % math.prod(shape), shape[0])
        place = (row, column)[: len(shape)]
        scalers[(slice(None), t, *place)] += 1.0 if t + 1 <= number / 2 else layers
    return scalers


def widen_scalers(
    scalers: Tensor,
    source: Sequence[int],
    covers: Sequence[Cover],
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tile the scalers of an auxiliary model over a parameter of another width.

    Output-side scalers repeat. Input-side scalers repeat too and are divided by the number of whole
    copies, so that growing every width by an integer factor leaves the function unchanged; the
    copies of one input get noise that sums to zero, which breaks their symmetry and not the
    function. An input copied in part is not read at first; a narrower input is rescaled.

    Args:
        scalers: ``[depth, N, parts, s1, s2]`` (or ``[depth, N, parts, s]``) of the auxiliary model.
        source: size of one part there, ``(out, in)``.
        covers: the axes of one part in the target.
        noise: standard deviation of the zero-sum noise, relative to the scalers' own.
        generator: draws the noise.

    Returns:
        ``[depth, N, parts, s1', s2']`` that cover the target.
    """
    scale = noise * float(scalers.square().mean().sqrt())
    rows = covers[0]
    wide = scalers.index_select(3, _tiled(scalers.shape[3], rows))
    if len(covers) == 1:
        return wide
    columns, length = covers[1], source[1]
    blocks = scalers.shape[4]
    tiled = _tiled(blocks, columns)
    wide = wide.index_select(4, tiled)
    if scale and rows.full > 1:
        # Copies of q meet identical copies of k: noise that sums to zero cancels in the logits.
        copies = wide[:, :, 0].unflatten(2, (rows.copies, -1))[:, :, : rows.full]
        copies += scale * _zero_sum(copies, 2, generator)
    # Whole copies of the auxiliary model's inputs, in whole copies of its head dim, are read.
    repeats, heads = max(columns.inner // length, 1), max(columns.full, 1)
    place = torch.arange(len(tiled) // columns.copies)
    whole = (place // blocks < repeats) & (torch.arange(columns.copies) < heads)[:, None]
    whole = whole.flatten()
    if scale and repeats * heads > 1:
        for block in range(blocks):
            same = torch.nonzero((tiled == block) & whole).flatten()
            wide[..., same] += scale * _zero_sum(wide[..., same], -1, generator)
    old, new = columns.head_dims
    gain = max(1.0, math.sqrt(old / new)) * max(1.0, math.sqrt(length / columns.inner))
    return wide.mul_(whole.to(wide) * (gain / (repeats * heads)))


def _tiled(blocks: int, cover: Cover) -> Tensor:
    """Return which of an auxiliary model's ``blocks`` scalers stands where along one axis."""
    return cycle(blocks, math.ceil(cover.inner / cover.unit)).repeat(cover.copies)


def _zero_sum(like: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return normal noise of ``like``'s shape that sums to zero along ``dim``."""
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)
    return noise - noise.mean(dim, keepdim=True)
