"""How two models differ: one object that every method and every message uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from weightinit.anatomy.core import Anatomy
from weightinit.anatomy.labels import Labels
from weightinit.errors import ProjectionError

__all__ = ["Difference"]


@dataclass(frozen=True)
class Difference:
    """How a target differs in size from an ancestor.

    Args:
        old: anatomy of the ancestor.
        new: anatomy of the target.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d))
        ...     for n, d in ((3, 96), (2, 192)))
        >>> difference = Difference(old, new)
        >>> difference.grown, difference.shrunk
        ({'k': (32, 64), 'd': (96, 192), 'm': (384, 768)}, {'depth': (3, 2)})
    """

    old: Anatomy
    new: Anatomy

    @cached_property
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """Sizes of the channels that both have, before and after."""
        old, new = self.old.widths, self.new.widths
        return {label: (old[label], new[label]) for label in new if label in old}

    @cached_property
    def depths(self) -> Mapping[str, tuple[int, int]]:
        """Numbers of blocks, before and after: of each stage where there are several."""
        old, new = self.old.stages, self.new.stages
        if len(old) != len(new) or len(new) == 1:
            return {"depth": (self.old.depth, self.new.depth)}
        return {f"depth{stage}": pair for stage, pair in enumerate(zip(old, new, strict=True))}

    @cached_property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """The widths and the depths, before and after."""
        return {**self.widths, **self.depths}

    @cached_property
    def grown(self) -> Mapping[str, tuple[int, int]]:
        """What is larger in the target."""
        return {label: (a, b) for label, (a, b) in self.sizes.items() if b > a}

    @cached_property
    def shrunk(self) -> Mapping[str, tuple[int, int]]:
        """What is smaller in the target."""
        return {label: (a, b) for label, (a, b) in self.sizes.items() if b < a}

    @cached_property
    def wider(self) -> Mapping[str, tuple[int, int]]:
        """The channels that are of another number in the target."""
        return {label: (a, b) for label, (a, b) in self.widths.items() if a != b}

    def along(self, labels: Labels) -> tuple[tuple[int, int], ...] | None:
        """Return the sizes of an axis' labels, before and after; None if none changes.

        An axis whose labels one of the two lacks does not change.
        """
        old, new = self.old.sizes, self.new.sizes
        if not (old.keys() >= {*labels} <= new.keys()):
            return None
        sizes = tuple((old[label], new[label]) for label in labels)
        return sizes if any(before != after for before, after in sizes) else None

    def forbid_growth(self, method: str) -> None:
        """Raise ProjectionError if the target is larger anywhere; the message names ``method``."""
        self._forbid(self.grown, f"{method} only shrinks, and the target is larger in", "grows")

    def forbid_shrinking(self, method: str) -> None:
        """Raise ProjectionError if the target is smaller anywhere; the message names ``method``."""
        self._forbid(self.shrunk, f"{method} only grows, and the target is smaller in", "shrinks")

    def _forbid(self, sizes: Mapping[str, tuple[int, int]], why: str, other: str) -> None:
        if sizes:
            raise ProjectionError(f"{why} {self.text(sizes)}: use method='auto', which {other} too")

    @staticmethod
    def text(sizes: Mapping[str, tuple[int, int]]) -> str:
        """Return sizes in words, such as ``"d 96 -> 192, depth 3 -> 2"``."""
        return ", ".join(f"{label} {old} -> {new}" for label, (old, new) in sizes.items())
