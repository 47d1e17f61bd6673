"""The Kronecker sum in Triton, for CUDA: the same functions as in `kron`.

All three kernels flatten a template to ``p = (i, j)`` and every (layer, s1, s2) to a row ``r``, so
that the work is ``out[r, p] = sum_n S[r, n] T[n, p]`` and its two transposes, with the large axis
read and written once and coalesced, whatever the destination's strides. A library matmul reaches
the same traffic only where s2 is 1; elsewhere it needs a permuted copy of the weights.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weightinit.kernels import kron
from weightinit.kernels.kron import accumulator

# Programs enough to fill any GPU; fewer and the rows are split among more of them.
PROGRAMS = 512
# Template values that a program holds in registers.
TILE = 8192
# The smallest tile of tl.dot, and how much of the long axis a step of it takes.
DOT, STEP = 16, 64


@triton.jit
def _row(r, s1, s2, stride_l, stride_a, stride_b):
    """Where the block of row r = (layer, a, b) starts."""
    layer = (r // (s1 * s2)).to(tl.int64)
    return layer * stride_l + ((r // s2) % s1) * stride_a + (r % s2) * stride_b


@triton.jit
def _forward(
    t, s, out, n, size, inner, t_outer, t_inner, o_outer, o_inner,
    rows, s1, s2, stride_l, stride_a, stride_b,
    GROUP: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Each program keeps one tile of all templates and writes it for GROUP rows."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, N)
    i, j = (p // inner).to(tl.int64), p % inner
    inside = p < size
    source = k.to(tl.int64)[:, None] * size + (i * t_outer + j * t_inner)[None, :]
    tile = tl.load(t + source, mask=(k < n)[:, None] & inside[None, :], other=0.0).to(ACC)
    start = tl.program_id(1) * GROUP
    for r in range(start, tl.minimum(start + GROUP, rows)):
        weight = tl.load(s + r * n + k, mask=k < n, other=0.0).to(ACC)
        value = tl.sum(weight[:, None] * tile, axis=0)
        to = out + _row(r, s1, s2, stride_l, stride_a, stride_b) + i * o_outer + j * o_inner
        tl.store(to, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grad_templates(
    g, s, out, n, size, inner, g_outer, g_inner, rows, s1, s2, stride_l, stride_a, stride_b,
    GROUP: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Each program sums GROUP rows of one tile into a partial ``[n, size]``."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, N)
    inside = p < size
    source = (p // inner).to(tl.int64) * g_outer + (p % inner) * g_inner
    total = tl.zeros((N, BLOCK), dtype=ACC)
    start = tl.program_id(1) * GROUP
    for r in range(start, tl.minimum(start + GROUP, rows)):
        weight = tl.load(s + r * n + k, mask=k < n, other=0.0).to(ACC)
        at = g + _row(r, s1, s2, stride_l, stride_a, stride_b) + source[None, :]
        total += weight[:, None] * tl.load(at, mask=inside[None, :], other=0.0).to(ACC)
    to = (tl.program_id(1).to(tl.int64) * n + k)[:, None] * size + p[None, :]
    tl.store(out + to, total, mask=(k < n)[:, None] & inside[None, :])


@triton.jit
def _grad_scalers(
    g, t, out, n, size, inner, g_outer, g_inner, rows, s1, s2, stride_l, stride_a, stride_b, span,
    ROWS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Each program multiplies ROWS rows with all templates over `span` values: a partial."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, N)
    row = _row(r, s1, s2, stride_l, stride_a, stride_b)
    total = tl.zeros((ROWS, N), dtype=ACC)
    start = tl.program_id(1) * span
    for first in range(start, tl.minimum(start + span, size), BLOCK):
        p = first + tl.arange(0, BLOCK)
        inside = p < size
        source = (p // inner).to(tl.int64) * g_outer + (p % inner) * g_inner
        mask = (r < rows)[:, None] & inside[None, :]
        left = tl.load(g + row[:, None] + source[None, :], mask=mask, other=0.0)
        mask = inside[:, None] & (k < n)[None, :]
        right = tl.load(t + p[:, None] + k.to(tl.int64)[None, :] * size, mask=mask, other=0.0)
        total += tl.dot(left.to(ACC), right.to(ACC), input_precision="ieee")
    to = (tl.program_id(1).to(tl.int64) * rows + r)[:, None] * n + k[None, :]
    tl.store(out + to, total, mask=(r < rows)[:, None] & (k < n)[None, :])


def forward(templates: Tensor, scalers: Tensor) -> Tensor:
    """Return ``[layer, s1, w1, s2, w2]`` of ``[n, w1, w2]`` and ``[layer, n, s1, s2]``."""
    (w1, w2), (layers, _, s1, s2) = templates.shape[1:], scalers.shape
    out = templates.new_empty(layers, s1, w1, s2, w2)
    _compose(templates, _mixing(scalers), out)
    return out


def forward_into(templates: Tensor, scalers: Tensor, out: Sequence[Tensor]) -> None:
    """Write one ``[s1, w1, s2, w2]`` view a layer, of any strides and dtype, in place."""
    for mixing, destination in zip(_mixing(scalers), out, strict=True):
        _compose(templates, mixing[None], destination[None])


def backward(
    grad: Tensor, templates: Tensor, scalers: Tensor, need_templates: bool, need_scalers: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients to both, from a ``[layer, s1, w1, s2, w2]`` view of any strides."""
    if templates.dtype == torch.float64:  # tl.dot has no float64; it is for checks, not for speed
        return kron.backward(grad, templates, scalers, need_templates, need_scalers)
    d_templates = _templates_of(grad, templates, scalers) if need_templates else None
    d_scalers = _scalers_of(grad, templates, scalers) if need_scalers else None
    return d_templates, d_scalers


