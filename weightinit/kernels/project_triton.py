"""A matrix between two pairs of low-rank factors in Triton, for CUDA: A (B W D^T) C^T.

`_core` reads W once and leaves the small B W D^T, a part of the sum for each program; `_expand`
writes the result once, to any strides and dtype. A chain of library matmuls does the same with
twice as many launches, each too thin to fill a GPU, and rounds half precision at every step. All
other products are dense enough to be left to the library: see `chain`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The largest rank: A's tile, the core and C's tile of a program stay in shared memory.
RANK = 64
# Programs enough to fill any GPU; fewer and the long axis is split among more of them.
PROGRAMS = 512
# The smallest tile of tl.dot, and the tile of a long axis.
DOT, TILE = 16, 64


@triton.jit
def _tile(t, layer, rows, columns, stride_l, stride_r, stride_c, height, width):
    """Load ``t[layer, rows, columns]`` in float32, zero outside of the matrix."""
    at = t + layer * stride_l + rows[:, None] * stride_r + columns[None, :] * stride_c
    mask = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _core(
    b, w, d, out, r, o, i, q, span,
    b_l, b_r, b_c, w_l, w_r, w_c, d_l, d_r, d_c,
    R: tl.constexpr, Q: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """B W D^T over `span` rows and one tile of columns of W: a partial ``[r, q]``."""
    layer = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    left, right = tl.arange(0, R), tl.arange(0, Q)
    total = tl.zeros((R, TILE), dtype=tl.float32)
    start = tl.program_id(1) * span
    for first in range(start, tl.minimum(start + span, o), TILE):
        rows = first + tl.arange(0, TILE)
        x = _tile(b, layer, left, rows, b_l, b_r, b_c, r, o)
        y = _tile(w, layer, rows, columns, w_l, w_r, w_c, o, i)
        total += tl.dot(x, y, input_precision=PRECISION)
    z = _tile(d, layer, columns, right, d_l, d_r, d_c, i, q)
    core = tl.dot(total, z, input_precision=PRECISION)
    part = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    to = out + ((part * tl.num_programs(2) + layer) * r + left[:, None]) * q + right[None, :]
    tl.store(to, core, mask=(left < r)[:, None] & (right < q)[None, :])


@triton.jit
def _expand(
    a, m, c, out, o, r, q, i, span,
    a_l, a_r, a_c, m_l, m_r, m_c, c_l, c_r, c_c, o_l, o_r, o_c,
    R: tl.constexpr, Q: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A M C^T for one tile of rows and `span` columns."""
    layer = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    left, right = tl.arange(0, R), tl.arange(0, Q)
    x = _tile(a, layer, rows, left, a_l, a_r, a_c, o, r)
    y = _tile(m, layer, left, right, m_l, m_r, m_c, r, q)
    both = tl.dot(x, y, input_precision=PRECISION)
    start = tl.program_id(1) * span
    for first in range(start, tl.minimum(start + span, i), TILE):
        columns = first + tl.arange(0, TILE)
        z = _tile(c, layer, right, columns, c_l, c_r, c_c, q, i)
        value = tl.dot(both, z, input_precision=PRECISION)
        to = out + layer * o_l + rows.to(tl.int64)[:, None] * o_r + columns[None, :] * o_c
        mask = (rows < o)[:, None] & (columns < i)[None, :]
        tl.store(to, value.to(out.dtype.element_ty), mask=mask)


