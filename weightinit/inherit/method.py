"""What weights are inherited from, and what every way to inherit them is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.recipes import Inheritance

__all__ = ["LazyTensor", "Method", "Runnable", "Source", "check_options", "outside_of"]


class Source(Protocol):
    """What weights are inherited from; :class:`weightinit.ancestor.ancestor.Ancestor` is one."""

    @property
    def anatomy(self) -> Anatomy:
        """Anatomy of the ancestor."""
        ...

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of a stored tensor, in floating point on the CPU."""
        ...


class Runnable(Source, Protocol):
    """A source of weights that can be run."""

    def module(self) -> nn.Module:
        """Return a copy to run, in eval mode."""
        ...


class Method(Protocol):
    """One way to inherit weights: a frozen dataclass of its options."""

    def plan(
        self,
        source: Runnable,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> Inheritance:
        """Return a part for every piece of a target, and what to say of them.

        ``seed`` is the base seed for all random draws; ``calibration`` are a few batches that the
        ancestor takes, and methods without use for it say so.
        """
        ...


def check_options(options: object, **allowed: Sequence[object]) -> None:
    """Raise ProjectionError if an option of a method is none of the allowed values."""
    for name, values in allowed.items():
        if (value := getattr(options, name)) not in values:
            raise ProjectionError(f"{name}={value!r}: use one of {values}")


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