def _compose(templates: Tensor, mixing: Tensor, out: Tensor) -> None:
    n, w1, w2 = templates.shape
    rows = mixing.numel() // n
    block, width, groups, group = _tiling(n, w1 * w2, rows)
    # The axis along which the destination is contiguous is the inner one.
    axes = [(w1, w2, out.stride(2)), (w2, 1, out.stride(4))]
    outer, inner = axes if out.stride(4) <= out.stride(2) else axes[::-1]
    with _on_device(templates):
        _forward[(_cdiv(w1 * w2, block), groups)](
            templates, mixing, out, n, w1 * w2, inner[0],
            outer[1], inner[1], outer[2], inner[2], rows, *_strides(out),
            **_options(templates, N=width, BLOCK=block, GROUP=group),
        )  # fmt: skip


def _templates_of(grad: Tensor, templates: Tensor, scalers: Tensor) -> Tensor:
    n, w1, w2 = templates.shape
    mixing = _mixing(scalers)
    rows = mixing.numel() // n
    block, width, groups, group = _tiling(n, w1 * w2, rows)
    partial = templates.new_empty(groups, n, w1, w2, dtype=accumulator(templates.dtype))
    with _on_device(templates):
        _grad_templates[(_cdiv(w1 * w2, block), groups)](
            grad, mixing, partial, n, w1 * w2, w2, grad.stride(2), grad.stride(4),
            rows, *_strides(grad), **_options(templates, N=width, BLOCK=block, GROUP=group),
        )  # fmt: skip
    return (partial[0] if groups == 1 else partial.sum(0)).to(templates.dtype)


def _scalers_of(grad: Tensor, templates: Tensor, scalers: Tensor) -> Tensor:
    n, w1, w2 = templates.shape
    layers, _, s1, s2 = scalers.shape
    rows = layers * s1 * s2
    blocks, spans, span = _spans(w1 * w2, rows)
    partial = templates.new_empty(spans, rows, n, dtype=torch.float32)
    with _on_device(templates):
        _grad_scalers[(blocks, spans)](
            grad, templates, partial, n, w1 * w2, w2, grad.stride(2), grad.stride(4),
            rows, *_strides(grad), span,
            **_options(templates, N=max(DOT, _power_of_2(n)), BLOCK=STEP, ROWS=DOT),
        )  # fmt: skip
    total = partial.sum(0).view(layers, s1, s2, n).permute(0, 3, 1, 2)
    return total.to(scalers.dtype).contiguous()


def _mixing(scalers: Tensor) -> Tensor:
    """Return scalers as ``[layer, s1, s2, n]``: the n of one row side by side."""
    return scalers.permute(0, 2, 3, 1).contiguous()


def _strides(blocks: Tensor) -> tuple[int, int, int, int, int]:
    """Return the sizes of s1 and s2 and the strides of layer, s1 and s2."""
    return blocks.shape[1], blocks.shape[3], blocks.stride(0), blocks.stride(1), blocks.stride(3)


# Plain arithmetic, and remembered: Triton's own cdiv takes longer than the kernels do.
def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_2(n: int) -> int:
    """Return the power of two that is not below n."""
    return 1 << (n - 1).bit_length()


@cache
def _tiling(n: int, size: int, rows: int) -> tuple[int, int, int, int]:
    """Return the tile of p, templates rounded up, groups of rows, rows in each."""
    width = _power_of_2(n)
    block = min(1024, max(128, TILE // width))
    group = _cdiv(rows, min(rows, _cdiv(PROGRAMS, _cdiv(size, block))))
    return block, width, _cdiv(rows, group), group


@cache
def _spans(size: int, rows: int) -> tuple[int, int, int]:
    """Return blocks of rows, parts of the template's values, values in each."""
    blocks = _cdiv(rows, DOT)
    span = _cdiv(_cdiv(size, min(_cdiv(PROGRAMS, blocks), _cdiv(size, STEP))), STEP) * STEP
    return blocks, _cdiv(size, span), span


def _options(templates: Tensor, **sizes: int) -> dict[str, Any]:
    """Return compile-time arguments: plain values at the call, tl.constexpr inside."""
    acc = tl.float64 if templates.dtype == torch.float64 else tl.float32
    return {**sizes, "ACC": acc, "enable_fp_fusion": True}


def _on_device(tensor: Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device_of(tensor)
