"""Channels that are mixtures of another tensor's."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightinit import kernels
from weightinit.errors import WeightInitError
from weightinit.init._source import skipped

if TYPE_CHECKING:
    from weightinit.kernels import Factor

__all__ = ["project_"]


def project_(
    tensor: Tensor, source: Tensor, left: "Factor" = None, right: "Factor" = None
) -> Tensor:
    r"""Fill the input Tensor with a projection of another, :math:`W = P\, W_P\, Q^\top`.

    The operator of `Learning to Grow Pretrained Models for Efficient Transformer Training` (LiGO),
    Wang et al. (2023), arXiv 2303.00980, whose P and Q are learned, of hypernetworks that predict
    them, and of projections onto principal directions. Operands on another device or of another
    dtype are converted; `kernels.project` says in which order they are multiplied. Tensors on the
    meta device and tensors without elements are left as they are.

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
    if skipped(tensor):
        return tensor
    vector = source.dim() == tensor.dim() == 1
    if vector and right is not None:
        raise WeightInitError("a vector has no right side: leave `right` out")
    with torch.no_grad():
        out, value = (tensor[:, None], source[:, None]) if vector else (tensor, source)
        sides = (_moved(left, tensor.device), _moved(right, tensor.device))
        kernels.project(value.to(tensor.device), *sides, out=out)
    return tensor


def _moved(factor: "Factor", device: torch.device) -> "Factor":
    if factor is None or isinstance(factor, Tensor):
        return None if factor is None else factor.to(device)
    return tuple(part.to(device) for part in factor)  # pyright: ignore[reportReturnType]