@lru_cache
def has_tensor_cores(device: torch.device) -> bool:
    """Whether a GPU multiplies TensorFloat-32: without, the library's float32 is faster."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def fits(factors: Sequence[Tensor]) -> bool:
    """Whether these kernels are for A, B, W, D^T and C^T: their number, dtype, ranks and device."""
    if len(factors) != 5 or factors[0].dtype == torch.float64:
        return False
    a, _, w, d, c = factors
    if not has_tensor_cores(w.device):
        return False
    ranks = a.shape[-1], d.shape[-1]
    sides = a.shape[-2], *w.shape[-2:], c.shape[-1]
    return 0 < min(ranks) and max(ranks) <= min(RANK, *sides)


def forward(factors: Sequence[Tensor]) -> Tensor:
    """Compose ``[O, I]``, or ``[layers, O, I]`` where any factor has layers."""
    layers = [factor.shape[0] for factor in factors if factor.ndim == 3][:1]
    out = factors[0].new_empty(*layers, factors[0].shape[-2], factors[-1].shape[-1])
    if out.numel() > 0:
        _write(factors, out)
    return out


def forward_into(factors: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write into one tensor of the result's shape or one matrix for each layer, in place."""
    if out[0].ndim == 3 or len(out) == 1:
        _write(factors, out[0])
        return
    a, b, w, d, c = factors
    core = core_of(b, w, d).expand(len(out), -1, -1)
    lefts, rights = (side.expand(len(out), -1, -1) for side in (a, c))
    for layer in zip(lefts, core, rights, out, strict=True):
        expand_into(*layer)


def _write(factors: Sequence[Tensor], out: Tensor) -> None:
    a, b, w, d, c = factors
    expand_into(a, core_of(b, w, d), c, out)


def core_of(b: Tensor, w: Tensor, d: Tensor) -> Tensor:
    """B W D in float32, ``[r, q]`` or ``[layers, r, q]``, of D ``[..., i, q]``."""
    layers = [factor.shape[0] for factor in (b, w, d) if factor.ndim == 3][:1]
    (r, o), (i, q) = b.shape[-2:], d.shape[-2:]
    tiles = triton.cdiv(i, TILE)
    groups, span = _groups(o, tiles * sum(layers, 0 if layers else 1))
    partial = b.new_empty(groups * tiles, *layers, r, q, dtype=torch.float32)
    with torch.cuda.device_of(b):
        _core[(tiles, groups, *(layers or [1]))](
            b, w, d, partial, r, o, i, q, span, *_strides(b), *_strides(w), *_strides(d),
            **_options(b, r, q),
        )  # fmt: skip
    return partial.sum(0)


def expand_into(a: Tensor, m: Tensor, c: Tensor, out: Tensor) -> None:
    """Write A M C, of C ``[..., q, I]``, into ``[O, I]`` or ``[layers, O, I]`` of any strides."""
    if out.stride(-1) > out.stride(-2):  # programs write along the axis that lies contiguous
        a, m, c, out = c.mT, m.mT, a.mT, out.mT
    (o, r), (q, i) = a.shape[-2:], c.shape[-2:]
    layers = out.shape[0] if out.ndim == 3 else 1
    tiles = triton.cdiv(o, TILE)
    groups, span = _groups(i, tiles * layers)
    with torch.cuda.device_of(a):
        _expand[(tiles, groups, layers)](
            a, m, c, out, o, r, q, i, span,
            *_strides(a), *_strides(m), *_strides(c), *_strides(out), **_options(a, r, q),
        )  # fmt: skip


def _groups(length: int, programs: int) -> tuple[int, int]:
    """Into how many groups of tiles to cut an axis, and how long each is."""
    tiles = triton.cdiv(length, TILE)
    span = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, programs))) * TILE
    return triton.cdiv(length, span), span


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of layer, row and column; 0 for the layer of what all layers share."""
    return tensor.stride(0) if tensor.ndim == 3 else 0, tensor.stride(-2), tensor.stride(-1)


def _options(tensor: Tensor, r: int, q: int) -> dict[str, Any]:
    """Compile-time arguments: plain values at the call, tl.constexpr inside.

    TensorFloat-32 holds half precision exactly, and float32 in three parts.
    """
    precision = "tf32x3" if tensor.dtype == torch.float32 else "tf32"
    r, q = (max(DOT, triton.next_power_of_2(rank)) for rank in (r, q))
    return {"R": r, "Q": q, "TILE": TILE, "PRECISION": precision, "enable_fp_fusion": True}
