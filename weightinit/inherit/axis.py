"""What becomes of an axis: an operator for each way in which a parameter stands to it."""

from __future__ import annotations

from dataclasses import dataclass

from weightinit.init.operators import Op, repeat, share

__all__ = ["Axis", "tiled"]


@dataclass(frozen=True)
class Axis:
    """What becomes of one axis when its length changes.

    Args:
        rows: makes new channels out of old ones, in whatever produces the axis.
        columns: makes what reads the old channels read the new ones.
        gain: acts on the elementwise weights of norms and layer scales; None is as ``rows``.
    """

    rows: Op
    columns: Op
    gain: Op | None = None

    def op(self, side: str) -> Op:
        """Return the operator of a side: ``"rows"``, ``"columns"`` or ``"gain"``."""
        return self.rows if side == "gain" and self.gain is None else getattr(self, side)


def tiled(size: int) -> Axis:
    """Return the axis that repeats channels, whole copies sharing what reads them."""
    return Axis(
        lambda tensor, dim: repeat(tensor, dim, size),
        lambda tensor, dim: share(tensor, dim, size),
    )
