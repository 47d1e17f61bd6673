"""The Kronecker sum in eager torch: any device, tuned for the CPU.

Everything is written on five axes, ``[layer, s1, w1, s2, w2]``: a destination or a gradient of
any order, stride or dtype is a permuted view of them (see `blocks`), so there is one algorithm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Work is cut along w1, so that what is read again is in the cache.
STEP_BYTES = 2 << 20


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def blocks(matrix: Tensor, w: Sequence[int], s: Sequence[int], order: str) -> Tensor:
    """View ``[..., rows, columns]`` in either order as ``[..., s1, w1, s2, w2]``."""
    lead = matrix.shape[:-2]
    if order == "block":
        return matrix.view(*lead, s[0], w[0], s[1], w[1])
    return matrix.view(*lead, w[0], s[0], w[1], s[1]).transpose(-1, -2).transpose(-3, -4)


def forward(templates: Tensor, scalers: Tensor) -> Tensor:
    """Return ``[layer, s1, w1, s2, w2]`` of ``[n, w1, w2]`` and ``[layer, n, s1, s2]``."""
    n, w1, w2 = templates.shape
    layers, _, s1, s2 = scalers.shape
    kept, mixing = accumulator(templates.dtype), _mixing(scalers)
    if w1 == s1 == 1:  # vectors: products rounded, then summed, as the published code does
        products = mixing.to(kept)[..., None] * templates.view(n, w2).to(kept)
        return products.sum(1).to(templates.dtype).view(layers, 1, 1, s2, w2)
    if s2 > 1 and templates.device.type == "cpu" and templates.dtype != torch.float64:
        return _bags(templates, mixing.view(layers * s1, s2, n)).view(layers, s1, w1, s2, w2)
    sums = (mixing.to(kept) @ templates.view(n, -1).to(kept)).to(templates.dtype)
    return sums.view(layers, s1, s2, w1, w2).transpose(2, 3).contiguous()


def _bags(templates: Tensor, mixing: Tensor) -> Tensor:
    """Return every row of the templates, summed as every row of ``[lead, trail, n]`` says.

    An embedding bag is the one eager operation that sums n weighted rows and writes the sum where
    it belongs in ``[lead, w1, trail, w2]``; it takes half the time of a matmul and a permutation.
    """
    (n, w1, w2), (lead, trail, _) = templates.shape, mixing.shape
    rows = torch.arange(w1, dtype=torch.int32)[:, None] + w1 * torch.arange(n, dtype=torch.int32)
    index = rows[:, None].expand(lead, w1, trail, n).reshape(-1)
    weights = mixing[:, None].expand(lead, w1, trail, n).reshape(-1)
    offsets = torch.arange(0, index.numel(), n, dtype=torch.int32)
    table = templates.view(n * w1, w2)
    return torch.embedding_bag(table, index, offsets, False, 0, False, weights)[0]


def forward_into(templates: Tensor, scalers: Tensor, out: Sequence[Tensor]) -> None:
    """Write one ``[s1, w1, s2, w2]`` view a layer, of any strides and dtype, in place."""
    n, w1, w2 = templates.shape
    kept = accumulator(templates.dtype)
    templates, scalers = templates.to(kept), scalers.to(kept)
    step = _step(n * w2 * kept.itemsize)
    for start in range(0, w1, step):
        part = templates[:, start : start + step]
        for layer, destination in zip(scalers, out, strict=True):
            _write(part, layer, destination[:, start : start + step])


def _write(templates: Tensor, scalers: Tensor, out: Tensor) -> None:
    """Write some rows of one layer, by the same products whatever the destination."""
    n, rows, _ = templates.shape
    _, s1, s2 = scalers.shape
    if out.dtype != templates.dtype or not out[0].is_contiguous():
        sums = templates.new_empty(out.shape)
        _write(templates, scalers, sums)
        out.copy_(sums)
    elif s2 == 1:
        torch.mm(scalers[:, :, 0].T, templates.flatten(1), out=out.view(s1, -1))
    else:
        for row, part in zip(scalers.unbind(1), out, strict=True):  # part: [rows, s2, w2]
            torch.bmm(row.T.expand(rows, s2, n), templates.transpose(0, 1), out=part)


def backward(
    grad: Tensor, templates: Tensor, scalers: Tensor, need_templates: bool, need_scalers: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients to both, or None where they are not needed.

    Two matrix products over ``[layer s1 s2, w1 w2]``; the gradient, a ``[layer, s1, w1, s2, w2]``
    view of any strides, is read once for both.
    """
    n, w1, w2 = templates.shape
    layers, _, s1, s2 = scalers.shape
    kept = accumulator(templates.dtype)
    mixing = _mixing(scalers).to(kept)
    d_templates = torch.empty_like(templates, dtype=kept) if need_templates else None
    d_scalers = torch.zeros_like(mixing) if need_scalers else None
    step = _step(mixing.shape[0] * w2 * kept.itemsize)
    for start in range(0, w1, step):
        rows = slice(start, start + step)
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


def _step(row_bytes: int) -> int:
    return max(1, STEP_BYTES // max(1, row_bytes))


def _mixing(scalers: Tensor) -> Tensor:
    """Return scalers as ``[layer s1 s2, n]``: the n of one block side by side."""
    return scalers.permute(0, 2, 3, 1).reshape(-1, scalers.shape[1])
