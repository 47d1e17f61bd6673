"""The tensors outside the blocks: collected from a model, and carried into one of another size."""

from __future__ import annotations

from collections.abc import Mapping

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
    found: dict[str, Tensor] = {}
    for piece in anatomy.outside.values():
        value = parameters[piece.spec.name].detach().cpu()
        found[piece.role] = anatomy.split(piece.spec, value)[piece.role].clone()
    return found


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
    value = outside[name]
    axis = axis or tiled(target.sizes.get("d", 0) or piece.size[-1])
    text = f"{name} {_shape(value)}"
    if resampled(piece) and piece.facts.kind != "position":
        if any(other.facts.kind == "stem" for other in target.outside.values()):
            return None
        inputs, size = piece.size[1], (piece.size[2], piece.size[3])

        def copy(out: Tensor) -> Tensor:
            return along(resample_patch(value.to(out), size, inputs), 0, axis.rows)

    elif (
        piece.facts.kind == "position"
        and (before := traits.positions)
        and (after := target.traits.positions)
    ):
        (old, prefix), (new, more) = before, after
        if old[0] * old[1] + prefix != value.shape[0]:
            return None
        text = f"{name} of a {old[0]}x{old[1]} grid"

        def copy(out: Tensor) -> Tensor:
            return along(resample_pos(value.to(out), old, new, prefix, more), 1, axis.rows)

    elif piece.facts.kind == "head":
        if value.shape[0] != piece.size[0]:
            return None
        text = name

        def copy(out: Tensor) -> Tensor:
            rows = value.to(out)
            return along(rows, 1, axis.columns) if rows.dim() == 2 else rows

    else:
        if len(value.shape) != len(piece.size) or value.shape[:-1] != tuple(piece.size[:-1]):
            return None
        side = "gain" if piece.facts.kind == "norm" and piece.facts.gain else "rows"

        def copy(out: Tensor) -> Tensor:
            return along(value.to(out), -1, axis.op(side))

    return Part("written", text, lambda out: out.copy_(copy(out)))


def _name(piece: Piece, target: Anatomy, outside: Mapping[str, Value]) -> str | None:
    """Return the source's role for a piece: its own, or one that serves as it."""
    for role in (piece.role, *piece.facts.substitutes):
        # A final norm that the target has as well is for that one.
        taken = role != piece.role and piece.facts.kind == "norm" and role in target.outside
        if role in outside and not taken:
            return role
    return None


def _shape(tensor: Value) -> str:
    return "x".join(map(str, tensor.shape))
