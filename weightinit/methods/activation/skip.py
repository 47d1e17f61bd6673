"""Regression around a skip connection, whose channels each have a gain of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from weightinit.methods.activation.leastsquares import FLOOR, Moments, strength

__all__ = ["Skip"]

#: How far a gain may move from its prior, relative to it: what reads the stream is divided by it.
LEAST, MOST = 0.25, 4.0


class Skip:
    """Sums from which y = W z + g * x + c is fitted in closed form."""

    def __init__(self) -> None:
        self._moments = Moments()
        self._sums: list[Tensor] = []

    def add(self, z: Tensor, x: Tensor, y: Tensor) -> None:
        """Take in samples of float64, ``z [N, inputs]``, ``x [N, d]`` and ``y [N, d]``."""
        self._moments.add(torch.cat([z, x], 1), y)
        sums = [value.sum(0) for value in (z, x, y)]
        self._sums = [a + b for a, b in zip(self._sums or [0.0] * 3, sums, strict=True)]

    def fit(self, weight: Tensor, gain: Tensor, *, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return W ``[d, inputs]``, g ``[d]`` and c ``[d]`` of the least squares.

        ``weight`` and ``gain`` are what W and g are drawn to by a ridge of ``ridge`` times the mean
        variance of z, and times the variance of x. W is the best for the g that is returned, which
        is a quarter to four times its prior.
        """
        size = weight.shape[1]
        gram, cross = self._moments.centred()
        inner, between, own = gram[:size, :size], gram[:size, size:], gram.diagonal()[size:]
        missing = cross[:size] - inner @ weight.T - between * gain
        left = cross[size:].diagonal() - (between * weight.T).sum(0) - own * gain
        z, x, y = (total / self._moments.count for total in self._sums)
        added = strength(inner.diagonal(), z, ridge)
        eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
        solved = torch.linalg.solve(inner + added * eye, torch.cat([missing, between], 1))
        alone, shared = solved.tensor_split(2, 1)
        # What z leaves over of each channel of x, and of what is missing there.
        free = own * (1 + ridge) - (between * shared).sum(0)
        free = torch.where(free > FLOOR * (own + x.square()), free, torch.inf)
        step = (left - (between * alone).sum(0)) / free
        ratio = (1 + step / torch.where(gain == 0, 1, gain)).clamp(LEAST, MOST)
        step = gain * (ratio - 1)
        weight, gain = weight + (alone - shared * step).T, gain + step
        return weight, gain, y - weight @ z - gain * x
