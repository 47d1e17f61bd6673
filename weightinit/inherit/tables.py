"""Tables of relative positions, resampled for the windows of another model."""

from __future__ import annotations

from torch import Tensor

from weightinit.anatomy import Piece, Traits
from weightinit.anatomy.resample import resample_axis, resample_table

__all__ = ["resized"]


def resized(value: Tensor, piece: Piece, *, old: Traits, new: Traits) -> Tensor:
    """Return a table for another window, and any other tensor as it is."""
    rows = piece.size[0]
    if piece.facts.kind != "table":
        return value
    if piece.axes[1] == ("k",):  # offsets along one axis of the grid, for each channel
        return value if len(value) == rows else resample_axis(value, rows)
    if len(value) == rows and old.grid in (None, new.grid):
        return value
    assert new.grid is not None
    return resample_table(value, old.grid, new.grid, rows)
