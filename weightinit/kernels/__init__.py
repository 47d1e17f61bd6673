"""Tensor kernels: eager torch on the CPU, Triton on CUDA, one autograd rule for both.

`kron_sum` composes the weights of any number of layers from weight templates and weight scalers;
`project` makes them of another size by a matrix on either side.
"""

import importlib
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightinit.errors import WeightInitError
from weightinit.kernels import kron
from weightinit.kernels.project import Factor, project

__all__ = ["Factor", "Order", "kron_sum", "project"]

Order = Literal["block", "paper"]


def kron_sum(
    templates: Tensor, scalers: Tensor, *, order: Order = "block", out: Tensor | None = None
) -> Tensor:
    r"""Compose weights as a sum of Kronecker products, :math:`W = \sum_t S_t \otimes T_t`.

    Eq. 4 of `WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models`, Feng et
    al. (2024), arXiv 2406.17503. With ``order="block"`` block (a, b) of the result is
    ``sum_t S[t, a, b] T[t]``, the concatenation of weighted templates that the paper describes;
    ``"paper"`` is its formula to the letter, ``sum_t torch.kron(T[t], S[t])``, which interleaves
    them. The two differ by a fixed permutation of rows and columns.

    Differentiable (once) in templates and scalers when `out` is None. Sums are kept in float32
    (float64 for float64 input) and rounded once; autocast does not change that.

    Args:
        templates: weight templates ``[N, w1, w2]``, or ``[N, w]`` for vectors.
        scalers: weight scalers ``[..., N, s1, s2]``, or ``[..., N, s]``; leading axes are layers.
        order: ``"block"`` or ``"paper"``.
        out: where to write instead of into new memory: a tensor of the result's shape, of any
            strides and floating dtype.

    Returns:
        ``[..., s1 * w1, s2 * w2]`` (``[..., s * w]``), in the dtype that both promote to; or `out`.

    Raises:
        WeightInitError: if shapes, dtypes or devices do not fit, or `order` is neither of the two.

    Examples:
        >>> templates = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]])  # two of 1 x 2
        >>> scalers = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> kron_sum(templates, scalers)
        tensor([[ 1.,  2., 10., 20.]])
        >>> kron_sum(templates, scalers, order="paper")
        tensor([[ 1., 10.,  2., 20.]])
    """
    shape = _shape(templates, scalers, order)
    dtype = torch.promote_types(templates.dtype, scalers.dtype)
    templates, scalers = templates.to(dtype), scalers.to(dtype)
    if out is None:
        result: Tensor = _KronSum.apply(*_canonical(templates, scalers), order)
        return result.view(shape)
    _check_out(out, shape, templates)
    if out.numel():
        with torch.no_grad():
            rows = out.unsqueeze(-2) if templates.ndim == 2 else out
            _compose_into(_matrices(rows), *_canonical(templates, scalers), order)
    return out


def _shape(templates: Tensor, scalers: Tensor, order: str) -> tuple[int, ...]:
    """Return the shape of the result; WeightInitError if operands do not fit."""
    if order not in ("block", "paper"):
        raise WeightInitError(f"order={order!r} is unknown; use 'block' or 'paper'")
    axes = templates.ndim - 1
    t, s = tuple(templates.shape), tuple(scalers.shape)
    if axes not in (1, 2) or scalers.ndim <= axes or s[-axes - 1] != t[0] or t[0] == 0:
        raise WeightInitError(
            f"templates {list(t)} and scalers {list(s)} do not fit; pass [N, w1, w2] with "
            "[..., N, s1, s2], or [N, w] with [..., N, s], with the same N >= 1"
        )
    if not (templates.is_floating_point() and scalers.is_floating_point()):
        raise WeightInitError(
            f"templates are {templates.dtype} and scalers {scalers.dtype}; "
            "convert both to a floating dtype"
        )
    if templates.device != scalers.device:
        raise WeightInitError(
            f"templates are on {templates.device} and scalers on {scalers.device}; "
            "move them to one device"
        )
    return (*s[: -axes - 1], *(a * b for a, b in zip(s[-axes:], t[1:], strict=True)))


def _canonical(templates: Tensor, scalers: Tensor) -> tuple[Tensor, Tensor]:
    """Return templates ``[N, w1, w2]`` and scalers ``[layers, N, s1, s2]``: a vector is one row."""
    if templates.ndim == 2:
        templates, scalers = templates[:, None], scalers[..., None, :]
    layers = scalers.shape[:-3].numel()
    return templates.contiguous(), scalers.reshape(layers, *scalers.shape[-3:])


