"""The nearest matrix of a rank, of matrices that are long on one side."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["low_rank"]

#: From this length of the shorter side on, few factors are found by a random projection.
LARGE = 1536
#: Columns beside those that are wanted, and power iterations, of that projection.
SPARE, ITERATIONS = 16, 6
CHUNK = 1 << 16


def low_rank(
    rows: Tensor,
    rank: int,
    *,
    error: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Return the factors of the nearest matrix of a rank, in the sense of least squares.

    By the eigenvectors of the Gram matrix of the shorter side in fp64, which never divides by a
    singular value: at full rank the product is the matrix itself. Where the shorter side is long
    and the rank is not a quarter of it, by a randomised range (Halko et al., SIAM Review 2011, Alg.
    4.4) first.

    Args:
        rows: ``[R, P]``.
        rank: N, at most; never more than the shorter side.
        error: take the fewest factors that leave no more than this part of the norm.
        generator: of the random projection.

    Returns:
        Left ``[R, N]``, of columns whose root mean square is 1, right ``[N, P]``, of orthogonal
        rows, largest first, and the part of the norm that is left over.

    Examples:
        >>> import torch
        >>> left, right, rest = low_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1)
        >>> (left @ right).abs().round(), round(rest, 3)
        (tensor([[3., 0.],
                [0., 0.]]), 0.316)
    """
    short = min(rows.shape)
    total = sum(float(part.double().square().sum()) for part in rows.split(CHUNK, 1))
    if error is None and short > LARGE and 4 * rank < short:
        basis = _range(rows, rank + SPARE, generator)
        values, vectors = _eigen(basis.T @ rows, rank)
        left = basis @ vectors.to(basis)
        right = left.T @ rows
    elif rows.shape[0] <= rows.shape[1]:
        values, vectors = _eigen(rows, rank)
        left = vectors.to(rows)
        parts = rows.split(CHUNK, 1)
        right = torch.cat([(vectors.T @ part.double()).to(rows) for part in parts], 1)
    else:
        values, vectors = _eigen(rows.T, rank)
        right = vectors.T.to(rows)
        left = torch.cat([(part.double() @ vectors).to(rows) for part in rows.split(CHUNK)])
    rest = (total - values.cumsum(0)).clamp(min=0) / (total or 1.0)
    if error is not None:
        kept = int((rest > error**2).sum()) + 1
        left, right, rest = left[:, :kept], right[:kept], rest[:kept]
    unit = left.square().mean(0).sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    return left / unit, right * unit[:, None], float(rest[-1].sqrt())


def _eigen(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues ``[N]`` of R R^T and their vectors ``[R, N]``, in fp64."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(CHUNK, 1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]


def _range(rows: Tensor, columns: int, generator: torch.Generator | None) -> Tensor:
    """Return an orthonormal basis ``[R, columns]`` of nearly all that the largest factors span."""
    size = rows.shape[1], columns
    start = torch.randn(size, generator=generator, dtype=torch.float32).to(rows)
    basis = torch.linalg.qr(rows @ start).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(rows @ torch.linalg.qr(rows.T @ basis).Q).Q
    return basis
