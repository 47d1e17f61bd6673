"""Composable function-preserving expansions: new channels that nothing reads yet.

Gesmundo and Maile, "Composable Function-preserving Expansions for Transformer Architectures",
https://arxiv.org/abs/2308.06103.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.fresh import fresh_rule, sub_generator
from weightinit.inherit.growth import Growth
from weightinit.inherit.method import Source
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import corner
from weightinit.recipes import Inheritance

__all__ = ["Expansions"]


@dataclass(frozen=True)
class Expansions:
    """The six expansions, composed as the target needs; there are no options.

    Whatever an expansion leaves open is drawn by the rule of a fresh parameter:

    1. MLP hidden size: the new columns of W2 are zero (Theorem 3.1).
    2. Number of heads: their columns of the output projection are zero (3.2).
    3. Head dim, of values: the new columns of the output projection are zero (3.3).
    4. Head dim, of keys: the new rows of W^K are zero, and the others grow by sqrt(k' / k) (3.4).
    5. Residual stream: whatever writes into it writes zeros into the new channels, and the norms'
       gains shrink by sqrt(h / h') (3.5). Only RMSNorm allows it: LayerNorm's mean would change.
    6. Depth: an added block writes zeros into the residual stream (3.6).

    The fifth is exact only if the norms' eps is h / h' of the ancestor's, which the paper passes
    over; the report says to what to set it.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", embed_dim=d, norm_layer="rmsnorm")
        ...     for d in (96, 192))
        >>> print(wi.plan_projection(old, new, method=wi.Expansions()).report().notes[-1])
        Expansions is lossless here if you set the norms' eps to 0.5 of the ancestor's
    """

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no smaller on any axis.

        Raises:
            ProjectionError: if the residual stream grows and the norms are not RMSNorm.
        """
        growth = Growth("expansions", source.anatomy, target)
        if not growth.rms and Labels(growth.grown).stream:
            raise ProjectionError(
                "the expansions widen the residual stream of RMSNorm models only: zeros in it "
                "change the mean that LayerNorm subtracts; use method='lemon', which keeps it"
            )
        old, new = growth.grown.get("d", (1, 1))
        condition = growth.eps(old / new)
        how, notes = growth.claim(
            "Expansions", lambda labels: not labels.stream, condition=condition
        )
        transfer = Transfer(partial(_padded, growth, seed), growth.alone(), how, new=growth.silence)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed), notes)


def _padded(growth: Growth, seed: int, labels: Labels, place: Place) -> Axis | None:
    """Return how new channels follow the old ones of an axis that grows."""
    if labels.block:
        return Axis(index := torch.tensor([mix[0][0] for mix in growth.depth]), index)
    if not any(x in growth.grown for x in labels):
        return None
    sizes = [growth.sizes[x] for x in labels]
    if labels[0] == "h" and growth.group is not None:
        sizes[:1] = [growth.sizes["e"], growth.group]  # heads are those of each key-value head
    old, new = ([size[i] for size in sizes] for i in (0, 1))
    key = labels[-1] == "k" and place.facts.letter == "k" and place.facts.kind != "norm"
    silent = labels.stream or labels == ("h",)

    def zeros(tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = math.prod(new)
        return tensor.new_zeros(shape)

    def drawn(tensor: Tensor, dim: int) -> Tensor:
        draw = torch.empty(zeros(tensor, dim).shape, dtype=torch.float32)
        generator = sub_generator(seed, f"expansions {place.role} {place.target} {dim}")
        fresh_rule(place.role, draw.shape)[1](draw, generator)
        return draw.to(tensor)

    def placed(tensor: Tensor, out: Tensor, dim: int) -> Tensor:
        """Write a tensor into the first channels of a larger one, and return that."""
        corner(out.unflatten(dim, new), old, dim % out.dim()).copy_(tensor.unflatten(dim, old))
        return out

    def rows(tensor: Tensor, dim: int) -> Tensor:
        out = zeros(tensor, dim) if silent else drawn(tensor, dim)
        if key:
            # Products of queries and keys take nothing from the new dims of old heads.
            corner(out.unflatten(dim, new), old[:-1], dim % out.dim()).zero_()
            tensor = tensor * (new[-1] / old[-1]) ** 0.5
        return placed(tensor, out, dim)

    def columns(tensor: Tensor, dim: int) -> Tensor:
        return placed(tensor, drawn(tensor, dim) if labels.stream else zeros(tensor, dim), dim)

    def gain(tensor: Tensor, dim: int) -> Tensor:
        out = placed(tensor, zeros(tensor, dim) + tensor.mean(), dim)
        norm = labels.stream and place.facts.kind == "norm"
        return out * math.sqrt(old[0] / new[0]) if norm else out

    return Axis(rows, columns, gain)
