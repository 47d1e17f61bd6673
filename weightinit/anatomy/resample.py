"""Resizing what lies outside the blocks: positions, patches and input channels, as timm does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from weightinit.errors import ProjectionError

__all__ = ["resample_axis", "resample_patch", "resample_pos", "resample_table"]


def resample_pos(
    pos: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    old_prefix: int = 0,
    new_prefix: int = 0,
) -> Tensor:
    """Return position embeddings for another grid, by timm's antialiased bicubic resampling.

    ``pos`` is ``[old_prefix + old_grid, d]``, the rows of prefix tokens first. Missing prefix rows
    are zeros, which leaves the tokens where their own embedding puts them.
    """
    if pos.ndim != 2 or pos.shape[0] != old_prefix + math.prod(old_grid):
        raise ProjectionError(
            f"position embeddings of shape {tuple(pos.shape)} do not hold {old_prefix} prefix rows "
            f"and a grid of {old_grid}: pass the grid and prefix that they were made for"
        )
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = resample_abs_pos_embed(
        pos[None, old_prefix:], list(new_grid), list(old_grid), num_prefix_tokens=0
    )[0]
    kept = pos[: min(old_prefix, new_prefix)]
    return torch.cat([kept, pos.new_zeros(new_prefix - len(kept), pos.shape[1]), grid])


def resample_table(
    table: Tensor,
    old_grid: tuple[int, int] | None,
    new_grid: tuple[int, int],
    rows: int,
) -> Tensor:
    """Return relative position biases for another window, as timm (and BEiT before it) does.

    ``table`` is ``[(2 a - 1) (2 b - 1) + extra, h]`` for a window of a x b patches, which is square
    where ``old_grid`` is None. The extra rows belong to the class token; missing ones are zeros.
    """
    old_size = _table_size(len(table), old_grid)
    new_size = _table_size(rows, new_grid)
    if old_size is None or new_size is None:
        raise ProjectionError(
            f"relative position biases of {len(table)} rows for a window of {old_grid} cannot be "
            f"resampled to {rows} rows for one of {new_grid}: build the target with the ancestor's "
            "img_size and patch_size, or pass the ancestor as a module or with grid="
        )
    inside, extra = table.split([old_size[0] * old_size[1], len(table) - math.prod(old_size)])
    if old_size != new_size:
        from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

        # With a dim for rows and one for columns, timm takes windows that are not square.
        image = inside.T.reshape(-1, *old_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, about how timm calls it
            resized = resize_rel_pos_bias_table(image, new_grid, (len(image), *new_size))
        # timm before 1.0.31 lays the heads' tables one under the other.
        inside = resized.reshape(len(image), -1).T.to(table.dtype)
    missing = rows - math.prod(new_size) - len(extra)
    zeros = table.new_zeros(max(missing, 0), table.shape[1])
    return torch.cat([inside, extra[: len(extra) + min(missing, 0)], zeros])


def _table_size(rows: int, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return how many offsets there are along rows and columns, or None if these are not they."""
    if grid is not None:
        size = 2 * grid[0] - 1, 2 * grid[1] - 1
        return size if 0 <= rows - size[0] * size[1] <= 3 else None
    sides = [math.isqrt(rows - extra) for extra in (0, 3) if rows > extra]
    found = [n for n, extra in zip(sides, (0, 3), strict=False) if n * n == rows - extra]
    return next(((n, n) for n in found if n % 2), None)


def resample_axis(table: Tensor, rows: int) -> Tensor:
    """Return decomposed relative positions ``[2 a - 1, k]`` for another window, linearly as SAM."""
    if len(table) == rows:
        return table.clone()
    return torch.nn.functional.interpolate(table.T[None], size=rows, mode="linear")[0].T


def resample_patch(weight: Tensor, size: Sequence[int], in_chans: int) -> Tensor:
    """Return a patch embedding ``[d, c, p, q]`` for another patch size and number of channels.

    Patches are resampled as FlexiViT does (Beyer et al. 2023, Eq. 4). Three channels become others
    by timm's ``adapt_input_conv``; any other number is tiled or folded such that the sum, the
    answer to a grey image, stays. A patch of a video, ``[d, c, frames, p, q]``, answers a still one
    as before (I3D's inflation, Carreira and Zisserman 2017).
    """
    if weight.ndim not in (4, 5) or len(size) not in (2, 3) or min(*size, in_chans) < 1:
        raise ProjectionError(
            f"a patch embedding of shape {tuple(weight.shape)} cannot be resampled to {in_chans} "
            f"channels of {tuple(size)}: pass [d, c, p, q] or [d, c, frames, p, q] and positive "
            "sizes"
        )
    from timm.layers.patch_embed import resample_patch_embed

    frames = (weight,) if weight.ndim == 4 else weight.unbind(2)
    adapted = [_adapt_channels(resample_patch_embed(x, list(size[-2:])), in_chans) for x in frames]
    if weight.ndim == 5 and len(size) == 3 and len(frames) == size[0]:
        return torch.stack(adapted, 2)
    still = adapted[0] if len(adapted) == 1 else torch.stack(adapted).sum(0)
    if len(size) == 3:
        return (still[:, :, None] / size[0]).repeat(1, 1, size[0], 1, 1)
    return still.clone() if still is weight else still


def _adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    channels = weight.shape[1]
    if in_chans == channels:
        return weight
    if channels == 3:
        from timm.models import adapt_input_conv

        return adapt_input_conv(in_chans, weight)
    source = torch.arange(max(in_chans, channels), device=weight.device)
    if in_chans < channels:
        folded = weight.new_zeros(weight.shape[0], in_chans, *weight.shape[2:])
        return folded.index_add(1, source % in_chans, weight)
    copies = torch.bincount(source % channels, minlength=channels).to(weight.dtype)
    return (weight / copies[:, None, None])[:, source % channels]
