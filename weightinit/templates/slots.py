"""Which parameters of a model's blocks are composed, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, ParamSpec
from weightinit.errors import ProjectionError

__all__ = ["Slot", "find_slots"]


@dataclass(frozen=True)
class Slot:
    """One parameter of every block: which composed parts it stores, and where it lives."""

    specs: tuple[ParamSpec, ...]  # one a block

    @property
    def stacked(self) -> bool:
        """Whether it is stored as its canonical parts, one below the other."""
        layout = self.specs[0].layout
        return layout.fused in (-1, 0) and all(view.plain for view in layout.parts)

    def stored(self, parts: list[Tensor], seen: Anatomy) -> list[Tensor]:
        """Return the parameter of every block from its parts ``[blocks, *size]``."""
        if not self.stacked:
            blocks = zip(*(part.unbind(0) for part in parts), strict=True)
            return [
                seen.merge(spec, dict(zip(spec.parts, block, strict=True)))
                for spec, block in zip(self.specs, blocks, strict=False)
            ]
        return list((parts[0] if len(parts) == 1 else torch.cat(parts, 1)).unbind(0))

    def places(
        self, model: nn.Module, blocks: int | None = None
    ) -> Iterator[tuple[int, nn.Module, str]]:
        """Yield block, module and attribute of every place, in the first ``blocks`` of them."""
        for index, spec in enumerate(self.specs[:blocks]):
            for name in (spec.name, *spec.tied):
                path, _, leaf = name.rpartition(".")
                yield index, model.get_submodule(path), leaf


def find_slots(seen: Anatomy, covered: set[str]) -> tuple[Slot, ...]:
    """Return the parameters of the blocks that ``covered`` roles make up."""
    slots = {}
    for piece in seen.blocks[0].values():
        if piece.role not in covered or piece.spec.name in slots:
            continue
        specs = tuple(b[piece.role].spec for b in seen.blocks if piece.role in b)
        alike = all(s.shape == specs[0].shape and s.parts == specs[0].parts for s in specs)
        if len(specs) != seen.depth or not alike or not covered.issuperset(piece.spec.parts):
            raise ProjectionError(
                f"{piece.spec.role} ({piece.spec.name}) cannot be composed: all blocks must have "
                f"it in one size, made of kinds of the config ({sorted(covered)}). Leave its kind "
                "out of the config, or use a model of like blocks"
            )
        slots[piece.spec.name] = Slot(specs)
    return tuple(slots.values())
