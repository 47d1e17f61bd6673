"""What weights are inherited from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece

__all__ = ["LazyTensor", "Source", "outside_of"]


class Source(Protocol):
    """What weights are inherited from; :class:`weightinit.ancestor.ancestor.Ancestor` is one."""

    @property
    def anatomy(self) -> Anatomy:
        """Anatomy of the ancestor."""
        ...

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of a stored tensor, in floating point on the CPU."""
        ...


@dataclass(frozen=True)
class LazyTensor:
    """A canonical part of a source's tensor, which is read when it is needed."""

    source: Source
    piece: Piece

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return torch.Size(self.piece.size)

    def to(self, other: Tensor) -> Tensor:
        """Return it in the dtype and on the device of another."""
        return self.source.part(self.piece).to(other)


def outside_of(source: Source) -> dict[str, LazyTensor]:
    """Return a source's tensors outside its blocks by role."""
    return {role: LazyTensor(source, piece) for role, piece in source.anatomy.outside.items()}
