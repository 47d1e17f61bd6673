"""One parameter of a model, and the canonical parts that it stores."""

from __future__ import annotations

from dataclasses import dataclass, field

from weightinit.anatomy.labels import Labels
from weightinit.anatomy.layout import Layout
from weightinit.anatomy.roles import Role, Side, facts

__all__ = ["Blocks", "ParamSpec", "Piece"]

#: Pairs of an ancestor's block and its weight, of which a block is made.
Blocks = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ParamSpec:
    """One parameter of a model.

    Args:
        name: name in the model's state dict.
        key: the name without wrapper prefixes.
        role: canonical role, such as ``"attn.qkv.weight"``.
        pattern: axes as stored, such as ``"(3 h k) d"``.
        shape: shape as stored; a DTensor's is its global one.
        block: index of its block within the stack, or None outside the blocks.
        stack: name of the stack, such as ``"blocks"``, or "" outside the blocks.
        parts: canonical roles in storage order along the fused axis; ``(role,)`` if not fused.
        tied: other names of the same tensor.
    """

    name: str
    key: str
    role: str
    pattern: str
    shape: tuple[int, ...]
    block: int | None
    stack: str
    parts: tuple[str, ...]
    tied: tuple[str, ...] = ()
    layout: Layout = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def bare(
        cls,
        name: str,
        key: str,
        shape: tuple[int, ...],
        block: int | None = None,
        tied: tuple[str, ...] = (),
    ) -> ParamSpec:
        """Return a parameter of which nothing is known but its name and shape."""
        layout = Layout(shape, -1, ())
        return cls(name, key, key, "", shape, block, "", (key,), tied, layout=layout)


@dataclass(frozen=True)
class Piece:
    """A canonical part of a parameter.

    Args:
        role: canonical role, such as ``"attn.q.weight"``.
        size: shape in canonical orientation, such as ``(h k, d)``.
        spec: the parameter that stores it.
        axes: labels of each canonical axis, outermost first, such as ``(("h", "k"), ("d",))``.
    """

    role: str
    size: tuple[int, ...]
    spec: ParamSpec
    axes: tuple[Labels, ...]

    @property
    def facts(self) -> Role:
        """What is true of every parameter of its role."""
        return facts(self.role)

    @property
    def ends(self) -> bool:
        """Whether it belongs to the last layer of a branch, which writes into the stream."""
        return self.facts.end and self.axes[0].stream

    def side(self, dim: int) -> Side:
        """Return whether it makes, reads or scales an axis; see :meth:`Role.side`."""
        return self.facts.side(dim, len(self.axes))
