"""Block parameters composed from weight templates and scalers.

WAVE (Feng et al., CVPR 2025, https://arxiv.org/abs/2406.17503) writes every block parameter as
W = sum_t T_t (x) S_t (Eq. 4): templates T are shared by all blocks and sizes, scalers S are small
and belong to one size. Axes are in stored orientation, out x in, throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import damping
from weightinit.inherit.fresh import sub_generator
from weightinit.kernels import kron_sum
from weightinit.templates.bundle import TemplateBundle, fitted_index, size_entry
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import Block, blocks_of, folded
from weightinit.templates.scalers import (
    Cover,
    closed_form,
    interpolate_depth,
    linear_scalers,
    stretch_depth,
    widen_scalers,
)

__all__ = ["Composer", "Scalers"]

#: Where the scalers of a target come from.
Scalers = Literal["nested", "interpolate", "linear", "fitted"]
STARTS = get_args(Scalers)
#: Relative size of the zero-sum noise that tells the copies of one input apart.
NOISE = 0.1


@dataclass(frozen=True)
class Composer:
    """Composes the blocks of one target from the templates of one set.

    Args:
        config: the template set.
        target: anatomy of the model whose blocks are composed.
        head_dim: head dim of the templates' auxiliary model; None is the target's own.
    """

    config: TemplateConfig
    target: Anatomy
    head_dim: int | None = None

    @classmethod
    def of(cls, bundle: TemplateBundle, target: Anatomy) -> Composer:
        """Return the composer of a bundle's templates for a target."""
        return cls(bundle.template_config, target, bundle.config.sizes.get("k"))

    @cached_property
    def pieces(self) -> dict[str, Piece]:
        """The first parameter of every kind that the blocks have: all are alike in size."""
        return self.config.pieces(self.target)

    def blocks(self, kind: str) -> tuple[Block, ...]:
        """Return the blocks that have a kind: those of its stack, or of all main stacks."""
        return blocks_of(self.target, self.config.kinds[kind].stack)

    def kind(self, piece: Piece) -> str:
        """Return the kind whose templates a parameter is composed from."""
        return self.config.kind(piece.role, piece.spec.stack)

    def index(self, kind: str, piece: Piece) -> int:
        """Return which of a kind's blocks a parameter is in; -1, the deepest, in other stacks."""
        if self.config.kinds[kind].stack:
            return piece.spec.block or 0
        main = self.target.index(piece.spec)
        # Blocks of other stacks, such as CaiT's class attention, take the deepest scalers.
        return -1 if main is None else main

    def covers(self, piece: Piece) -> tuple[Cover, ...]:
        """Return how templates cover the axes of a parameter."""
        head_dim = self.target.sizes.get("k", 1)
        heads = (self.head_dim or head_dim, head_dim)
        unit = self.config.kinds[self.kind(piece)].unit
        return tuple(
            Cover(n, w, heads) if len(axis) > 1 and axis[-1] == "k" else Cover(n, w)
            for n, w, axis in zip(folded(piece), unit, piece.axes, strict=False)
        )

    def scaler_shape(self, kind: str) -> tuple[int, ...]:
        """Return the shape of one template's scaler."""
        covers = self.covers(self.pieces[kind])
        return self.config.scaler_shape(kind, tuple(cover.length for cover in covers))

    def start(
        self, bundle: TemplateBundle, scalers: Scalers | None = None, *, seed: int = 0
    ) -> dict[str, Tensor]:
        """Return the scalers of the target by kind, ``[depth, N, *scaler_shape]``, from a bundle.

        ``scalers`` is one of :data:`STARTS`; None is :meth:`default`.

        Raises:
            ProjectionError: if the bundle has no fitted scalers of this size, or the value is
                unknown, or means nothing for its method.
        """
        scalers = scalers or self.default(bundle)
        if scalers not in STARTS:
            raise ProjectionError(f"scalers={scalers!r} is not one of {STARTS}")
        if scalers == "linear" and not self.config.trained:
            raise ProjectionError(
                f"scalers='linear' is WAVE's Eq. B.1; {self.config.method} templates are whole "
                "layers: use 'interpolate', which takes the method's own closed form"
            )
        if scalers == "nested" and self.config.method != "weit":
            raise ProjectionError(
                f"scalers='nested' is for templates that were trained at several sizes, and these "
                f"are {self.config.method}'s: use 'interpolate'"
            )
        if scalers == "fitted" and fitted_index(bundle, self.target) is None:
            entry = size_entry(self.target)
            raise ProjectionError(
                "the bundle has no scalers fitted for "
                f"{ {'depth': entry['depth'], **entry['sizes']} }: fit them with "
                "weightinit.fit_scalers, or use scalers='interpolate'"
            )
        found = {}
        for kind in self.pieces:
            generator = sub_generator(seed, f"scalers.{kind}")
            if scalers == "linear":
                number, depth = self.config.kinds[kind].number, len(self.blocks(kind))
                shape = self.scaler_shape(kind)
                found[kind] = linear_scalers(number, shape, depth, generator=generator)
            elif scalers == "fitted":
                found[kind] = self._fitted(bundle, kind)
            else:
                found[kind] = self._moved(bundle, kind, scalers, generator)
        return found

    def default(self, bundle: TemplateBundle) -> Scalers:
        """Return what a bundle was trained for: fitted scalers of this size, or its own moved."""
        if fitted_index(bundle, self.target) is not None:
            return "fitted"
        return "nested" if self.config.method == "weit" else "interpolate"

    def _moved(
        self, bundle: TemplateBundle, kind: str, how: str, generator: torch.Generator
    ) -> Tensor:
        """Return the auxiliary model's, or its method's closed form, tiled over width."""
        spec, depth = self.config.kinds[kind], len(self.blocks(kind))
        if self.config.trained:
            scalers = bundle.tensors[f"scalers.{kind}"].double()
            damp = damping(depth, len(scalers)) if self.pieces[kind].ends else 1.0
            several = len(bundle.config.traits.get("trained_depths") or ()) > 1
            move = interpolate_depth if several and how == "interpolate" else stretch_depth
            scalers = move(scalers, depth) * damp
        else:
            scalers = closed_form(self.config.method, spec.number, depth)
            scalers = scalers.view(depth, spec.number, *(1,) * len(spec.shape))
        parts = scalers.unflatten(2, (len(self.config.roles(kind)) // spec.parts, -1))
        piece, sizes = self.pieces[kind], bundle.config.sizes
        covers = self.covers(piece)
        # The length of a table or a kernel is not among a bundle's sizes: its templates cover it.
        source = [
            math.prod(sizes[x] for x in axis) if sizes.keys() >= {*axis} else tiles * cover.unit
            for axis, tiles, cover in zip(piece.axes, parts.shape[3:], covers, strict=False)
        ]
        wide = widen_scalers(parts, source, covers, noise=NOISE, generator=generator)
        return wide.flatten(2, 3)

    def _fitted(self, bundle: TemplateBundle, kind: str) -> Tensor:
        """Return those that the bundle has for exactly this size."""
        scalers = bundle.tensors.get(f"fitted.{fitted_index(bundle, self.target)}.{kind}")
        number = self.config.kinds[kind].number
        wanted = (len(self.blocks(kind)), number, *self.scaler_shape(kind))
        shape = None if scalers is None else tuple(scalers.shape)
        if scalers is None or shape != wanted:
            raise ProjectionError(
                f"fitted scalers of {kind} have shape {shape} and the model needs "
                f"{wanted}: fit them anew with weightinit.fit_scalers"
            )
        return scalers.double()

    def compose(
        self, piece: Piece, templates: Tensor, scalers: Tensor, *, out: Tensor | None = None
    ) -> Tensor:
        """Compose one role, differentiably and for any number of blocks at once, or into ``out``.

        What whole templates exceed is cropped.

        Args:
            piece: the parameter: its role, size and axes.
            templates: templates of its kind, ``[N, *shape]``.
            scalers: ``[..., N, *scaler_shape]``; the leading axes (blocks) are batched.
            out: one block's parameter, of any strides; nothing is copied where sizes divide.

        Returns:
            ``[..., *piece.size]``, or ``out``.
        """
        kind, order = self.kind(piece), self.config.order
        roles, spec = self.config.roles(kind), self.config.kinds[kind]
        part, axes = roles.index(piece.role), len(spec.shape)
        if spec.parts > 1:
            templates = templates.unflatten(1, (len(roles), -1))[:, part]
        elif len(roles) > 1:
            scalers = scalers.unflatten(-axes, (len(roles), -1)).select(-axes - 1, part)
        covers = self.covers(piece)
        axis = next((axis for axis, cover in enumerate(covers) if cover.folded), None)
        if axis is None:
            exact = len(piece.size) == axes and all(c.length == c.size for c in covers)
            if out is not None and exact:
                return kron_sum(templates, scalers, order=order, out=out)
            value = _crop(kron_sum(templates, scalers, order=order), folded(piece))
            value = value.unflatten(-1, piece.size[axes - 1 :]) if len(piece.size) > 2 else value
            return value if out is None else out.copy_(value)
        letter = piece.facts.letter
        scalers = scalers * covers[axis].gain if letter in ("q", "k") else scalers
        value = kron_sum(templates, scalers, order=order)
        dim = value.dim() - axes + axis
        value = _fold(value, dim, covers[axis], cut_to_zero=letter == "q")
        # The axis is split: heads, and their head dim or whole copies of the templates'.
        split = value.shape[dim : value.dim() - axes + axis + 1]
        value = _crop(value, (*piece.size[:axis], *split, *piece.size[axis + 1 :]))
        if out is None:
            return value.flatten(dim, dim + len(split) - 1)
        out.unflatten(axis, split).copy_(value)
        return out

    def joint(self, spec: ParamSpec) -> bool:
        """Return whether a parameter is one Kronecker sum, just as it is stored."""
        pieces, layout = self.target.pieces(spec), spec.layout
        kind = self.kind(pieces[0])
        stacked = layout.fused in (-1, 0) and all(view.plain for view in layout.parts)
        if not stacked or spec.parts != self.config.roles(kind):
            return False
        covers = [cover for piece in pieces for cover in self.covers(piece)]
        if any(cover.folded or cover.length != cover.size for cover in covers):
            return False
        # The paper's order and templates that span several roles interleave the rows of roles.
        templates = self.config.kinds[kind]
        apart = templates.parts == 1 or covers[0].size == templates.unit[0]
        return len(pieces) == 1 or (apart and self.config.order == "block")


def _fold(value: Tensor, dim: int, cover: Cover, *, cut_to_zero: bool) -> Tensor:
    """Turn copies of all heads into heads of copies: ``[.., heads, copies, head dim, ..]``.

    Where the last copy is cut, the copies of a head are joined, ``[.., heads, head dim, ..]``, and
    ``cut_to_zero`` makes the cut one zero: q meets a cut copy of k there, and the logits stay those
    of the whole copies.
    """
    (old, new), heads = cover.head_dims, cover.heads
    value = value.unflatten(dim, (cover.copies, -1)).narrow(dim + 1, 0, heads * old)
    value = value.unflatten(dim + 1, (heads, old)).transpose(dim, dim + 1)
    if cover.full == cover.copies:
        return value
    value = value.flatten(dim + 1, dim + 2).narrow(dim + 1, 0, new)
    if cut_to_zero and cover.full:
        whole = torch.arange(new, device=value.device) < cover.full * old
        value = value * whole.view(-1, *(1,) * (value.dim() - dim - 2))
    return value


def _crop(value: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the last axes of a tensor to a size."""
    for dim, length in enumerate(size, start=value.dim() - len(size)):
        if value.shape[dim] != length:
            value = value.narrow(dim, 0, length)
    return value
