"""The projection W = P W_P Q^T of dense or low-rank P and Q."""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.kernels.kron import accumulator

__all__ = ["Factor", "project"]

#: A matrix, the two factors of one of low rank, or None for the identity.
Factor: TypeAlias = Tensor | tuple[Tensor, Tensor] | None


def project(source: Tensor, left: Factor = None, right: Factor = None) -> Tensor:
    r"""Make weights of another size by a matrix on either side, :math:`W = P\, W_P\, Q^\top`.

    The width operator of `Learning to Grow Pretrained Models for Efficient Transformer Training`
    (LiGO), Wang et al. (2023), arXiv 2303.00980, where it is written :math:`B\, W A^\top`. The
    products are taken in the order that torch.linalg.multi_dot finds the cheapest, so that a P of
    low rank, given as its factors, is never multiplied out where that costs more.

    Differentiable in all tensors. Products are kept in float32 (float64 for float64 input) and
    rounded once; autocast around the call does not change that.

    Args:
        source: W_P ``[..., o, i]``; leading axes, of the layers say, are those of a batch.
        left: P ``[..., O, o]``, or factors A ``[..., O, r]`` and B ``[..., r, o]`` of
            :math:`P = A B`, or None for the identity; leading axes broadcast with the source's.
        right: Q ``[..., I, i]``, or factors C ``[..., I, r]`` and D ``[..., r, i]`` of
            :math:`Q = C D`, or None, likewise.

    Returns:
        ``[..., O, I]``, in the dtype that all promote to.

    Raises:
        WeightInitError: if shapes, dtypes or devices do not fit.

    Examples:
        >>> source = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> widen = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> project(source, widen)
        tensor([[1., 2.],
                [3., 4.],
                [3., 4.]])
        >>> means = torch.ones(1, 1), torch.tensor([[0.5, 0.5]])
        >>> project(source, widen, means)
        tensor([[1.5000],
                [3.5000],
                [3.5000]])
    """
    factors, lead = _factors(source, left, right)
    dtype = reduce(torch.promote_types, (factor.dtype for factor in factors))
    if len(factors) == 1:
        return source.clone(memory_format=torch.contiguous_format)
    return _product(factors, lead, accumulator(dtype)).to(dtype)


def _product(factors: Sequence[Tensor], lead: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the product ``[*lead, O, I]``, kept in a dtype."""
    matrices = [
        factor.to(dtype).reshape(factor.shape[-2:])
        if factor.shape[:-2].numel() == 1
        else factor.to(dtype).expand(*lead, -1, -1).reshape(math.prod(lead), *factor.shape[-2:])
        for factor in factors
    ]
    layers = tuple(0 if matrix.ndim == 3 else None for matrix in matrices)
    device = factors[0].device.type
    with torch.autocast("cpu" if device == "meta" else device, enabled=False):
        if any(axis == 0 for axis in layers):
            result = torch.vmap(lambda *layer: torch.linalg.multi_dot(layer), layers)(*matrices)
        else:
            result = torch.linalg.multi_dot(matrices)
    return result.reshape(*lead, *result.shape[-2:])


def _factors(source: Tensor, left: Factor, right: Factor) -> tuple[list[Tensor], tuple[int, ...]]:
    """Return the factors of a product and its leading axes; WeightInitError if they do not fit."""
    lefts, rights = _parts("left", left), _parts("right", right)
    tensors = [*lefts, source, *rights]
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise WeightInitError(
            f"source, left and right are {', '.join(str(tensor.dtype) for tensor in tensors)}; "
            "convert all to a floating dtype"
        )
    if any(tensor.device != source.device for tensor in tensors):
        raise WeightInitError(
            f"source, left and right are on {', '.join(str(tensor.device) for tensor in tensors)}; "
            "move all to one device"
        )
    if all(tensor.ndim >= 2 for tensor in tensors):
        factors = [*lefts, source, *(part.mT for part in reversed(rights))]
        lead = _broadcast(factors)
        if lead is not None and all(a.shape[-1] == b.shape[-2] for a, b in pairwise(factors)):
            return factors, lead
    raise WeightInitError(
        f"{_describe(source, left, right)} do not fit; pass source [..., o, i] with left "
        "[..., O, o] or a pair [..., O, r], [..., r, o], and right [..., I, i] or a pair "
        "[..., I, r], [..., r, i], of leading axes that broadcast"
    )


def _parts(name: str, factor: Factor) -> list[Tensor]:
    if factor is None:
        return []
    if isinstance(factor, Tensor):
        return [factor]
    if len(factor) != 2:
        raise WeightInitError(
            f"{name} has {len(factor)} tensors; pass a matrix, a pair of factors, or None"
        )
    return [*factor]


def _describe(source: Tensor, left: Factor, right: Factor) -> str:
    shapes = [
        " and ".join(str(list(part.shape)) for part in _parts("", factor)) or "None"
        for factor in (left, right)
    ]
    return f"source {list(source.shape)}, left {shapes[0]} and right {shapes[1]}"


def _broadcast(factors: Sequence[Tensor]) -> tuple[int, ...] | None:
    try:
        return torch.broadcast_shapes(*(factor.shape[:-2] for factor in factors))
    except RuntimeError:
        return None
