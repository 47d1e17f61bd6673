"""The method that a pair of sizes needs: lossless growth, selection, or both at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.activation import ActivationAware, suits
from weightinit.methods.activations import Runnable
from weightinit.methods.carry import Axis, tiled
from weightinit.methods.depth import mixes
from weightinit.methods.lemon import LEMON
from weightinit.methods.selection import WeightSelection, select_indices
from weightinit.methods.transfer import Place, Source, Transfer, transfer_recipes
from weightinit.plan import Recipe

__all__ = ["Auto", "Mixed"]


@dataclass(frozen=True)
class Auto:
    """Pick the method by what the pair needs.

    A target that is nowhere smaller grows without loss (:class:`LEMON`). One that is nowhere larger
    is fitted to what the ancestor does on the calibration batches (:class:`ActivationAware`);
    without them, or with blocks of another kind, it keeps the first blocks, whole heads and evenly
    chosen channels (:class:`WeightSelection`). One that is both, on different axes, gets each axis
    its own rule (:class:`Mixed`).

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d))
        ...     for n, d in ((2, 96), (3, 192)))
        >>> type(Auto().choose(old, new)).__name__
        'LEMON'
    """

    def choose(
        self, old: Anatomy, new: Anatomy, calibration: object = None
    ) -> LEMON | ActivationAware | WeightSelection | Mixed:
        """Return the method, with its options.

        Args:
            old: anatomy of the ancestor.
            new: anatomy of the target.
            calibration: the batches, if there are any.
        """
        grows, shrinks = changes(old, new)
        if grows and shrinks:
            return Mixed()
        if grows:
            return LEMON()
        fitted = calibration is not None and shrinks and suits(old, new)
        return ActivationAware() if fitted else WeightSelection()

    def recipes(
        self,
        source: Runnable,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> list[Recipe]:
        """Return the recipes of the method that was picked."""
        chosen = self.choose(source.anatomy, target, calibration)
        return chosen.recipes(source, target, seed=seed, calibration=calibration)


@dataclass(frozen=True)
class Mixed:
    """Each axis by its own rule: evenly chosen where it shrinks, repeated where it grows.

    Copies share the weights of what reads them. Blocks are chosen evenly, or repeated in a row.
    """

    def recipes(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> list[Recipe]:
        """Return a recipe for every parameter of a target of any size."""
        return transfer_recipes(source, target, self.transfer(source.anatomy, target), seed=seed)

    def transfer(self, old: Anatomy, new: Anatomy) -> Transfer:
        """Return what is done along every axis, and over depth."""
        before, after = (seen.sizes.get("k") for seen in (old, new))
        if before != after:
            raise ProjectionError(
                f"the head dim {before} -> {after} changes together with other axes: keep the "
                "ancestor's head dim (embed_dim / num_heads) in the target"
            )

        def find(label: str, place: Place) -> Axis | None:
            parts = label.split()
            if any(part not in old.sizes or part not in new.sizes for part in parts):
                return None
            before, after = ([seen.sizes[part] for part in parts] for seen in (old, new))
            if before == after:
                return None
            if len(parts) == 1 and after[0] > before[0]:
                return tiled(after[0])
            return _whole(before, after)

        depth = mixes("uniform" if new.depth < old.depth else "interlace", old, new)
        return Transfer(find, depth, "chosen or repeated, axis by axis")


def changes(old: Anatomy, new: Anatomy) -> tuple[list[str], list[str]]:
    """Return which axes grow and which shrink from one size to another."""
    pairs = {
        label: (old.sizes[label], size)
        for label, size in new.sizes.items()
        if label in old.sizes and label[0] in "dhkme"
    } | {"depth": (old.depth, new.depth)}
    return (
        [label for label, (a, b) in pairs.items() if b > a],
        [label for label, (a, b) in pairs.items() if b < a],
    )


def _whole(before: list[int], after: list[int]) -> Axis:
    """Return the axis of channels, or of whole heads, chosen evenly or repeated."""
    unit = before[1] if len(before) > 1 else 1
    if after[0] > before[0]:
        return tiled(after[0] * unit)
    chosen = select_indices(before[0], after[0])
    index = (chosen[:, None] * unit + torch.arange(unit)).flatten()
    return Axis(index, index)
