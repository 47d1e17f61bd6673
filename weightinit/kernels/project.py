"""The projection W = P W_P Q^T: its public function, custom operators and autograd rule."""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from types import ModuleType
from typing import TypeAlias, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightinit.errors import WeightInitError
from weightinit.kernels import chain
from weightinit.kernels.common import destinations, matrices, triton_module

__all__ = ["Factor", "project"]

#: A matrix, the two factors of one of low rank, or None for the identity.
Factor: TypeAlias = Tensor | tuple[Tensor, Tensor] | None


@overload
def project(
    source: Tensor, left: Factor = ..., right: Factor = ..., *, out: Tensor | None = ...
) -> Tensor: ...
@overload
def project(
    source: Tensor, left: Factor = ..., right: Factor = ..., *, out: Sequence[Tensor]
) -> Sequence[Tensor]: ...
def project(
    source: Tensor,
    left: Factor = None,
    right: Factor = None,
    *,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | Sequence[Tensor]:
    r"""Make weights of another size by a matrix on either side, :math:`W = P\, W_P\, Q^\top`.

    The width operator of `Learning to Grow Pretrained Models for Efficient Transformer Training`
    (LiGO), Wang et al. (2023), arXiv 2303.00980, where it is written :math:`B\, W A^\top`. The
    products are taken in the order that costs the fewest multiplications at these sizes, so that
    a P of low rank, given as its factors, is never multiplied out where that costs more.

    Differentiable (once) in all tensors when `out` is None. Sums are kept in float32 (float64 for
    float64 input) and rounded once; the library's products on CUDA also round half precision in
    between, and take float32 as `torch.backends` is set. Autocast changes none of that.

    Args:
        source: W_P ``[..., o, i]``; leading axes, of the layers say, are those of a batch
        left: P ``[..., O, o]``, or factors A ``[..., O, r]`` and B ``[..., r, o]`` of
            :math:`P = A B`, or None for the identity; leading axes broadcast with the source's
        right: Q ``[..., I, i]``, or factors C ``[..., I, r]`` and D ``[..., r, i]`` of
            :math:`Q = C D`, or None, likewise
        out: where to write instead of into new memory: a tensor of the result's shape, any
            strides and floating dtype, or one such tensor for each index of a single leading
            axis; it must not share memory with the other arguments

    Returns:
        ``[..., O, I]``, in the dtype that all promote to; or `out`

    Raises:
        WeightInitError: shapes, dtypes or devices do not fit

    Example:
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
    factors, shape = _chain(source, left, right)
    if out is not None:
        outs = destinations(out, shape, 2, source.device, _describe(source, left, right))
        if 0 not in shape:
            with torch.no_grad():
                _write(factors, shape, outs, whole=isinstance(out, Tensor))
        return out
    if len(factors) == 1:
        return source.clone(memory_format=torch.contiguous_format)
    result: Tensor = _Project.apply(*_canonical(factors, shape[:-2]))[0]
    return result.view(shape)


def _chain(source: Tensor, left: Factor, right: Factor) -> tuple[list[Tensor], tuple[int, ...]]:
    """The two to five factors of one product and its shape, or a WeightInitError."""
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
            return factors, (*lead, factors[0].shape[-2], factors[-1].shape[-1])
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


def _canonical(factors: Sequence[Tensor], lead: tuple[int, ...]) -> list[Tensor]:
    """Factors of one dtype, ``[rows, columns]`` or, where layers differ, ``[layers, ...]``."""
    dtype = reduce(torch.promote_types, (factor.dtype for factor in factors))
    layers = math.prod(lead)
    return [
        factor.to(dtype).reshape(factor.shape[-2:])
        if factor.shape[:-2].numel() == 1
        else factor.to(dtype).expand(*lead, -1, -1).reshape(layers, *factor.shape[-2:])
        for factor in factors
    ]


def _write(
    factors: Sequence[Tensor], shape: tuple[int, ...], outs: Sequence[Tensor], whole: bool
) -> None:
    if len(factors) == 1:
        for tensor, layer in zip(outs, factors if whole else factors[0], strict=True):
            tensor.copy_(layer)
        return
    _compose_into(list(outs), _canonical(factors, shape[:-2]))


def _fused(factors: Sequence[Tensor]) -> ModuleType | None:
    """The module whose kernel does it all, where there is one and it is the faster way."""
    triton = triton_module("project_triton") if factors[0].is_cuda else None
    return triton if triton is not None and triton.fits(factors) else None


# Custom operators, so that torch.compile keeps the kernels whole and does not break its graph. The
# schemas are spelled out because torch 2.6 cannot infer them from a Sequence.
@torch.library.custom_op(
    "weightinit::project", mutates_args=(), schema="(Tensor[] factors) -> Tensor[]"
)
def _compose(factors: Sequence[Tensor]) -> list[Tensor]:
    """The product, then what its backward wants to have again."""
    with torch.autocast(factors[0].device.type, enabled=False):
        fused = _fused(factors)
        return chain.forward(factors) if fused is None else [fused.forward(factors)]


@_compose.register_fake
def _compose_meta(factors: Sequence[Tensor]) -> list[Tensor]:
    results = chain.forward(factors)
    return results if _fused(factors) is None else results[:1]


@torch.library.custom_op(
    "weightinit::project_into",
    mutates_args=("out",),
    schema="(Tensor(a!)[] out, Tensor[] factors) -> ()",
)
def _compose_into(out: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    layered = out[0].ndim == 3 and any(factor.ndim == 3 for factor in factors)
    if not layered:
        out = [matrix for tensor in out for matrix in matrices(tensor)]
    with torch.autocast(factors[0].device.type, enabled=False):
        (_fused(factors) or chain).forward_into(factors, out)


@_compose_into.register_fake
def _compose_into_meta(out: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Nothing to compute: `out` has its shape already."""


@torch.library.custom_op(
    "weightinit::project_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor[] factors, Tensor[] saved, bool[] need) -> Tensor[]",
)
def _differentiate(
    grad: Tensor, factors: Sequence[Tensor], saved: Sequence[Tensor], need: Sequence[bool]
) -> list[Tensor]:
    with torch.autocast(grad.device.type, enabled=False):
        fused = _fused(factors)
        alone = list(need) == [False, False, True, False, False] and grad.ndim == factors[2].ndim
        if fused is not None and alone:  # the same product, the other way round
            a, b, _, d, c = (factor.mT for factor in factors)
            grads = [None, None, fused.forward([b, a, grad, c, d]), None, None]
        else:
            grads = chain.backward(grad, factors, saved, need)
    return [grad.new_empty(0) if part is None else part for part in grads]


@_differentiate.register_fake
def _differentiate_meta(
    grad: Tensor, factors: Sequence[Tensor], saved: Sequence[Tensor], need: Sequence[bool]
) -> list[Tensor]:
    return [
        grad.new_empty(factor.shape if needed else 0)
        for factor, needed in zip(factors, need, strict=True)
    ]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(*factors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_compose(factors))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *saved)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        if grads[0] is None:
            return (None,) * len(need)
        factors, saved = ctx.saved_tensors[: len(need)], ctx.saved_tensors[len(need) :]
        result = _differentiate(grads[0], factors, saved, need)
        return tuple(part if needed else None for part, needed in zip(result, need, strict=True))
