"""LEMON: a network of any larger size that computes what the small one computes.

Wang et al., "LEMON: Lossless Model Expansion", ICLR 2024, https://arxiv.org/abs/2310.07999.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels, scale_of
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.copies import Copying
from weightinit.inherit.fresh import fresh_rule, sub_generator
from weightinit.inherit.growth import Growth
from weightinit.inherit.method import Source, check_options
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import Copies, cycle
from weightinit.recipes import Inheritance

__all__ = ["LEMON"]

Mode = Literal["proj", "net2net"]
Depth = Literal["copymix_cancel", "copymix_zero"]


@dataclass(frozen=True)
class LEMON:
    """Options of LEMON.

    Hidden channels of MLPs and whole heads are copied in turn. The residual stream, D wide and D'
    in the target, holds k = floor(D' / D) copies of the small network's, and its mean in the
    r = D' - k D channels left. LayerNorm then subtracts the same mean and divides by sqrt(k D / D')
    as much, which its gains make up for; the channels left leave it as zeros, and the weights that
    read them are free. Copies share weights unevenly, W'_c = R_c + (W - sum_c R_c) / k, with R the
    large model's own random init, which breaks the symmetry between them.

    With r > 0 the growth is exact only if the norms' eps is k D / D' of the ancestor's. The eps
    belongs to the modules and not to a parameter, so it is yours to set; the report says to what.
    Left as it is, it changes the function by about eps over the variance of the stream.

    Beyond the paper: the mean is of what the layer scales leave; RMSNorm, whose channels left are
    zeros; heads that grow in size, their queries and keys scaled; more than twice the depth.

    Args:
        mode: ``"proj"``, or ``"net2net"`` with R = 0, so that copies share evenly.
        depth: weights of an added block, which are those of the block before it but for the layers
            that write into the residual stream: ``"copymix_zero"`` has zeros there,
            ``"copymix_cancel"`` random weights that cancel between copies, or zeros where there is
            one copy.
        init: R, the parameters of the target's random init by name, as in its ``state_dict()``.
            None draws them by the rule of a fresh parameter, as timm does.

    Raises:
        ProjectionError: if a value is not one of these.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d, num_heads=d // 32)
        ...     for n, d in ((2, 64), (3, 160)))
        >>> print(wi.plan_projection(old, new, method=wi.LEMON()).report().notes[-1])
        LEMON is lossless here if you set the norms' eps to 0.8 of the ancestor's
    """

    mode: Mode = "proj"
    depth: Depth = "copymix_cancel"
    init: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, mode=get_args(Mode), depth=get_args(Depth))

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no smaller on any axis."""
        expansion = _Expansion(self, source, target, seed)
        growth = expansion.growth
        how, notes = growth.claim(
            "LEMON", expansion.uneven, expansion.faults(), growth.eps(expansion.ratio)
        )
        transfer = Transfer(expansion.axes, growth.depth, how, growth.quiet(), expansion.silence)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed), notes)


