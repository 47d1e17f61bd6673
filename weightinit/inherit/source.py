"""What weights are inherited from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece

__all__ = ["Later", "Outside", "Source"]


class Source(Protocol):
    """What weights are inherited from; :class:`weightinit.ancestor.ancestor.Ancestor` is one."""

    @property
    def anatomy(self) -> Anatomy:
        """Of the ancestor."""
        ...

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of a stored tensor, in floating point on the CPU."""
        ...


@dataclass(frozen=True)
class Later:
    """A tensor that is read when it is needed.

    Args:
        source: of the weights.
        piece: that is read.
    """

    source: Source
    piece: Piece

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return torch.Size(self.piece.size)

    def to(self, other: Tensor) -> Tensor:
        """Return it in the dtype and on the device of another."""
        return self.source.part(self.piece).to(other)


class Outside(Mapping[str, Later]):
    """A source's tensors outside its blocks by role, read when they are needed.

    Args:
        source: of the weights.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, role: str) -> Later:
        return Later(self.source, self.source.anatomy.outside[role])

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.anatomy.outside)

    def __len__(self) -> int:
        return len(self.source.anatomy.outside)
