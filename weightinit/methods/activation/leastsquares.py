"""Linear regression from sums over batches: fitting a matrix, and choosing which inputs to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from weightinit.inherit.running import exact

__all__ = ["FLOOR", "Moments", "choose", "strength"]

#: Rows whose products are summed in the samples' own precision, and columns of such a product.
ROWS, COLUMNS = 4096, 512
#: Least strength of a ridge, relative to the inputs' mean square: what does not vary tells nothing.
FLOOR = 1e-10
#: In how many steps neurons are chosen, at most.
STEPS = 24


class Moments:
    """Sums from which y = W x + b is fitted in closed form.

    Products of a few thousand samples are summed as the samples are, in float32 mostly, and those
    sums in float64. All are taken about the mean of the first samples, because the products of
    values that hardly vary would hide how they do.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []
        self._origin: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take in samples, ``x [..., inputs]`` and ``y [..., outputs]``, or inputs alone."""
        x = x.flatten(0, -2)
        y = x[:, :0] if y is None else y.flatten(0, -2)
        if not self._origin and len(x):
            self._origin = [x[:ROWS].mean(0), y[:ROWS].mean(0)]
        for some, more in zip(x.split(ROWS), y.split(ROWS), strict=True):
            if not len(some):
                continue
            some, more = some - self._origin[0], more - self._origin[1]
            sums = some.sum(0), more.sum(0), _gram(some), some.T @ more
            if not self.count:
                self._sums = [exact(one) for one in sums]
            else:
                for total, one in zip(self._sums, sums, strict=True):
                    total += one.to(total.device)
            self.count += len(some)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return the covariances ``[inputs, inputs]`` and ``[inputs, outputs]``."""
        x, y, xx, xy = self._sums
        gram, cross = xx / self.count, xy / self.count
        mean = x / self.count
        return gram.addr_(mean, mean, alpha=-1), cross.addr_(mean, y / self.count, alpha=-1)

    def fit(self, prior: Tensor, *, ridge: float, bias: bool = True) -> tuple[Tensor, Tensor]:
        """Return the ``weight [outputs, inputs]`` and ``bias [outputs]`` of the least squares.

        They minimise the mean of (y - W x - b)^2 plus lambda (W - prior)^2, with lambda ``ridge``
        times the mean variance of the inputs. Without ``bias`` b is zero.
        """
        sums = zip(self._sums[:2], self._origin, strict=True)
        x, y = (total / self.count + exact(origin) for total, origin in sums)
        xx, xy = self.centred()
        added = strength(xx.diagonal(), x, ridge)
        if not bias:
            xx, xy = xx.addr(x, x), xy.addr(x, y)
            added = strength(xx.diagonal(), torch.zeros_like(x), ridge)
        missing = xy - xx @ prior.T
        xx.diagonal().add_(added)
        weight = prior + torch.linalg.solve(xx, missing).T
        return weight, (y - weight @ x if bias else torch.zeros_like(y))


def strength(variance: Tensor, mean: Tensor, ridge: float) -> float:
    """Return what a ridge adds to the inputs' variances, which is never nothing.

    It is ``ridge`` times their mean variance, and no less than what rounding makes of inputs that
    do not vary at all.
    """
    least = FLOOR * float((variance + mean.square()).mean())
    return max(ridge * float(variance.mean()), least) or 1.0


def _gram(x: Tensor) -> Tensor:
    """Return x^T x, of which wide ones are computed half and mirrored."""
    width = x.shape[1]
    if width <= COLUMNS:
        return x.T @ x
    gram = x.new_empty(width, width)
    for start in range(0, width, COLUMNS):
        at = slice(start, start + COLUMNS)
        gram[at, start:] = x[:, at].T @ x[:, start:]
        gram[start:, at] = gram[at, start:].T
    return gram


def choose(gram: Tensor, cross: Tensor, number: int, *, unit: int = 1) -> tuple[Tensor, float]:
    """Return which inputs explain the outputs best, chosen one after the other.

    Orthogonal least squares (Chen, Billings and Luo 1989): each choice is the input that explains
    most of what those before it leave over. ``gram`` and ``cross`` are the covariances of the
    inputs and of inputs and outputs, ``unit`` is the number of neighbouring inputs that come and go
    together: the channels of a head. Many single inputs are chosen some dozens at a time, out of
    the twice as many that explain most alone. The indices of the units are sorted, int64
    ``[number]``, and come with the variance that they explain.
    """
    size = len(gram)
    floor = 1e-4 * float(gram.diagonal().mean()) + torch.finfo(gram.dtype).tiny
    units = torch.arange(size, device=gram.device).view(-1, unit)

    def floored(at: Tensor) -> Tensor:
        """Return rows of the covariance, a little added to its diagonal."""
        rows = gram[at]
        rows[torch.arange(len(at), device=at.device), at] += floor
        return rows

    # What is left over of each unit's own covariance; the rest is computed when it is needed.
    within = gram[units[:, :, None], units[:, None, :]] + floor * torch.eye(unit).to(gram)
    left = cross.clone()
    basis = gram.new_zeros(number * unit, size)
    chosen: list[int] = []
    explained, at_once = 0.0, -(-number // STEPS) if unit == 1 else 1
    while len(chosen) < number:
        inner = torch.linalg.cholesky_ex(within)[0] if unit > 1 else within.clamp_min(floor).sqrt()
        tall = left.view(len(units), unit, -1)
        tall = torch.linalg.solve_triangular(inner, tall, upper=False) if unit > 1 else tall / inner
        gains = tall.square().sum((1, 2))
        gains[chosen] = -1.0
        done = basis[: len(chosen) * unit]
        few = min(at_once, number - len(chosen))
        if few > 1:
            best = gains.topk(min(2 * few, len(units) - len(chosen))).indices
            rest = floored(best)[:, best] - done[:, best].T @ done[:, best]
            best = best[choose(rest, left[best], few)[0].to(best.device)]
        else:
            best = gains.argmax()[None]
        at = units[best].flatten()
        rest = floored(at) - done[:, at].T @ done
        root = torch.linalg.cholesky_ex(rest[:, at])[0]
        row = torch.linalg.solve_triangular(root, rest, upper=False)
        told = torch.linalg.solve_triangular(root, left[at], upper=False)
        basis[len(done) : len(done) + len(at)] = row
        left -= row.T @ told
        rows = row.T.reshape(len(units), unit, -1)
        within = within - rows @ rows.transpose(1, 2)
        explained += float(told.square().sum())
        chosen += best.tolist()
    return torch.tensor(sorted(chosen), dtype=torch.int64), explained
