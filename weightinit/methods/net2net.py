"""Net2Net: wider by copies of channels, deeper by identity blocks.

Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016,
https://arxiv.org/abs/1511.05641.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.copies import Copying
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.growth import Growth
from weightinit.inherit.method import Source, check_options
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import Copies, Op, along, scale
from weightinit.methods.bert2bert import Choice, copies_of
from weightinit.recipes import Inheritance

__all__ = ["Net2Net"]


@dataclass(frozen=True)
class Net2Net:
    """Options of Net2Net.

    Wider (Eq. 2 to 5): a map g, the identity on the first n channels, copies whatever makes an
    axis, U[i] = W[g(i)]; what reads it is divided by the number of copies, U[:, i] = W[:, g(i)] /
    |{j: g(j) = g(i)}|. That is exact for hidden channels of MLPs and whole heads. The residual
    stream goes through norms, so it is exact only where every channel has as many copies: at a
    multiple of the width, with ``mapping="even"``. The report says which it is; LEMON takes any
    width.

    Deeper: each added block is a copy of the one before it whose last layers are zero, so that it
    adds nothing to the residual stream.

    Args:
        mapping: choice of the channels to copy: ``"even"`` draws every channel once before any is
            drawn again; ``"random"`` is the paper's independent draws.
        noise: size of the noise added to the copies of hidden channels and heads, in units of the
            weights' root mean square. Copies that differ change the function a little.

    Raises:
        ProjectionError: if a value is not allowed.

    Examples:
        >>> import timm, weightinit as wi
        >>> old = timm.create_model("vit_tiny_patch16_224", depth=2)
        >>> new = timm.create_model("vit_tiny_patch16_224", depth=3, mlp_ratio=5)
        >>> print(wi.plan_projection(old, new, method=wi.Net2Net()).report().notes[-1])
        Net2Net is lossless here
    """

    mapping: Choice = "even"
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, mapping=get_args(Choice))
        if not self.noise >= 0:
            raise ProjectionError(f"noise={self.noise!r}: use 0 or a small number such as 0.01")

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no smaller on any axis."""

        def choose(label: str, old: int, new: int) -> Tensor:
            return copies_of(old, new, self.mapping, sub_generator(seed, f"net2net {label}"))

        growth = Growth("net2net", source.anatomy, target)
        copying = Copying(growth, choose)

        def axes(labels: Labels, place: Place) -> Axis | None:
            axis, copies = copying(labels, place), copying.of(labels)
            noisy = self.noise and not labels.stream and place.target >= 0
            if axis is None or copies is None or not noisy:
                return axis
            generator = sub_generator(seed, f"net2net noise {place.role} {place.target}")
            return Axis(_noisy(axis.rows, copies, self.noise, generator), axis.columns, axis.gain)

        how, notes = growth.claim("Net2Net", copying.uneven, self._faults(copying))
        transfer = Transfer(axes, growth.depth, how, growth.quiet(), growth.silence)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed), notes)

    def _faults(self, copying: Copying) -> list[str]:
        faults: list[str] = []
        grown = [Labels((label,)) for label in copying.growth.grown]
        if any(labels.stream and copying.uneven(labels) for labels in grown):
            faults.append("method='lemon' keeps the function at any width")
        if self.noise and any(not labels.stream for labels in grown):
            faults.append(f"the copies differ by noise={self.noise:g}")
        return faults


def _noisy(rows: Op, copies: Copies, noise: float, generator: torch.Generator) -> Op:
    """Return rows of which all but the first copy of each channel are noisy."""

    def op(tensor: Tensor, dim: int) -> Tensor:
        out = along(tensor, dim, rows)
        if tensor.dim() < 2:
            return out
        draw = torch.randn(out.shape, generator=generator, dtype=torch.float32)
        size = noise * tensor.square().mean().sqrt()
        return out + scale(draw.to(out) * size, dim, copies.turns > 0)

    return op
