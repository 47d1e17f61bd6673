"""The factors of one role's matrices in all blocks: shared singular vectors, a spectrum each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factors", "factorize"]

SWEEPS = 50
#: A sweep that explains less than this much more of the matrices is the last.
GAIN = 1e-3
#: Below this ratio of its least eigenvalue to its largest, a Gram matrix says too little.
FULL = 1e-4


@dataclass(frozen=True)
class Factors:
    """The matrices of one role in all blocks, W_l = left diag(spectra_l) right^T.

    Args:
        left: U ``[out, r]``, with orthonormal columns.
        right: V ``[in, r]``, with orthonormal columns.
        spectra: diagonals ``[depth, r]``, of either sign.
        error: norm of what is left over, relative to that of the matrices.
    """

    left: Tensor
    right: Tensor
    spectra: Tensor
    error: float = 0.0

    def weight(self, spectrum: Tensor) -> Tensor:
        """Return the matrix of one spectrum ``[..., r]``, as ``[..., out, in]``."""
        return (self.left * spectrum[..., None, :]) @ self.right.mT


def factorize(weights: Tensor, rank: int | None = None) -> Factors:
    """Return shared singular vectors of several matrices, and a spectrum for each.

    This is least squares over orthonormal U and V. They start as singular vectors of the matrices
    side by side and on top of one another, or of the mean where these explain more, and are then
    refined in turns: with V and the spectra fixed the best U is the polar factor of
    sum_l W_l V diag(s_l), and likewise V; the spectra are the diagonals of U^T W_l V. Every turn
    explains more of the matrices ``[depth, out, in]``, the last sweep less than a thousandth more.
    Matrices that have shared singular vectors are recovered. Without ``rank`` it is the largest,
    the smaller of out and in.
    """
    number = min(rank or min(weights.shape[1:]), *weights.shape[1:])
    starts = [(left[:, :number], right[:, :number]) for left, right in _starts(weights)]
    diagonals = [(left * (weights @ right)).sum(1) for left, right in starts]
    best = max(range(len(starts)), key=lambda i: float(diagonals[i].square().sum()))
    (left, right), spectra = starts[best], diagonals[best]
    total, explained = float(weights.square().sum()), 0.0
    for _ in range(SWEEPS):
        across = weights @ right
        left = _polar((across * (left * across).sum(1, keepdim=True)).sum(0))
        along = weights.mT @ left
        right = _polar((along * (right * along).sum(1, keepdim=True)).sum(0))
        spectra = (right * along).sum(1)
        before, explained = explained, float(spectra.square().sum())
        if explained - before <= GAIN * total:
            break
    rest = weights - Factors(left, right, spectra).weight(spectra)
    error = float(rest.norm()) / total**0.5 if total else 0.0
    return Factors(left, right, spectra, error)


def _starts(weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield singular vectors of the matrices stacked either way, and of their mean."""
    squares = (weights @ weights.mT).sum(0), (weights.mT @ weights).sum(0)
    left, right = (torch.linalg.eigh(square).eigenvectors.flip(1) for square in squares)
    yield left, right
    u, _, vh = torch.linalg.svd(weights.mean(0), full_matrices=False)
    yield u, vh.mT


def _polar(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns."""
    values, vectors = torch.linalg.eigh((matrix.mT @ matrix).double())
    if values[0] > FULL * values[-1]:  # a third of the time of the decomposition below
        return matrix @ (vectors * values.rsqrt() @ vectors.mT).to(matrix)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh
