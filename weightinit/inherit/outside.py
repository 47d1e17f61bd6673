"""The tensors outside the blocks: collected from a model, and carried into one of another size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from weightinit.anatomy import Anatomy, Piece, Traits, label_of
from weightinit.anatomy.resample import resample_patch, resample_pos
from weightinit.inherit.axis import Axis, tiled
from weightinit.inherit.source import LazyTensor
from weightinit.init.operators import along
from weightinit.plan import Part

__all__ = ["carry", "collect"]

Value = Tensor | LazyTensor


def collect(anatomy: Anatomy, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of a model's tensors outside its blocks, by canonical role."""
    tensors: dict[str, Tensor] = {}
    for piece in anatomy.outside.values():
        value = parameters[piece.spec.name].detach().cpu()
        tensors[piece.role] = anatomy.split(piece.spec, value)[piece.role].clone()
    return tensors


def resampled(piece: Piece) -> bool:
    """Return whether a piece is of positions or patches, which another grid or size resamples."""
    kinds = {label_of(label).kind for labels in piece.axes for label in labels}
    return piece.facts.kind == "position" or "patch" in kinds


def carry(
    piece: Piece,
    target: Anatomy,
    outside: Mapping[str, Value],
    traits: Traits,
    axis: Axis | None = None,
) -> Part | None:
    """Return how one tensor outside the blocks comes from a source of another size.

    Args:
        piece: piece of the target.
        target: anatomy of the target.
        outside: tensors of the source by role, from :func:`collect`.
        traits: traits of the source, of which grid and prefix tokens count.
        axis: operators for the residual stream; None repeats its channels.

    Returns:
        None where the source has nothing for it, such as other classes or a token it lacks.
    """
    name = _name(piece, target, outside)
    if name is None:
        return None
    value, kind = outside[name], piece.facts.kind
    axis = axis or tiled(target.sizes.get("d", 0) or piece.size[-1])
    dim, op = -1, axis.op("gain" if kind == "norm" and piece.facts.gain else "rows")
    text = f"{name} {'x'.join(map(str, value.shape))}"
    resize: Callable[[Tensor], Tensor] | None = None
    if resampled(piece) and kind != "position":
        if any(other.facts.kind == "stem" for other in target.outside.values()):
            return None
        _, channels, *size = piece.size
        dim, resize = 0, partial(resample_patch, size=size, in_chans=channels)
    elif kind == "position" and (before := traits.positions) and (after := target.traits.positions):
        (old, prefix), (new, more) = before, after
        if old[0] * old[1] + prefix != value.shape[0]:
            return None
        grids = {"old_grid": old, "new_grid": new, "old_prefix": prefix, "new_prefix": more}
        dim, resize = 1, partial(resample_pos, **grids)
        text = f"{name} of a {old[0]}x{old[1]} grid"
    elif kind == "head":
        if value.shape[0] != piece.size[0]:
            return None
        dim, op, text = 1, axis.columns if len(value.shape) == 2 else None, name
    elif len(value.shape) != len(piece.size) or value.shape[:-1] != tuple(piece.size[:-1]):
        return None

    def inherit(out: Tensor) -> None:
        carried = value.to(out)
        if resize is not None:
            carried = resize(carried)
        out.copy_(along(carried, dim, op) if op is not None else carried)

    return Part("written", text, inherit)


def _name(piece: Piece, target: Anatomy, outside: Mapping[str, Value]) -> str | None:
    """Return the source's role for a piece: its own, or one that serves as it."""
    for role in (piece.role, *piece.facts.substitutes):
        # A final norm that the target has as well is for that one.
        taken = role != piece.role and piece.facts.kind == "norm" and role in target.outside
        if role in outside and not taken:
            return role
    return None
