"""Published rules of sizes and scales: what is clipped, tiled, normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.graph import Node
from weightinit.init.operators import repeat

__all__ = ["limited", "scale_of", "tiled", "vector"]


def limited(size: int, axis: int, config: HyperConfig, limits: tuple[int, ...] | None) -> int:
    """Return how many entries are decoded for an axis: published, rounded up to a few sizes.

    The second half of a decoded vector is the bias, so the rounding decides where it begins.

    Args:
        size: size of the target's axis.
        axis: 0 for rows, 1 for columns.
        config: configuration of the hypernetwork; PITH does not round.
        limits: largest sizes, beyond which is clipped; None clips nothing.

    Examples:
        >>> config = HyperConfig(rank=90)
        >>> [limited(n, 0, config, config.max_shape) for n in (10, 192, 384, 1024, 3072)]
        [10, 256, 512, 2048, 2048]
        >>> limited(3072, 0, config, None)
        3072
    """
    most = config.max_shape[axis]
    if limits is None and size > most:
        return size
    size = min(size, most)
    if config.kind == "pith":
        return size
    size = 4 * size // 3 if size % 3 == 0 else size
    return most if size >= most / 2 else size


def tiled(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values ``[N, *shape, ...]``: repeated along an axis that is too short, or cut.

    Examples:
        >>> tiled(torch.tensor([[1.0, 2.0]]), (5,))
        tensor([[1., 2., 1., 2., 1.]])
    """
    for dim, size in enumerate(shape, 1):
        values = repeat(values, dim, size)
    return values


def scale_of(node: Node) -> float:
    """Return what a matrix is multiplied with: sqrt(beta / fan-in), beta being 2 or 1."""
    assert node.shape is not None
    _, columns, height, width = node.shape
    beta = 1 if node.spatial and (columns == 1 or height < width) else 2
    return (beta / (columns * height * width)) ** 0.5


def vector(values: Tensor, row: int) -> Tensor:
    """Return decoded weights of norms (row 0), 2 sigmoid(p / 2), or biases (1), tanh(p / 5)."""
    return torch.tanh(values / 5) if row else 2 * torch.sigmoid(values / 2)
