"""What the suites of `real.py` share: their options, and pieces of work that each leave a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Options", "Piece"]


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line.

    Args:
        ancestor: by name.
        cache: folder of decoded data.
        work: folder of the suite's finished pieces.
        targets: sizes; none are the suite's own.
        data: a pack, where it is not the suite's own.
        seeds: of all random draws; none are the suite's own.
        only: starts; none are all.
        part: images to score on: ``"val"`` for choices, ``"test"`` for reports.
        device: to start, to train and to score on.
        smoke: whether everything is tiny.
    """

    ancestor: str
    cache: Path
    work: Path
    targets: tuple[str, ...] = ()
    data: str = ""
    seeds: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    part: Literal["val", "test"] = "test"
    device: str = "cpu"
    smoke: bool = False

    def wants(self, start: str) -> bool:
        """Whether a start is among those asked for."""
        return not self.only or start in self.only


class Piece(ABC):
    """A piece of work that makes one row, in a file of its own."""

    @property
    def stage(self) -> int:
        """When the piece is done: those of a lower stage come first."""
        return 0

    @property
    @abstractmethod
    def title(self) -> str:
        """What tells the piece from all others of its suite."""

    @abstractmethod
    def row(self, options: Options) -> dict[str, Any]:
        """Do the work."""

    def file(self, options: Options) -> Path:
        """Return the file of its row."""
        slug = "".join(c if c.isalnum() else "-" for c in self.title.lower())
        return options.work / f"{slug}.json"
