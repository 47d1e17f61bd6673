"""What every way to inherit weights is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from weightinit.anatomy import Anatomy
from weightinit.inherit.running import Runnable
from weightinit.plan import Inheritance

__all__ = ["Method"]


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

        Args:
            source: source of the weights.
            target: anatomy of the target.
            seed: base seed for all random draws.
            calibration: a few batches that the ancestor takes; methods without use for it say so.
        """
        ...
