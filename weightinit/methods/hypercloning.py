"""HyperCloning: a network several times as wide from whole copies of a small one.

Samragh et al., "Scaling Smart: Accelerating Large Language Model Pre-training with Small Model
Initialization", https://arxiv.org/abs/2409.12903.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.copies import Copying
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.growth import Growth
from weightinit.inherit.method import Source
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import Copies, scale
from weightinit.recipes import Inheritance

__all__ = ["HyperCloning"]


@dataclass(frozen=True)
class HyperCloning:
    """Options of HyperCloning.

    Every axis that grows is a whole number of copies of the old one: W' = tile(W) / n where n
    copies are read (Eq. 2 to 4), and embeddings, biases and norms are tiled as they are. Heads
    grow in number, or in size: then queries and keys are scaled by (old / new head dim)^(1/4)
    each. Means and variances are those of the small network, so that the function is kept, its
    norms included, with the same eps. Depth, which the paper leaves alone, grows by blocks that
    add nothing to the residual stream.

    Args:
        snr_db: signal-to-noise ratio, in decibels, of noise that is added to one half of the copies
            and subtracted from the other, so that it cancels as long as the copies are equal; the
            paper's noisy variant has 10. None adds no noise. An odd copy out has none.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=d, num_heads=d // 32)
        ...     for d in (64, 192))
        >>> plan = wi.plan_projection(old, new, method=wi.HyperCloning(snr_db=10))
        >>> print(plan.report().notes[-1])
        HyperCloning is lossless here
    """

    snr_db: float | None = None

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target.

        Raises:
            ProjectionError: if an axis of the target is no whole multiple of the ancestor's.
        """
        growth = Growth("hypercloning", source.anatomy, target)
        parts = [f"{x} {a} -> {b}" for x, (a, b) in growth.grown.items() if b % a]
        if parts:
            raise ProjectionError(
                f"hypercloning takes whole multiples, which {', '.join(parts)} is not: use "
                "method='lemon', which grows to any size"
            )
        copying = Copying(growth, added=None if self.snr_db is None else partial(self._noise, seed))
        how, notes = growth.claim("HyperCloning", copying.uneven)
        transfer = Transfer(copying, growth.depth, how, growth.quiet(), growth.silence)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed), notes)

    def _noise(self, seed: int, place: Place, even: Tensor, copies: Copies) -> Tensor:
        if place.target < 0:
            return torch.zeros_like(even)  # as published, the head has none
        generator = sub_generator(seed, f"hypercloning {place.role} {place.target}")
        return _pairs(even, copies, 10 ** (-float(self.snr_db or 0) / 20), generator)


def _pairs(even: Tensor, copies: Copies, ratio: float, generator: torch.Generator) -> Tensor:
    """Return noise of opposite sign on the two of each pair of copies.

    ``even`` is what reads the axis, along dim 1, and ``ratio`` that of the noise's root mean square
    to its own.
    """
    old = int(copies.index.max()) + 1
    pair = copies.turns // 2
    paired = (copies.turns < copies.counts - 1) | (copies.counts % 2 == 0)
    shape = even.shape[0], (int(pair.max()) + 1) * old, *even.shape[2:]
    draw = torch.randn(shape, generator=generator, dtype=torch.float32).to(even)
    sign = (1 - 2 * (copies.turns % 2)) * paired
    noise = scale(draw.index_select(1, pair * old + copies.index), 1, sign)
    size = noise[:, paired].square().mean().sqrt()
    return noise * (ratio * even.square().mean().sqrt() / size) if paired.any() else noise
