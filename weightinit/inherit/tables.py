"""Tables of relative positions, resampled for the windows of another model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightinit.anatomy.resample import resample_axis, resample_table

__all__ = ["TABLES", "resized"]

#: Roles of the tables that can be resampled; their first axis, u, is of offsets.
TABLES = re.compile(r"attn\.(rel_table|rel_pos_[hw])|rel_pos\.table")


def resized(
    value: Tensor,
    role: str,
    size: tuple[int, ...],
    *,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> Tensor:
    """Return a table for another window, and any other tensor as it is.

    Args:
        value: of the ancestor.
        role: canonical.
        size: of the target's; only the first axis is looked at.
        old: traits of the ancestor, with the grid of its patches.
        new: of the target.

    Raises:
        ProjectionError: if the tables are not of these grids.

    Examples:
        >>> import torch
        >>> grids = {"old": {"grid": (4, 4)}, "new": {"grid": (3, 3)}}
        >>> resized(torch.zeros(49, 2), "attn.rel_table", (25, 2), **grids).shape
        torch.Size([25, 2])
    """
    if not TABLES.fullmatch(role):
        return value
    if role.startswith("attn.rel_pos_"):
        return value if len(value) == size[0] else resample_axis(value, size[0])
    before, after = old.get("grid"), new["grid"]
    if len(value) == size[0] and before in (None, after):
        return value
    return resample_table(value, before, after, size[0])
