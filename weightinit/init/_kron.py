"""Sums of Kronecker products."""

from typing import TYPE_CHECKING

from torch import Tensor

from weightinit import kernels

if TYPE_CHECKING:
    from weightinit.kernels import Order

__all__ = ["kron_sum_"]


def kron_sum_(
    tensor: Tensor, templates: Tensor, scalers: Tensor, *, order: "Order" = "block"
) -> Tensor:
    r"""Fill the input Tensor with a sum of Kronecker products, :math:`W = \sum_t S_t \otimes T_t`.

    The rule of `WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models`, Feng
    et al. (2024), arXiv 2406.17503, Eq. 4. `kernels.kron_sum` says what `order` means.
    Templates and scalers on another device or of another dtype are converted. Tensors on the meta
    device and tensors without elements are left as they are.

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
