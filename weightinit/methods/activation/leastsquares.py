"""Linear regression from sums over batches: fitting a matrix, and choosing which inputs to keep."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "choose"]


class Moments:
    """Sums, in float64, from which y = W x + b is fitted in closed form."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in samples of float64, ``x [..., inputs]`` and ``y [..., outputs]``."""
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        sums = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        if not self.count:
            self._sums = sums
        else:
            for total, more in zip(self._sums, sums, strict=True):
                total += more
        self.count += len(x)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return the covariances ``[inputs, inputs]`` and ``[inputs, outputs]``."""
        x, y, xx, xy = (total / self.count for total in self._sums)
        return xx - torch.outer(x, x), xy - torch.outer(x, y)

    def fit(self, prior: Tensor, *, ridge: float, bias: bool = True) -> tuple[Tensor, Tensor]:
        """Return the ``weight [outputs, inputs]`` and ``bias [outputs]`` of the least squares.

        They minimise the mean of (y - W x - b)^2 plus lambda (W - prior)^2, with lambda ``ridge``
        times the mean variance of the inputs. Without ``bias`` b is zero.
        """
        x, y, xx, xy = (total / self.count for total in self._sums)
        if bias:
            xx, xy = self.centred()
        strength = max(ridge * float(xx.diagonal().mean()), torch.finfo(xx.dtype).tiny)
        eye = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        weight = prior + torch.linalg.solve(xx + strength * eye, xy - xx @ prior.T).T
        return weight, (y - weight @ x if bias else torch.zeros_like(y))


def choose(gram: Tensor, cross: Tensor, number: int, *, unit: int = 1) -> tuple[Tensor, float]:
    """Return which inputs explain the outputs best, chosen one after the other.

    Orthogonal least squares (Chen, Billings and Luo 1989): each choice is the input that explains
    most of what those before it leave over. ``gram`` and ``cross`` are the covariances of the
    inputs and of inputs and outputs, ``unit`` is the number of neighbouring inputs that come and go
    together: the channels of a head. The indices of the units are sorted, int64 ``[number]``, and
    come with the variance that they explain.
    """
    size = len(gram)
    floor = 1e-4 * float(gram.diagonal().mean()) + torch.finfo(gram.dtype).tiny
    gram = gram + floor * torch.eye(size, dtype=gram.dtype, device=gram.device)
    units = torch.arange(size, device=gram.device).view(-1, unit)
    # What is left over of each unit's own covariance; the rest is computed when it is needed.
    within = gram[units[:, :, None], units[:, None, :]]
    left = cross.clone()
    basis = gram.new_zeros(number * unit, size)
    chosen: list[int] = []
    explained = 0.0
    for step in range(number):
        inner = torch.linalg.cholesky_ex(within)[0] if unit > 1 else within.clamp_min(floor).sqrt()
        tall = left.view(len(units), unit, -1)
        tall = torch.linalg.solve_triangular(inner, tall, upper=False) if unit > 1 else tall / inner
        gains = tall.square().sum((1, 2))
        gains[chosen] = -1.0
        best = int(gains.argmax())
        at = units[best]
        done = basis[: step * unit]
        row = torch.linalg.solve_triangular(
            inner[best], gram[at] - done[:, at].T @ done, upper=False
        )
        basis[step * unit : (step + 1) * unit] = row
        left = left - row.T @ tall[best]
        rows = row.T.reshape(len(units), unit, unit)
        within = within - rows @ rows.transpose(1, 2)
        explained += float(gains[best])
        chosen.append(best)
    return torch.tensor(sorted(chosen), dtype=torch.int64), explained
