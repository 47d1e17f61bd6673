"""Which heads and neurons a smaller block keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.methods.activation.leastsquares import choose

__all__ = ["Keep"]

#: How many times as many neurons as are kept are candidates.
MORE = 1.5


class Keep:
    """The heads' channels and the neurons that are kept, of neighbouring blocks side by side.

    Attributes:
        kept: by branch, ``"attn"`` or ``"mlp"``, the indices of the channels, int64.
    """

    def __init__(self, old: Anatomy, new: Anatomy, group: Sequence[int]) -> None:
        self.old, self.new, self.group = old, new, group
        self.pieces: Mapping[str, Piece] = old.blocks[group[0]]
        self.kept: dict[str, Tensor] = {}

    def _units(self, branch: str) -> tuple[str, int]:
        """Return the label of what comes and goes together, and how many channels that is."""
        return ("h", self.old.sizes["k"]) if branch == "attn" else ("m", 1)

    def all(self, branch: str) -> bool:
        """Return whether all of a branch is kept, which needs no choice."""
        label, unit = self._units(branch)
        size = self.old.sizes[label]
        if self.new.sizes[label] != size or len(self.group) > 1:
            return False
        self.kept[branch] = torch.arange(size * unit)
        return True

    def candidates(self, branch: str, written: Tensor) -> Tensor:
        """Return the channels that are chosen from: all heads', and neurons that write most.

        ``written`` is the variance that each hidden channel of all blocks side by side writes.
        """
        label, unit = self._units(branch)
        number = min(len(written), int(MORE * self.new.sizes[label]))
        if unit > 1:
            return torch.arange(len(written), device=written.device)
        return written.sort(descending=True, stable=True).indices[:number].sort().values

    def choose(self, branch: str, gram: Tensor, cross: Tensor, among: Tensor | None = None) -> None:
        """Choose what explains best what a branch writes into the stream.

        ``gram`` and ``cross`` are the covariances of the hidden activations of all blocks side by
        side, of the channels ``among`` them, and of those and what they write. Whatever acts on all
        heads or neurons together is refused.
        """
        label, unit = self._units(branch)
        size, number = self.old.sizes[label], self.new.sizes[label]
        total = size * unit
        if whole := self._whole(label):
            raise ProjectionError(
                f"{whole} acts on all of {label!r} together: keep {label} = {size} and depth "
                f"{self.old.depth}, or use method='weight_selection'"
            )
        # What the heads of one block share decides from which block all of them must come.
        apart = label == "h" and any(self._shared(piece) for piece in self.pieces.values())
        length = total if apart else len(gram)
        choices: list[tuple[float, Tensor]] = []
        for start in range(0, len(gram), length):
            span = slice(start, start + length)
            units, gain = choose(gram[span, span], cross[span], number, unit=unit)
            choices.append((gain, start + units * unit))
        first = max(choices, key=lambda choice: choice[0])[1]
        kept = (first[:, None] + torch.arange(unit)).flatten()
        self.kept[branch] = kept if among is None else among.cpu()[kept]

    def keep(self, role: str, values: Sequence[Tensor]) -> Tensor:
        """Return what is kept of a part, given that of every block."""
        piece = self.pieces[role]
        kept, axes = self.kept[piece.facts.branch], piece.axes
        label, unit = self._units(piece.facts.branch)
        dim = next((n for n, axis in enumerate(axes) if {"h", "m"} & {*axis}), None)
        if dim is None:
            return values[int(kept[0]) // (self.old.sizes[label] * unit)]
        unit = unit if axes[dim] == ("h",) else 1
        index = (kept[::unit] // unit).to(values[0].device)
        return torch.cat(list(values), dim).index_select(dim, index)

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
        """Return whether all heads of a block share a part."""
        labels = {label for axis in piece.axes for label in axis}
        return piece.facts.branch == "attn" and not labels & {"h", "d"}
