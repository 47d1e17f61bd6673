"""The Kronecker sum in eager torch: any device, tuned for the CPU.

Everything is written on five axes, ``[layer, s1, w1, s2, w2]``: a destination or a gradient of
any order, stride or dtype is a permuted view of them (see `blocks`), so there is one algorithm.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

# Work is cut along w1 so that what a step writes and reads again stays in the last cache; smaller
# steps would be a little faster, but wake all threads more often, which costs on a busy machine.
STEP_BYTES = 10 << 20
# Templates up to here are cheap to pass over again.
CACHED_BYTES = 8 << 20
# Up to so many blocks a matmul, which writes in place, is as fast as embedding bags.
FEW_BLOCKS = 4
# Longer indices are built anew each time.
KEPT_INDICES = 1 << 20
# What a copy with a transposition in it needs to fill its cache lines.
MIN_TRANSPOSED_ROWS = 16
# The dtypes for which torch.embedding_bag has a vectorised kernel.
BAG_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def blocks(matrix: Tensor, w: Sequence[int], s: Sequence[int], order: str) -> Tensor:
    """View ``[..., rows, columns]`` in either order as ``[..., s1, w1, s2, w2]``."""
    if order == "block":
        return matrix.unflatten(-1, (s[1], w[1])).unflatten(-3, (s[0], w[0]))
    interleaved = matrix.unflatten(-1, (w[1], s[1])).unflatten(-3, (w[0], s[0]))
    return interleaved.transpose(-1, -2).transpose(-3, -4)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _bags(lead: int, rows: int, trail: int, w1: int, n: int) -> tuple[Tensor, Tensor]:
    """Indices into the template rows ``[n w1, w2]``, and where each output row's bag starts."""
    index = torch.arange(rows, dtype=torch.int32)[:, None]
    index = index + w1 * torch.arange(n, dtype=torch.int32)
    index = index[:, None].expand(lead, rows, trail, n).reshape(-1)
    return index, torch.arange(0, index.numel(), n, dtype=torch.int32)


_kept_bags = lru_cache(maxsize=16)(_bags)


