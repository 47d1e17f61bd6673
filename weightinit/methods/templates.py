"""Block parameters from weight templates and scalers: composition, and scalers for a new size.

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

from weightinit.config import TemplateConfig, kind_roles
from weightinit.kernels import kron_sum

__all__ = ["HeadDims", "compose", "compose_into", "linear_scalers", "scaler_shape", "widen_scalers"]

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


def _copies(kind: str, heads: HeadDims | None) -> tuple[HeadDims | None, int | None]:
    axis = HEAD_AXIS.get(kind)
    if heads is None or axis is None or heads.source == heads.target:
        return None, None
    return heads, axis


def _inner(size: tuple[int, ...], heads: HeadDims | None, axis: int | None) -> tuple[int, ...]:
    """Return the size of one copy: the target's heads at the templates' head dim."""
    if heads is None:
        return size
    return tuple(n // heads.target * heads.source if i == axis else n for i, n in enumerate(size))


def scaler_shape(
    config: TemplateConfig, kind: str, size: tuple[int, ...], heads: HeadDims | None = None
) -> tuple[int, ...]:
    """Return the shape of one template's scaler for a parameter of ``size``."""
    heads, axis = _copies(kind, heads)
    shape = config.scaler_shape(kind, _inner(size, heads, axis))
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
        folded, _ = _copies(kind, heads)
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
    heads, axis = _copies(kind, heads)
    if heads is not None and axis is not None:
        piece, dim = _fold(piece * _gain(role, heads), kind, size, heads)
        piece = piece.flatten(dim + 1, dim + 2).narrow(dim + 1, 0, heads.target)
        if role.startswith("attn.q.") and 0 < heads.full < heads.copies:
            # A cut copy of k has no q to meet: the logits stay those of the whole copies.
            mask = torch.arange(heads.target, device=piece.device) < heads.full * heads.source
            piece = piece * mask.view(-1, *(1,) * (len(size) - 1 - axis))
        piece = piece.flatten(dim, dim + 1)
    return _crop(piece, size)


def linear_scalers(
    config: TemplateConfig,
    kind: str,
    shape: tuple[int, ...],
    depth: int,
    *,
    epsilon: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return WAVE's linear-padding scalers (Eq. B.1), to the letter.

    S^(l,t) = alpha_t 1_(i,j) + epsilon N(0, 1), alpha_t = 1 for t <= N / 2 and l / L after, where
    i = floor(((t - 1) mod s1 s2) / s2) and j = (t - 1) mod s2 in the paper's orientation, in x out.

    Args:
        config: the template set.
        kind: its kind.
        shape: of one scaler, out x in.
        depth: L of the target.
        epsilon: of the noise (the paper gives no mean and variance: 0 and 1 here).
        generator: of the noise.

    Returns:
        ``[depth, N, *shape]``.
    """
    number = config.kinds[kind].number
    scalers = epsilon * torch.randn(depth, number, *shape, generator=generator)
    s2, s1 = shape if len(shape) == 2 else (shape[0], 1)
    layers = torch.arange(1, depth + 1) / depth
    for t in range(1, number + 1):
        i, j = (t - 1) % (s1 * s2) // s2, (t - 1) % s2
        place = (j, i) if len(shape) == 2 else (j,)
        scalers[(slice(None), t - 1, *place)] += 1.0 if t <= number / 2 else layers
    return scalers


@dataclass(frozen=True)
class _Tiling:
    """Which auxiliary scaler stands where along one axis of a target, and its share as an input."""

    source: Tensor  # [s'] index of the auxiliary scaler
    whole: Tensor  # [s'] whether it belongs to a whole copy of the auxiliary axis
    count: int  # of whole copies
    gain: float  # for what a narrower target leaves out


def _tile(blocks: int, width: int, length: int, target: int, heads: HeadDims | None) -> _Tiling:
    """Tile ``blocks`` scalers (``length`` long in the auxiliary model) over ``target``."""
    place = torch.arange(math.ceil(target / width))
    copies, full, gain = 1, 1, 1.0
    if heads is not None:
        copies, full = heads.copies, max(heads.full, 1)
        gain = max(1.0, math.sqrt(heads.source / heads.target))
    whole = (place // blocks < max(target // length, 1)) & (torch.arange(copies) < full)[:, None]
    gain *= max(1.0, math.sqrt(length / target))
    count = max(target // length, 1) * full
    return _Tiling(place.repeat(copies) % blocks, whole.flatten(), count, gain)


def widen_scalers(
    config: TemplateConfig,
    kind: str,
    scalers: Tensor,
    source: tuple[int, ...],
    target: tuple[int, ...],
    *,
    heads: HeadDims | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tile the scalers of an auxiliary model over a parameter of another width.

    Output-side scalers repeat. Input-side scalers repeat too and are divided by the number of whole
    copies, so that growing every width by an integer factor leaves the function unchanged; the
    copies of one input get noise that sums to zero, which breaks their symmetry and not the
    function. An input copied in part is not read at first; a narrower input is rescaled.

    Args:
        config: the template set.
        kind: its kind.
        scalers: ``[depth, N, s1, s2]`` (or ``[depth, N, s]``) of the auxiliary model.
        source: size of the parameter there, ``(out, in)`` of one part.
        target: size of the parameter in the target.
        heads: head dims, where they may differ.
        noise: standard deviation of the zero-sum noise, relative to the scalers' own.
        generator: of the noise.

    Returns:
        ``[depth, N, *scaler_shape(target)]``.
    """
    spec = config.kinds[kind]
    heads, head_axis = _copies(kind, heads)
    inner = _inner(target, heads, head_axis)
    parts = len(kind_roles(kind)) // spec.parts
    scale = noise * float(scalers.square().mean().sqrt())
    tilings = [
        _tile(
            scalers.shape[2 + axis] // (parts if axis == 0 else 1),
            spec.shape[axis] // (spec.parts if axis == 0 else 1),
            source[axis],
            inner[axis],
            heads if axis == head_axis else None,
        )
        for axis in range(len(target))
    ]
    wide = scalers.unflatten(2, (parts, -1)).index_select(3, tilings[0].source)
    if len(target) == 2:
        columns = tilings[1]
        wide = wide.index_select(4, columns.source)
        if scale and heads is not None and head_axis == 0 and heads.full > 1:
            # Copies of q meet identical copies of k: noise that sums to zero cancels in the logits.
            copies = wide[:, :, 0].unflatten(2, (heads.copies, -1))[:, :, : heads.full]
            copies += scale * _zero_sum(copies, 2, generator)
        if scale and columns.count > 1:
            for block in range(scalers.shape[3]):
                same = torch.nonzero((columns.source == block) & columns.whole).flatten()
                wide[..., same] += scale * _zero_sum(wide[..., same], -1, generator)
        wide *= columns.whole.to(wide) * (columns.gain / columns.count)
    return wide.flatten(2, 3)


def _zero_sum(like: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return normal noise of ``like``'s shape that sums to zero along ``dim``."""
    noise = torch.randn(like.shape, generator=generator).to(like)
    return noise - noise.mean(dim, keepdim=True)
