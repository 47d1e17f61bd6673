"""Which heads and neurons a smaller block keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.methods.activation.leastsquares import Moments, choose

__all__ = ["Keep"]


class Keep:
    """Which heads' channels and neurons are kept, of neighbouring blocks side by side.

    Args:
        old: anatomy of the ancestor.
        new: of the target.
        group: the ancestor's blocks that become one.
    """

    def __init__(self, old: Anatomy, new: Anatomy, group: Sequence[int]) -> None:
        self.old, self.new, self.group = old, new, group
        self.pieces: Mapping[str, Piece] = old.blocks[group[0]]
        #: By branch, ``"attn"`` or ``"mlp"``, int64 ``[channels]``.
        self.kept: dict[str, Tensor] = {}

    def choose(self, branch: str, moments: Moments) -> None:
        """Choose what explains best what a branch writes into the stream.

        Args:
            branch: ``"attn"`` or ``"mlp"``.
            moments: of the hidden activations of all blocks ``[..., blocks * channels]``, and of
                what they write.

        Raises:
            ProjectionError: if something acts on all heads or neurons together.
        """
        label = "h" if branch == "attn" else "m"
        size, wanted = self.old.sizes[label], self.new.sizes[label]
        unit = self.old.sizes["k"] if branch == "attn" else 1
        total = size * unit
        if wanted == size and len(self.group) == 1:
            self.kept[branch] = torch.arange(total)
            return
        if whole := self._whole(label):
            raise ProjectionError(
                f"{whole} acts on all of {label!r} together: keep {label} = {size} and depth "
                f"{self.old.depth}, or use method='weight_selection'"
            )
        gram, cross = moments.centred()
        # What heads of one block share, tells where all of them must come from.
        apart = label == "h" and any(self._shared(piece) for piece in self.pieces.values())
        length = total if apart else len(gram)
        found: list[tuple[float, Tensor]] = []
        for start in range(0, len(gram), length):
            span = slice(start, start + length)
            units, gain = choose(gram[span, span], cross[span], wanted, unit=unit)
            found.append((gain, start + units * unit))
        first = max(found, key=lambda one: one[0])[1]
        self.kept[branch] = (first[:, None] + torch.arange(unit)).flatten()

    def keep(self, role: str, values: Sequence[Tensor]) -> Tensor:
        """Return what is kept of a part, given that of every block."""
        piece = self.pieces[role]
        kept, axes = self.kept[piece.facts.branch], piece.axes
        dim = next((n for n, axis in enumerate(axes) if {"h", "m"} & {*axis}), None)
        attention = piece.facts.branch == "attn"
        unit = self.old.sizes["k"] if attention else 1
        if dim is None:
            total = self.old.sizes["h"] * unit if attention else self.old.sizes["m"]
            return values[int(kept[0]) // total]
        unit = unit if axes[dim] == ("h",) else 1
        return torch.cat(list(values), dim).index_select(
            dim, (kept[::unit] // unit).to(values[0].device)
        )

    def _whole(self, label: str) -> str:
        """Return a role that acts on all heads or neurons together, or nothing."""
        for role, piece in self.pieces.items():
            axes = [axis for axis in piece.axes if label in axis]
            norm = piece.facts.kind == "norm" and piece.facts.gain
            shares = label == "h" and any("e" in axis for axis in piece.axes)
            if len(axes) > 1 or (axes and norm) or shares:
                return role
        return ""

    @staticmethod
    def _shared(piece: Piece) -> bool:
        labels = {label for axis in piece.axes for label in axis}
        return piece.facts.branch == "attn" and not labels & {"h", "d"}