def _check_out(out: Tensor, shape: tuple[int, ...], templates: Tensor) -> None:
    """Raise WeightInitError if a destination has another shape, dtype or device."""
    if tuple(out.shape) != shape or not out.is_floating_point():
        raise WeightInitError(
            f"out is {out.dtype} {list(out.shape)}, but templates {list(templates.shape)} and "
            f"their scalers make {list(shape)}; pass a floating tensor of that shape"
        )
    if out.device != templates.device:
        raise WeightInitError(
            f"out is on {out.device} and the inputs on {templates.device}; move them to one device"
        )


def _matrices(tensor: Tensor) -> list[Tensor]:
    """Return every matrix of ``[..., rows, columns]`` as a view."""
    if tensor.ndim == 2:
        return [tensor]
    return [matrix for part in tensor.unbind(0) for matrix in _matrices(part)]


def _backend(tensor: Tensor) -> ModuleType:
    return (_triton() or kron) if tensor.is_cuda else kron


@cache
def _triton() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:  # not on every platform
        return None
    return importlib.import_module("weightinit.kernels.kron_triton")


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def _compose_meta(templates: Tensor, scalers: Tensor, order: str) -> Tensor:
    (w1, w2), (layers, _, s1, s2) = templates.shape[1:], scalers.shape
    return templates.new_empty(layers, s1 * w1, s2 * w2)


def _compose(templates: Tensor, scalers: Tensor, order: str) -> Tensor:
    result = _compose_meta(templates, scalers, order)
    if result.numel() == 0:
        return result
    if order == "block":
        with _full_precision(templates.device):
            return _backend(templates).forward(templates, scalers).view(result.shape)
    _compose_into(_matrices(result), templates, scalers, order)
    return result


# The schema is spelled out because torch 2.6 cannot infer it from a list.
@torch.library.custom_op(
    "weightinit::kron_sum_into",
    mutates_args=("out",),
    schema="(Tensor(a!)[] out, Tensor templates, Tensor scalers, str order) -> ()",
)
def _compose_into(out: list[Tensor], templates: Tensor, scalers: Tensor, order: str) -> None:
    w, s = templates.shape[1:], scalers.shape[2:]
    views = [kron.blocks(layer, w, s, order) for layer in out]
    with _full_precision(templates.device):
        _backend(templates).forward_into(templates, scalers, views)


@_compose_into.register_fake
def _compose_into_meta(out: list[Tensor], templates: Tensor, scalers: Tensor, order: str) -> None:
    """Nothing to compute: `out` has its shape already."""


def _differentiate(
    grad: Tensor,
    templates: Tensor,
    scalers: Tensor,
    order: str,
    need_templates: bool,
    need_scalers: bool,
) -> tuple[Tensor, Tensor]:
    if grad.numel() == 0:
        return torch.zeros_like(templates), torch.zeros_like(scalers)
    view = kron.blocks(grad, templates.shape[1:], scalers.shape[2:], order)
    with _full_precision(grad.device):
        d_templates, d_scalers = _backend(templates).backward(
            view, templates, scalers, need_templates, need_scalers
        )
    return (
        templates.new_empty(0) if d_templates is None else d_templates,
        scalers.new_empty(0) if d_scalers is None else d_scalers,
    )


def _differentiate_meta(
    grad: Tensor,
    templates: Tensor,
    scalers: Tensor,
    order: str,
    need_templates: bool,
    need_scalers: bool,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(templates) if need_templates else templates.new_empty(0),
        scalers.new_empty(scalers.shape) if need_scalers else scalers.new_empty(0),
    )


# Operators, so that torch.compile keeps the kernels whole and breaks no graph; by the plain
# registration, since that of `torch.library.custom_op` takes longer than the kernels on a GPU.
_LIBRARY = torch.library.Library("weightinit", "FRAGMENT")
for _schema, _operator, _fake in (
    ("kron_sum(Tensor templates, Tensor scalers, str order) -> Tensor", _compose, _compose_meta),
    (
        "kron_sum_backward(Tensor grad, Tensor templates, Tensor scalers, str order, "
        "bool need_templates, bool need_scalers) -> (Tensor, Tensor)",
        _differentiate,
        _differentiate_meta,
    ),
):
    _name = _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, _operator, "CompositeExplicitAutograd")
    torch.library.register_fake(f"weightinit::{_name}", _fake, lib=_LIBRARY)


class _KronSum(torch.autograd.Function):
    """The autograd rule, which `register_autograd` of custom operators hides from torch.func."""

    @staticmethod
    def forward(templates: Tensor, scalers: Tensor, order: str) -> Tensor:
        return torch.ops.weightinit.kron_sum(templates, scalers, order)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        templates, scalers, ctx.order = inputs
        ctx.save_for_backward(templates, scalers)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        need = ctx.needs_input_grad[:2]
        differentiate = torch.ops.weightinit.kron_sum_backward
        found = differentiate(grads[0], *ctx.saved_tensors, ctx.order, *need)
        return found[0] if need[0] else None, found[1] if need[1] else None, None
