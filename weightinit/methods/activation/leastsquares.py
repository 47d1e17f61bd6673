"""Linear regression from sums over batches: fitting a matrix, and choosing which inputs to keep."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "choose"]


class Moments:
    """Sums, in float64, of which y = W x + b is fitted in closed form.

    Examples:
        >>> moments = Moments()
        >>> x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> moments.add(x, 3 * x + 1)
        >>> weight, bias = moments.fit(torch.zeros(1, 1, dtype=torch.float64), ridge=1e-12)
        >>> round(float(weight), 6), round(float(bias), 6)
        (3.0, 1.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in samples.

        Args:
            x: float64 ``[..., inputs]``.
            y: float64 ``[..., outputs]``.
        """
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

        Minimises the mean of (y - W x - b)^2 plus lambda (W - prior)^2, with lambda the mean of
        the inputs' variances times ``ridge``. What fits already stays as it is.

        Args:
            prior: weight ``[outputs, inputs]`` to stay near to.
            ridge: relative to the inputs' mean variance; positive.
            bias: whether there is one; else it is zero.
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
    most of what those before it leave over.

    Args:
        gram: covariance of the inputs, float64 ``[units * unit, units * unit]``.
        cross: of inputs and outputs ``[units * unit, outputs]``.
        number: of units to choose.
        unit: how many neighbouring inputs come and go together: the channels of a head.

    Returns:
        Sorted indices of the units, int64 ``[number]``, and the variance that they explain.

    Examples:
        >>> gram = torch.eye(3, dtype=torch.float64)
        >>> choose(gram, torch.tensor([[1.0], [3.0], [2.0]]).double(), 2)[0].tolist()
        [1, 2]
    """
    size = len(gram)
    floor = 1e-4 * float(gram.diagonal().mean()) + torch.finfo(gram.dtype).tiny
    gram = gram + floor * torch.eye(size, dtype=gram.dtype, device=gram.device)
    units = torch.arange(size, device=gram.device).view(-1, unit)
    # Of each unit what is left over of its own covariance; the rest is found when it is needed.
    own = gram[units[:, :, None], units[:, None, :]]
    left = cross.clone()
    basis = gram.new_zeros(number * unit, size)
    chosen: list[int] = []
    explained = 0.0
    for step in range(number):
        inner = torch.linalg.cholesky_ex(own)[0] if unit > 1 else own.clamp_min(floor).sqrt()
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
        own = own - rows @ rows.transpose(1, 2)
        explained += float(gains[best])
        chosen.append(best)
    return torch.tensor(sorted(chosen), dtype=torch.int64), explained
