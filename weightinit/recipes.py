"""What becomes of every parameter: the parts of its pieces, joined into one recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from weightinit.anatomy import Anatomy, Blocks, ParamSpec, Piece
from weightinit.errors import ProjectionError

__all__ = ["Action", "Inheritance", "Part", "Recipe", "assemble", "keeping"]

Action = Literal["written", "fresh", "kept"]
Fill = Callable[[Tensor], object]


@dataclass(frozen=True)
class Part:
    """What becomes of one canonical piece of a parameter.

    Args:
        action: ``"written"`` from the source, ``"fresh"`` by an explicit rule, or ``"kept"``.
        text: where its values come from, for people; nothing is read from it.
        fill: writes the values into a view of the piece's canonical size; where it is kept, what
            stands in on the meta device, which has nothing to keep, or None.
        whole: whether ``fill`` is known to write every value, so that nothing has to be marked
            before to find what it left out.
        how: the text in short, alike for all blocks that are made alike; empty is the text.
        blocks: blocks of the ancestor that it is mixed from, each with its weight.
    """

    action: Action
    text: str
    fill: Fill | None = None
    whole: bool = False
    how: str = ""
    blocks: Blocks = ()


@dataclass(frozen=True)
class Inheritance:
    """What a method makes of a target; nothing is written yet.

    Args:
        parts: one for each canonical piece of the target.
        notes: what the user should know besides: whether the function is kept, say.
    """

    parts: Mapping[Piece, Part]
    notes: Sequence[str] = ()

    def recipes(self, target: Anatomy) -> list[Recipe]:
        """Return one recipe for every parameter of the target; see :func:`assemble`."""
        return assemble(target, self.parts.__getitem__)


@dataclass(frozen=True)
class Recipe:
    """What becomes of one parameter.

    Args:
        spec: the parameter.
        action: ``"written"`` if any of its parts is, else ``"fresh"`` or ``"kept"``.
        source: where its values come from, for people.
        fill: writes the values into a tensor of the parameter's global shape, on the CPU, in fp32
            (fp64 for fp64 parameters); None where the parameter is kept, or what stands in for it
            on the meta device.
        whole: whether ``fill`` is known to write every value.
        how: the source in short; see :class:`Part`.
        blocks: blocks of the ancestor that all of its parts come from, if they are the same.
    """

    spec: ParamSpec
    action: Action
    source: str
    fill: Fill | None = None
    whole: bool = False
    how: str = ""
    blocks: Blocks = ()


def assemble(target: Anatomy, part_of: Callable[[Piece], Part]) -> list[Recipe]:
    """Return one recipe for every parameter of a target, from the parts of its pieces.

    Raises:
        ProjectionError: if some pieces of a fused parameter are kept and others are not.

    Examples:
        >>> import timm, weightinit as wi
        >>> seen = wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=1))
        >>> recipes = assemble(seen, lambda piece: Part("fresh", "zeros", lambda out: out.zero_()))
        >>> len(recipes) == len(seen.specs), recipes[0].source
        (True, 'zeros')
    """
    return [
        _joined(target, spec, [part_of(piece) for piece in target.pieces(spec)])
        for spec in target.specs
    ]


def _joined(target: Anatomy, spec: ParamSpec, parts: Sequence[Part]) -> Recipe:
    """Return the recipe of one parameter from the parts of its pieces."""
    actions = {part.action for part in parts}
    text = "; ".join(dict.fromkeys(part.text for part in parts))
    how = "; ".join(dict.fromkeys(part.how or part.text for part in parts))
    blocks = {part.blocks for part in parts}
    if "kept" in actions and len(actions) > 1:
        raise ProjectionError(
            f"{spec.name} stores {', '.join(spec.parts)} together: keep all of it or nothing"
        )

    def fill(out: Tensor) -> None:
        for role, part in zip(spec.parts, parts, strict=True):
            assert part.fill is not None
            # A view made before the last write has no part in its gradient.
            part.fill(target.split(spec, out)[role])

    if "kept" in actions:
        return Recipe(spec, "kept", text, fill if all(part.fill for part in parts) else None)
    action = "written" if "written" in actions else "fresh"
    whole = all(part.whole for part in parts)
    return Recipe(spec, action, text, fill, whole, how, blocks.pop() if len(blocks) == 1 else ())


def keeping(target: Anatomy, recipes: Iterable[Recipe]) -> list[Recipe]:
    """Replace the recipes of kept parameters, and add those of parameters without explanation."""
    asked, kept = "kept by request", target.kept
    return [
        *(Recipe(r.spec, "kept", asked) if r.spec.name in kept else r for r in recipes),
        *(
            Recipe(spec, "kept", asked if spec.name in kept else "kept, unexplained")
            for spec in target.unexplained
        ),
    ]
