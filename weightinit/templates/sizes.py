"""The sizes that a constrained model is trained at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from weightinit.anatomy import Anatomy, label_of
from weightinit.errors import ProjectionError
from weightinit.templates.kinds import head_dims

__all__ = ["Size", "Sizes", "fraction_of"]


def fraction_of(width: float) -> Fraction:
    """Return a part of a width as the fraction that its float stands for, such as a third."""
    return Fraction(width).limit_denominator(4096)


@dataclass(frozen=True)
class Size:
    """The size of one network: what ``build`` is called with.

    Args:
        stages: number of blocks of each stack.
        widths: sizes of the channels by axis label, such as ``d``, ``h`` and ``m`` of a ViT.
        fraction: part of the full width.

    Examples:
        >>> size = Size((3,), {"d": 32, "h": 2, "k": 16, "m": 128}, 0.5)
        >>> size.depth, size.width, size.heads
        (3, 32, 2)
    """

    stages: tuple[int, ...]
    widths: Mapping[str, int] = field(hash=False)
    fraction: float = 1.0

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return sum(self.stages)

    @property
    def width(self) -> int:
        """The width of the residual stream, of the first stage's where there are several."""
        return self.dims[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """The width of the residual stream in each stage."""
        streams = sorted(label for label in self.widths if label_of(label).stream)
        return tuple(self.widths[label] for label in streams)

    @property
    def heads(self) -> int:
        """The number of heads of attention; 0 where there are none."""
        return self.widths.get("h", 0)

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.stages))} blocks of width {self.width}"


@dataclass(frozen=True)
class Sizes:
    """The sizes that a constrained model is trained at: every depth at every width.

    Args:
        depths: numbers of blocks, or tuples of one number a stage; the model's own is always among
            them.
        widths: fractions of its width; 1 is always among them.
        policy: ``"half"``: every forward in training takes the full size or, as likely, any of the
            depths and widths; ``"sandwich"``: forwards take turns between the full size and a
            smaller one, for two forwards a step.
        seed: base seed of the draws.

    Raises:
        ProjectionError: if a depth or a width is none, or the policy is unknown.
    """

    depths: Iterable[int | tuple[int, ...]] = ()
    widths: Iterable[float] = (1,)
    policy: Literal["half", "sandwich"] = "half"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.policy not in ("half", "sandwich"):
            raise ProjectionError(f"policy={self.policy!r}: use 'half' or 'sandwich'")
        for width in self.widths:
            if not isinstance(width, (int, float)) or not 0 < width <= 1:
                raise ProjectionError(
                    f"widths={self.widths}: use fractions of the model's width, above 0 and up to 1"
                )

    def of(self, model: Anatomy) -> tuple[Size, ...]:
        """Return all sizes of a model, the full one first.

        Raises:
            ProjectionError: if a depth is none of the model's, or a width leaves no whole channels
                or heads.
        """
        full, inside = model.stages, head_dims(model)
        depths = [full]
        for depth in self.depths:
            stages = tuple(depth) if isinstance(depth, Iterable) else (depth,)
            fits = [type(n) is int and 1 <= n <= m for n, m in zip(stages, full, strict=False)]
            if len(stages) != len(full) or not all(fits):
                raise ProjectionError(
                    f"depth {depth} is not inside the model's {list(full)}: use 1 block or more, "
                    "up to its own number, and one number for each stage"
                )
            depths.append(stages)
        sizes = []
        for width in (1, *self.widths):
            fraction = fraction_of(width)
            widths = {x: n * (1 if x in inside else fraction) for x, n in model.widths.items()}
            odd = [f"{x}={model.widths[x]}" for x, n in widths.items() if int(n) != n]
            if odd:
                raise ProjectionError(
                    f"width {width} does not leave whole channels and heads of {', '.join(odd)}: "
                    "use another fraction"
                )
            whole = {x: int(n) for x, n in widths.items()}
            sizes += [Size(stages, whole, float(fraction)) for stages in depths]
        return tuple(dict.fromkeys(sizes))
