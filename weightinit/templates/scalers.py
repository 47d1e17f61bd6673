"""Weight scalers for a target of any size: fitted, linear padding, or the auxiliary model's.

The default interpolates the auxiliary model's over depth (all of them where they were trained at
several depths, the upper half where not), damps them in a much deeper target, and tiles them over
width so that growing by an integer factor leaves the function unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import WRITING, damping
from weightinit.inherit.fresh import sub_generator
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import HeadDims, folding, inner_size, scaler_shape
from weightinit.templates.config import TemplateConfig, kind_roles
from weightinit.templates.learngene import closed_form

__all__ = [
    "fitted_index",
    "head_dims",
    "interpolate_depth",
    "linear_scalers",
    "size_key",
    "start_scalers",
    "stretch_depth",
    "widen_scalers",
]

Scalers = Literal["interpolate", "linear", "fitted"]
#: Relative size of the zero-sum noise that tells the copies of one input apart.
NOISE = 0.1


def interpolate_depth(scalers: Tensor, depth: int) -> Tensor:
    """Interpolate scalers linearly over depth; the first and last block keep theirs.

    Args:
        scalers: ``[L, ...]`` of the auxiliary model.
        depth: of the target.

    Returns:
        ``[depth, ...]``.

    Examples:
        >>> interpolate_depth(torch.tensor([0.0, 1.0]), 3)
        tensor([0.0000, 0.5000, 1.0000])
    """
    blocks = scalers.shape[0]
    if depth == blocks:
        return scalers
    place = torch.linspace(0, blocks - 1, depth) if depth > 1 else torch.tensor([(blocks - 1) / 2])
    low = place.floor().long()
    weight = (place - low).view(-1, *(1,) * (scalers.dim() - 1)).to(scalers)
    return torch.lerp(scalers[low], scalers[(low + 1).clamp(max=blocks - 1)], weight)


def stretch_depth(scalers: Tensor, depth: int) -> Tensor:
    """Keep the first half of the scalers, and interpolate the others over the blocks that are left.

    For templates that were trained at one depth, whose first blocks do what no average of blocks
    does; a shallower target takes the first blocks alone (ours; chosen on validation images).

    Args:
        scalers: ``[L, ...]`` of the auxiliary model.
        depth: of the target.

    Returns:
        ``[depth, ...]``.

    Examples:
        >>> stretch_depth(torch.tensor([0.0, 1.0, 2.0, 3.0]), 5)
        tensor([0.0000, 1.0000, 2.0000, 2.5000, 3.0000])
    """
    blocks = scalers.shape[0]
    if depth <= blocks:
        return scalers[:depth]
    half = blocks // 2
    return torch.cat([scalers[:half], interpolate_depth(scalers[half:], depth - half)])


def start_scalers(
    bundle: TemplateBundle,
    anatomy: Anatomy,
    scalers: str = "interpolate",
    *,
    seed: int = 0,
    noise: float = NOISE,
) -> dict[str, Tensor]:
    """Return the scalers that a bundle gives to a target of any size.

    Args:
        bundle: the templates.
        anatomy: of the target.
        scalers: ``"interpolate"``, ``"linear"`` (Eq. B.1) or ``"fitted"``.
        seed: of the noise.
        noise: see :func:`widen_scalers`.

    Returns:
        From kind to ``[depth, N, *scaler_shape]``, for the kinds that the target has.

    Raises:
        ProjectionError: if the bundle has no fitted scalers of this size, or the value is unknown.
    """
    if scalers not in get_args(Scalers):
        raise ProjectionError(f"scalers={scalers!r} is not one of {get_args(Scalers)}")
    config = bundle.template_config
    if scalers == "linear" and config.method != "wave":
        raise ProjectionError(
            f"scalers='linear' is WAVE's Eq. B.1; {config.method} templates are whole layers: use "
            "'interpolate', which takes the method's own closed form"
        )
    heads = head_dims(bundle, anatomy)
    fitted = fitted_index(bundle, anatomy)
    if scalers == "fitted" and fitted is None:
        raise ProjectionError(
            f"the bundle has no scalers fitted for {size_key(anatomy)}: fit them with "
            "weightinit.fit_scalers, or use scalers='interpolate'"
        )
    found: dict[str, Tensor] = {}
    for kind in config.kinds:
        piece = _first_piece(anatomy, kind)
        if piece is None:
            continue
        generator = sub_generator(seed, f"scalers.{kind}")
        if scalers == "fitted":
            values = bundle.tensors.get(f"fitted.{fitted}.{kind}")
            number = config.kinds[kind].number
            wanted = (anatomy.depth, number, *scaler_shape(config, kind, piece.size, heads))
            found_shape = None if values is None else tuple(values.shape)
            if values is None or found_shape != wanted:
                raise ProjectionError(
                    f"fitted scalers of {kind} have shape {found_shape} and the model needs "
                    f"{wanted}: fit them anew with weightinit.fit_scalers"
                )
            found[kind] = values.double()
        elif scalers == "linear":
            shape = scaler_shape(config, kind, piece.size, heads)
            found[kind] = linear_scalers(config, kind, shape, anatomy.depth, generator=generator)
        else:
            found[kind] = widen_scalers(
                config,
                kind,
                _auxiliary_scalers(bundle, kind, anatomy.depth),
                tuple(
                    math.prod(bundle.config.sizes[label] for label in axis) for axis in piece.axes
                ),
                piece.size,
                heads=heads,
                noise=noise,
                generator=generator,
            )
    return found


def _auxiliary_scalers(bundle: TemplateBundle, kind: str, depth: int) -> Tensor:
    """Return scalers at the auxiliary model's width and the target's depth."""
    config = bundle.template_config
    if config.method == "wave":
        trained = bundle.config.traits.get("trained_depths")
        several = isinstance(trained, (list, tuple)) and len(trained) > 1
        move = interpolate_depth if several else stretch_depth
        scalers = move(bundle.tensors[f"scalers.{kind}"].double(), depth)
        return scalers * damping(depth, bundle.config.depth) if kind in WRITING else scalers
    spec = config.kinds[kind]
    values = closed_form(config.method, spec.number, depth).double()
    return values.view(depth, spec.number, *(1,) * len(spec.shape))


def _first_piece(anatomy: Anatomy, kind: str) -> Piece | None:
    """Return the first parameter of a kind in a target's blocks: all blocks are alike in size."""
    roles = kind_roles(kind)
    pieces = (block[role] for block in anatomy.blocks for role in roles if role in block)
    return next(pieces, None)


def head_dims(bundle: TemplateBundle, anatomy: Anatomy) -> HeadDims:
    """Return the head dims of a bundle's auxiliary model and of a target."""
    return HeadDims(bundle.config.sizes["k"], anatomy.sizes["k"])


def size_key(anatomy: Anatomy) -> dict[str, int]:
    """Return what tells two sizes apart for fitted scalers: depth, width, heads, MLP."""
    return {"depth": anatomy.depth, **{label: anatomy.sizes[label] for label in "dhkm"}}


def fitted_index(bundle: TemplateBundle, anatomy: Anatomy) -> int | None:
    """Return which of the bundle's fitted scalers belong to a target's size, if any."""
    key = size_key(anatomy)
    for index, entry in enumerate(bundle.config.fitted):
        if {"depth": entry["depth"], **entry["sizes"]} == key:
            return index
    return None


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
    heads, head_axis = folding(kind, heads)
    inner = inner_size(target, heads, head_axis)
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
