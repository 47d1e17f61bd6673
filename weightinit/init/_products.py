"""Sums of Kronecker products, and channels that are mixtures of another tensor's."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightinit import kernels
from weightinit.errors import WeightInitError
from weightinit.init._source import fill

if TYPE_CHECKING:
    from weightinit.kernels import Factor, Order

__all__ = ["kron_sum_", "project_"]


def kron_sum_(
    tensor: Tensor, templates: Tensor, scalers: Tensor, *, order: "Order" = "block"
) -> Tensor:
    r"""Fill the input Tensor with a sum of Kronecker products, :math:`W = \sum_t S_t \otimes T_t`.

    The rule of `WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models`, Feng
    et al. (2024), arXiv 2406.17503, Eq. 4. `kernels.kron_sum` says what `order` means. Templates
    and scalers on another device or of another dtype are converted.

    Args:
        tensor: ``[..., s1 * w1, s2 * w2]`` or, for vectors, ``[..., s * w]``.
        templates: weight templates ``[N, w1, w2]`` or ``[N, w]``.
        scalers: weight scalers ``[..., N, s1, s2]`` or ``[..., N, s]``.
        order: ``"block"`` or ``"paper"``.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the shapes do not fit, or `order` is neither of the two.

    Examples:
        >>> import torch
        >>> w = torch.empty(2, 3)
        >>> templates = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]]])
        >>> scalers = torch.tensor([[[1.0], [2.0]], [[0.0], [4.0]]])
        >>> kron_sum_(w, templates, scalers)
        tensor([[ 1.,  2.,  3.],
                [ 2.,  4., 10.]])
    """
    if tensor.numel() == 0:
        return tensor
    device = tensor.device
    kernels.kron_sum(templates.to(device), scalers.to(device), order=order, out=tensor)
    return tensor


def project_(
    tensor: Tensor, source: Tensor, left: "Factor" = None, right: "Factor" = None
) -> Tensor:
    r"""Fill the input Tensor with a projection of another, :math:`W = P\, W_P\, Q^\top`.

    The operator of `Learning to Grow Pretrained Models for Efficient Transformer Training` (LiGO),
    Wang et al. (2023), arXiv 2303.00980, whose P and Q are learned, of hypernetworks that predict
    them, and of projections onto principal directions. Operands on another device or of another
    dtype are converted; `kernels.project` says in which order they are multiplied.

    Args:
        tensor: ``[..., O, I]``, or ``[O]`` for vectors.
        source: W_P ``[..., o, i]``, or ``[o]``.
        left: P ``[..., O, o]``, or factors A ``[..., O, r]`` and B ``[..., r, o]`` of
            :math:`P = A B`; None leaves that side alone.
        right: Q ``[..., I, i]``, or its factors; None leaves that side alone.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the shapes do not fit, or a vector has a right side.

    Examples:
        >>> import torch
        >>> half = torch.tensor([[0.5, 0.5]])
        >>> project_(torch.empty(1, 2), torch.tensor([[1.0, 2.0], [3.0, 6.0]]), half)
        tensor([[2., 4.]])
        >>> project_(torch.empty(2, 1), torch.ones(2, 2), None, (torch.ones(1, 1), half))
        tensor([[1.],
                [1.]])
    """
    vector = source.dim() == tensor.dim() == 1
    if vector and right is not None:
        raise WeightInitError("a vector has no right side: leave `right` out")
    sides = (_moved(left, tensor.device), _moved(right, tensor.device))
    out = tensor[:, None] if vector else tensor
    fill(out, source[:, None] if vector else source, lambda value: kernels.project(value, *sides))
    return tensor


def _moved(factor: "Factor", device: torch.device) -> "Factor":
    if factor is None or isinstance(factor, Tensor):
        return None if factor is None else factor.to(device)
    return tuple(part.to(device) for part in factor)  # pyright: ignore[reportReturnType]