def _weighted_rows(
    templates: Tensor, mixing: Tensor, lead: int, step: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``start, [lead, rows, trail, w2]``: every row of the templates summed in every way.

    An embedding bag is the one eager operation that sums n weighted rows and writes the sum once;
    it runs at up to three times the speed of a matmul, whose inner size would be n.
    """
    n, w1, w2 = templates.shape
    trail = mixing.shape[0] // lead
    weights = mixing.view(lead, 1, trail, n).expand(lead, step, trail, n).reshape(-1)
    build = _kept_bags if lead * step * trail * n <= KEPT_INDICES else _bags
    index, offsets = build(lead, step, trail, w1, n)
    table = templates.view(n * w1, w2)
    for start in range(0, w1, step):
        rows = min(step, w1 - start)
        bags = lead * rows * trail
        sums = torch.embedding_bag(
            table[start:], index[: bags * n], offsets[:bags], False, 0, False, weights[: bags * n]
        )[0]
        yield start, sums.view(lead, rows, trail, w2)


def _step(row_bytes: int, w1: int, transposed: bool) -> int:
    return min(w1, max(STEP_BYTES // max(row_bytes, 1), MIN_TRANSPOSED_ROWS if transposed else 1))


def _mixing(scalers: Tensor) -> Tensor:
    """Scalers as ``[layer s1 s2, n]``: the n of one block side by side."""
    return scalers.permute(0, 2, 3, 1).reshape(-1, scalers.shape[1])


def _has_bags(templates: Tensor) -> bool:
    return templates.device.type == "cpu" and templates.dtype in BAG_DTYPES


def _one_matmul(templates: Tensor, mixing: Tensor, out: Sequence[Tensor]) -> bool:
    """Whether a matmul straight into the destination does it: few whole blocks, one above another.

    Not for half precision, where the rounding of a matmul is the library's choice.
    """
    (first, *others), w2 = out, templates.shape[2]
    plain = (first.stride(1), first.stride(3)) == (w2, 1) and first.dtype == templates.dtype
    few = not others and first.shape[2] == 1 and mixing.shape[0] <= FEW_BLOCKS
    return few and plain and templates.dtype in (torch.float32, torch.float64)


def forward(templates: Tensor, scalers: Tensor) -> Tensor:
    """Compose ``[layer, s1, w1, s2, w2]`` of ``[n, w1, w2]`` and ``[layer, n, s1, s2]``."""
    n, w1, w2 = templates.shape
    layers, _, s1, s2 = scalers.shape
    if w1 == s1 == 1:  # vectors: products rounded, then summed, as the published code does
        kept = accumulator(templates.dtype)
        products = _mixing(scalers).to(kept)[..., None] * templates.view(n, w2).to(kept)
        return products.sum(1).to(templates.dtype).view(layers, 1, 1, s2, w2)
    if layers > 1 and s2 == 1:  # blocks of layers, one above another, are one layer of more blocks
        taller = scalers.transpose(0, 1).reshape(1, n, layers * s1, 1)
        return forward(templates, taller).view(layers, s1, w1, s2, w2)
    cheap = templates.numel() * templates.element_size() <= CACHED_BYTES or n <= 2 * s2
    if _has_bags(templates) and cheap and layers * s1 * s2 > FEW_BLOCKS:
        # In the order of the result: templates are read again and again, but nothing is copied.
        _, result = next(_weighted_rows(templates, _mixing(scalers), layers * s1, w1))
        return result.view(layers, s1, w1, s2, w2)
    result = templates.new_empty(layers, s1, w1, s2, w2)
    forward_into(templates, scalers, result.unbind(0))
    return result


def forward_into(templates: Tensor, scalers: Tensor, out: Sequence[Tensor]) -> None:
    """Write one ``[s1, w1, s2, w2]`` view a layer, of any strides and dtype, in place."""
    n, w1, w2 = templates.shape
    layers, _, s1, s2 = scalers.shape
    mixing = _mixing(scalers)
    if _one_matmul(templates, mixing, out):
        torch.mm(mixing, templates.view(n, -1), out=out[0].view(s1, -1))
        return
    transposed = any(o.stride(1) < o.stride(3) for o in out)
    step = _step(mixing.shape[0] * w2 * templates.element_size(), w1, transposed)
    targets = zip(*(o.split(step, dim=1) for o in out), strict=True)
    if _has_bags(templates):
        # Row by row of the templates: each is read once, for all layers and blocks.
        parts = (sums[0] for _, sums in _weighted_rows(templates, mixing, 1, step))
        parts = (sums.view(-1, layers, s1, s2, w2).permute(1, 2, 0, 3, 4) for sums in parts)
    else:
        kept = accumulator(templates.dtype)
        mixing = mixing.to(kept)
        parts = (mixing @ t.reshape(n, -1).to(kept) for t in templates.split(step, dim=1))
        parts = (sums.view(layers, s1, s2, -1, w2).transpose(2, 3) for sums in parts)
    for target, part in zip(targets, parts, strict=True):
        for destination, layer in zip(target, part, strict=True):
            destination.copy_(layer)


def backward(
    grad: Tensor, templates: Tensor, scalers: Tensor, need_templates: bool, need_scalers: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to both, from the gradient as a ``[layer, s1, w1, s2, w2]`` view of any strides.

    Two matrix products over ``[layer s1 s2, w1 w2]``; the gradient is read once for both.
    """
    n, w1, w2 = templates.shape
    layers, _, s1, s2 = scalers.shape
    kept = accumulator(templates.dtype)
    mixing = _mixing(scalers).to(kept)
    d_templates = torch.empty_like(templates, dtype=kept) if need_templates else None
    d_scalers = torch.zeros_like(mixing) if need_scalers else None
    step = _step(mixing.shape[0] * w2 * mixing.element_size(), w1, grad.stride(2) < grad.stride(4))
    for start in range(0, w1, step):
        rows = slice(start, min(start + step, w1))
        part = grad[:, :, rows].transpose(2, 3).to(kept).reshape(layers * s1 * s2, -1)
        if d_templates is not None:
            torch.mm(mixing.T, part, out=d_templates[:, rows].flatten(1))
        if d_scalers is not None:
            d_scalers.addmm_(part, templates[:, rows].flatten(1).to(kept).T)
    if d_templates is not None:
        d_templates = d_templates.to(templates.dtype)
    if d_scalers is not None:
        d_scalers = d_scalers.view(layers, s1, s2, n).permute(0, 3, 1, 2)
        d_scalers = d_scalers.to(scalers.dtype).contiguous()
    return d_templates, d_scalers
