"""The tensors outside the blocks: collected from a model, and carried into one of another size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.anatomy.resample import resample_patch, resample_pos
from weightinit.init.operators import Op, along, repeat, share
from weightinit.plan import Part

__all__ = ["Axis", "carry", "collect", "tiled"]


def collect(anatomy: Anatomy, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors outside its blocks, by canonical role, as copies.

    Args:
        anatomy: of the model.
        parameters: its parameters by name.
    """
    found: dict[str, Tensor] = {}
    for piece in anatomy.outside.values():
        value = parameters[piece.spec.name].detach().cpu()
        found[piece.role] = anatomy.split(piece.spec, value)[piece.role].clone()
    return found


class Value(Protocol):
    """A tensor, or what will be read as one when it is needed."""

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        ...

    def to(self, other: Tensor) -> Tensor:
        """Return it in the dtype and on the device of another."""
        ...


@dataclass(frozen=True)
class Axis:
    """What becomes of one axis when its length changes.

    Args:
        rows: makes new channels out of old ones, in whatever produces the axis.
        columns: makes what reads the old channels read the new ones.
        gain: acts on the elementwise weights of norms and layer scales; None is as ``rows``.
    """

    rows: Op
    columns: Op
    gain: Op | None = None

    def op(self, side: str) -> Op:
        """Return the operator of a side: ``"rows"``, ``"columns"`` or ``"gain"``."""
        return self.rows if side == "gain" and self.gain is None else getattr(self, side)


def tiled(size: int) -> Axis:
    """Return the axis that repeats channels, whole copies sharing what reads them."""
    return Axis(
        lambda tensor, dim: repeat(tensor, dim, size),
        lambda tensor, dim: share(tensor, dim, size),
    )


def carry(
    piece: Piece,
    target: Anatomy,
    outside: Mapping[str, Value],
    traits: Mapping[str, Any],
    axis: Axis | None = None,
) -> Part | None:
    """Return how one tensor outside the blocks comes from a source of another size.

    Args:
        piece: of the target.
        target: its anatomy.
        outside: the source's tensors by role, from :func:`collect`.
        traits: the source's, from its anatomy: grid and prefix tokens.
        axis: what becomes of the residual stream; None repeats its channels.

    Returns:
        The part, or None where the source has nothing for it (another number of classes, a token or
        stem that it lacks).
    """
    role = piece.role
    name = role if role in outside else _source_role(role, target)
    value = outside.get(name)
    if value is None:
        return None
    axis = axis or tiled(target.sizes.get("d", 0) or piece.size[-1])
    if role == "patch.weight":
        if any(other.startswith("stem.") for other in target.outside):
            return None
        inputs, size = piece.size[1], (piece.size[2], piece.size[3])
        return Part(
            "written",
            f"{name} {_shape(value)}",
            lambda out: out.copy_(along(resample_patch(value.to(out), size, inputs), 0, axis.rows)),
        )
    if role == "pos" and "pos_prefix" in traits and "pos_prefix" in target.traits:
        own: Mapping[str, Any] = target.traits
        new = tuple(own["grid"]), int(own["pos_prefix"])
        old = tuple(traits["grid"]), int(traits["pos_prefix"])
        if old[0][0] * old[0][1] + old[1] != value.shape[0]:
            return None
        return Part(
            "written",
            f"{name} of a {old[0][0]}x{old[0][1]} grid",
            lambda out: out.copy_(
                along(resample_pos(value.to(out), old[0], new[0], old[1], new[1]), 1, axis.rows)
            ),
        )
    if role.startswith("head"):
        if value.shape[0] != piece.size[0]:
            return None
        if len(value.shape) == 2:
            return Part(
                "written", name, lambda out: out.copy_(along(value.to(out), 1, axis.columns))
            )
        return Part("written", name, lambda out: out.copy_(value.to(out)))
    if len(value.shape) != len(piece.size) or value.shape[:-1] != tuple(piece.size[:-1]):
        return None
    side = "gain" if "norm" in role and role.endswith("weight") else "rows"
    return Part(
        "written",
        f"{name} {_shape(value)}",
        lambda out: out.copy_(along(value.to(out), -1, axis.op(side))),
    )


def _source_role(role: str, target: Anatomy) -> str:
    """Return the source's role for a target's: one final norm, and one head for both tokens."""
    if role.startswith("fc_norm.") and role.replace("fc_norm", "norm") not in target.outside:
        return role.replace("fc_norm", "norm")
    if role == "token.dist":
        return "token.cls"
    return role.replace("head_dist", "head")


def _shape(tensor: Value) -> str:
    return "x".join(map(str, tensor.shape))