class _Expansion:
    """The growth from one ancestor to one target by LEMON's rules."""

    def __init__(self, options: LEMON, source: Source, target: Anatomy, seed: int) -> None:
        self.options, self.source, self.seed = options, source, seed
        self.growth = Growth("lemon", source.anatomy, target)
        added = None if options.mode == "net2net" else self._added
        self.copying = Copying(self.growth, added=added)

    @property
    def ratio(self) -> float:
        """K D / D', the part of the stream that holds copies."""
        old, new = self.growth.grown.get("d", (1, 1))
        return new // old * old / new

    def uneven(self, labels: Labels) -> bool:
        """Whether a norm over an axis is another function after the growth."""
        return (not labels.stream or self.ratio == 1) and self.copying.uneven(labels)

    def faults(self) -> list[str]:
        """Return why what is left of the stream changes the function."""
        growth = self.growth
        if self.ratio == 1:
            return []
        faults: list[str] = []
        writing = [
            role
            for role, piece in growth.new.outside.items()
            if piece.facts.place == "first norm" and piece.facts.gain
        ]
        if growth.new.traits.form not in (None, "pre_norm"):
            writing.append("norm1.weight")
        if writing and not growth.rms:
            faults.append(f"{', '.join(writing)} writes into the stream, and not its mean")
        if any("ls1" in block for _, block in growth.new.extra_blocks) and not growth.rms:
            faults.append("blocks off the main stack have layer scales")
        return faults

    def axes(self, labels: Labels, place: Place) -> Axis | None:
        """Return what becomes of an axis at a place."""
        if labels.stream and self.ratio < 1:
            return self._stream(place)
        return self.copying(labels, place)

    def _stream(self, place: Place) -> Axis:
        """Return what becomes of the residual stream: copies, then the mean or free channels."""
        old, new = self.growth.grown["d"]
        copies = Copies(cycle(old, new // old * old), new % old)
        made = copies.share if place.role in self.growth.shared else copies.repeat

        def rows(tensor: Tensor, dim: int) -> Tensor:
            if self.growth.rms or place.facts.kind == "norm":
                return made(tensor, dim)
            weights = self._weights(place, old).to(tensor)
            return copies.repeat(tensor, dim, (tensor.movedim(dim, -1) @ weights).unsqueeze(dim))

        def gain(tensor: Tensor, dim: int) -> Tensor:
            if place.facts.kind != "norm":
                return copies.repeat(tensor, dim, tensor.abs().mean().view(1))
            generator = sub_generator(self.seed, f"lemon gain {place.role} {place.target}")
            wide = made(tensor, dim)
            free = torch.rand(copies.rest, generator=generator, dtype=torch.float32)
            wide[len(copies.index) :] = 2 * free - 1
            return wide * self.ratio**0.5

        def columns(tensor: Tensor, dim: int) -> Tensor:
            even = self.options.mode == "net2net" or place.role in self._bare
            return copies.share(tensor, dim, None if even else partial(self._added, place))

        return Axis(rows, columns, gain)

    @cached_property
    def _bare(self) -> tuple[str, ...]:
        """The roles that read a stream that no norm has freed of its mean: of an attention pool."""
        outside = self.growth.new.outside
        return ("pool.q.weight", "head.weight") if "pool.latent" in outside else ()

    def _weights(self, place: Place, size: int) -> Tensor:
        """Return the weights of the mean that a layer writes, so that a layer scale leaves it."""
        even = torch.full((size,), 1 / size, dtype=torch.float64)
        if place.source < 0 or place.role not in self.growth.ends:
            return even
        piece = scale_of(place.role, self.source.anatomy.blocks[place.source])
        scale = even if piece is None else self.source.part(piece).double()
        total = scale.abs().mean()
        return scale / total / size if piece is not None and total else even

    def silence(self, place: Place, out: Tensor) -> bool:
        """Fill what an added block writes into the stream, so that it is nothing."""
        if not self.growth.silence(place, out):
            return False
        if out.dim() > 1 and self.options.depth == "copymix_cancel":
            piece = self.growth.new.blocks[place.target][place.role]
            copies = self.copying.of(piece.axes[1])
            if copies is not None:
                zeros = out.new_zeros(len(out), int(copies.index.max()) + 1)
                out.copy_(copies.share(zeros, 1, lambda even: self._added(place, even)))
        return True

    def _added(self, place: Place, even: Tensor, copies: Copies | None = None) -> Tensor:
        """Return the large model's own random init of a matrix."""
        given, new = self.options.init, self.growth.new
        pieces = new.outside if place.target < 0 else new.blocks[place.target]
        piece = pieces.get(place.role)
        if given is not None and piece is not None:
            if piece.spec.name not in given:
                raise ProjectionError(
                    f"init= lacks {piece.spec.name}: pass the target's whole state_dict()"
                )
            return new.split(piece.spec, given[piece.spec.name].to(even))[place.role]
        draw = torch.empty(even.shape, dtype=torch.float32)
        generator = sub_generator(self.seed, f"lemon {place.role} {place.target}")
        fresh_rule(place.role, tuple(even.shape))[1](draw, generator)
        return draw.to(even)
