"""Block parameters composed from weight templates and scalers.

WAVE (Feng et al., CVPR 2025, https://arxiv.org/abs/2406.17503) writes every block parameter as
W = sum_t T_t (x) S_t (Eq. 4): templates T are shared by all blocks and sizes, scalers S are small
and belong to one size. Axes are in stored orientation, out x in, throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.kernels import kron_sum
from weightinit.templates.config import TemplateConfig, kind_roles

__all__ = ["HeadDims", "compose", "compose_into", "folding", "inner_size", "scaler_shape"]

#: The axis of a kind that runs over heads and head dims; where the head dim of target and templates
#: differ, it is composed in copies of the templates' head dim.
HEAD_AXIS = {"attn.qkv.weight": 0, "attn.qkv.bias": 0, "attn.proj.weight": 1}


@dataclass(frozen=True)
class HeadDims:
    """Head dim of the templates' auxiliary model and of the target."""

    source: int
    target: int

    @property
    def copies(self) -> int:
        """How many copies of the source's head dim cover the target's."""
        return math.ceil(self.target / self.source)

    @property
    def full(self) -> int:
        """How many of them are whole."""
        return self.target // self.source

    @property
    def gain(self) -> float:
        """The factor on q and on k that keeps q k / sqrt(head_dim) as it was."""
        kept = self.full or self.target / self.source
        return math.sqrt(math.sqrt(self.target / self.source) / kept)


def folding(kind: str, heads: HeadDims | None) -> tuple[HeadDims | None, int | None]:
    """Return the head dims and the axis to fold, or Nones where a kind has or needs no folding."""
    axis = HEAD_AXIS.get(kind)
    if heads is None or axis is None or heads.source == heads.target:
        return None, None
    return heads, axis


def inner_size(size: tuple[int, ...], heads: HeadDims | None, axis: int | None) -> tuple[int, ...]:
    """Return the size of one copy: the target's heads at the templates' head dim."""
    if heads is None:
        return size
    return tuple(n // heads.target * heads.source if i == axis else n for i, n in enumerate(size))


def scaler_shape(
    config: TemplateConfig, kind: str, size: tuple[int, ...], heads: HeadDims | None = None
) -> tuple[int, ...]:
    """Return the shape of one template's scaler for a parameter of ``size``."""
    heads, axis = folding(kind, heads)
    shape = config.scaler_shape(kind, inner_size(size, heads, axis))
    copies = heads.copies if heads else 1
    return tuple(n * copies if i == axis else n for i, n in enumerate(shape))


def compose(
    config: TemplateConfig,
    kind: str,
    templates: Tensor,
    scalers: Tensor,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    heads: HeadDims | None = None,
) -> dict[str, Tensor]:
    """Compose the parameters of one kind, differentiably, for any number of blocks at once.

    Args:
        config: the template set.
        kind: its kind, e.g. ``"attn.qkv.weight"``, whose roles are q, k and v.
        templates: ``[N, *shape]``.
        scalers: ``[..., N, *scaler_shape]``; the leading axes (blocks) are batched.
        sizes: from canonical role to the size it must get, e.g. ``(h k, d)``; what a whole number
            of templates exceeds is cropped.
        heads: head dims, where the target's may differ from the templates'.

    Returns:
        From canonical role to ``[..., *size]``.
    """
    roles = kind_roles(kind)
    spec = config.kinds[kind]
    axis = scalers.dim() - len(spec.shape)
    if spec.parts == 1:
        pieces = [
            kron_sum(templates, part, order=config.order)
            for part in scalers.unflatten(axis, (len(roles), -1)).unbind(axis)
        ]
    else:
        pieces = [
            kron_sum(part, scalers, order=config.order)
            for part in templates.unflatten(1, (len(roles), -1)).unbind(1)
        ]
    return {
        role: _fit(piece, kind, role, sizes[role], heads)
        for role, piece in zip(roles, pieces, strict=True)
        if role in sizes
    }


def compose_into(
    config: TemplateConfig,
    kind: str,
    templates: Tensor,
    scalers: Tensor,
    views: Mapping[str, Tensor],
    *,
    heads: HeadDims | None = None,
) -> None:
    """Compose one block's parameters of one kind into ``views``, without a copy where sizes divide.

    Args:
        config: the template set.
        kind: its kind.
        templates: ``[N, *shape]``.
        scalers: ``[N, *scaler_shape]``, of one block.
        views: from canonical role to the tensor to write, in canonical orientation.
        heads: head dims, where the target's may differ from the templates'.
    """
    roles = kind_roles(kind)
    spec = config.kinds[kind]
    unit = (spec.shape[0] // spec.parts, *spec.shape[1:])
    for index, role in enumerate(roles):
        if role not in views:
            continue
        view = views[role]
        part, tiles = templates, scalers
        if spec.parts > 1:
            part = templates.unflatten(1, (len(roles), -1))[:, index]
        elif len(roles) > 1:
            tiles = scalers.unflatten(1, (len(roles), -1))[:, index]
        whole = tuple(n * w for n, w in zip(tiles.shape[1:], unit, strict=True))
        folded, _ = folding(kind, heads)
        if folded is None and whole == tuple(view.shape):
            kron_sum(part, tiles, order=config.order, out=view)
        elif folded is not None and folded.copies == folded.full:
            piece = kron_sum(part, tiles * _gain(role, folded), order=config.order)
            source, axis = _fold(piece, kind, tuple(view.shape), folded)
            shape = source.shape[axis : axis + 3]
            view.unflatten(axis, shape).copy_(_crop(source, view.unflatten(axis, shape).shape))
        else:
            piece = kron_sum(part, tiles, order=config.order)
            view.copy_(_fit(piece, kind, role, tuple(view.shape), heads))


def _gain(role: str, heads: HeadDims) -> float:
    return heads.gain if role.startswith(("attn.q.", "attn.k.")) else 1.0


def _fold(piece: Tensor, kind: str, size: tuple[int, ...], heads: HeadDims) -> tuple[Tensor, int]:
    """View copies of all heads as heads of copies: ``[.., count, copies, head dim, ..]``."""
    axis = HEAD_AXIS[kind]
    dim = piece.dim() - len(size) + axis
    count = size[axis] // heads.target
    piece = piece.unflatten(dim, (heads.copies, -1)).narrow(dim + 1, 0, count * heads.source)
    return piece.unflatten(dim + 1, (count, heads.source)).transpose(dim, dim + 1), dim


def _crop(piece: Tensor, size: tuple[int, ...]) -> Tensor:
    first = piece.dim() - len(size)
    for offset, length in enumerate(size):
        if piece.shape[first + offset] != length:
            piece = piece.narrow(first + offset, 0, length)
    return piece


def _fit(
    piece: Tensor, kind: str, role: str, size: tuple[int, ...], heads: HeadDims | None
) -> Tensor:
    """Crop a composed parameter to its size, and fold copies of the head dim into each head."""
    heads, axis = folding(kind, heads)
    if heads is not None and axis is not None:
        piece, dim = _fold(piece * _gain(role, heads), kind, size, heads)
        piece = piece.flatten(dim + 1, dim + 2).narrow(dim + 1, 0, heads.target)
        if role.startswith("attn.q.") and 0 < heads.full < heads.copies:
            # A cut copy of k has no q to meet: the logits stay those of the whole copies.
            mask = torch.arange(heads.target, device=piece.device) < heads.full * heads.source
            piece = piece * mask.view(-1, *(1,) * (len(size) - 1 - axis))
        piece = piece.flatten(dim, dim + 1)
    return _crop(piece, size)
