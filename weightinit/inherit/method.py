"""What every way to inherit weights is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from weightinit.anatomy import Anatomy
from weightinit.inherit.running import Runnable
from weightinit.plan import Recipe

__all__ = ["Method"]


class Method(Protocol):
    """One way to inherit weights: a frozen dataclass of its options.

    Its ``notes(source, target)``, where it has them, are lines for the report: whether the
    function is kept, say.
    """

    def recipes(
        self,
        source: Runnable,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> list[Recipe]:
        """Return a recipe for every parameter of a target."""
        ...
