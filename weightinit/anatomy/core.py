"""A model seen as roles and axis patterns, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from weightinit.anatomy.layout import Layout
from weightinit.errors import AnatomyError

__all__ = ["Anatomy", "ParamSpec", "Piece"]


@dataclass(frozen=True)
class ParamSpec:
    """One parameter of a model.

    Args:
        name: in the model's state dict.
        key: the name without wrapper prefixes.
        role: canonical, e.g. ``"attn.qkv.weight"``.
        pattern: its axes as stored, e.g. ``"(3 h k) d"``.
        shape: as stored (of a DTensor: the global shape).
        block: index of its block within the stack, or None outside the blocks.
        stack: name of the stack, e.g. ``"blocks"``, or "" outside the blocks.
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


@dataclass(frozen=True)
class Piece:
    """A canonical part of a parameter.

    Args:
        role: canonical, e.g. ``"attn.q.weight"``.
        size: its shape in canonical orientation, e.g. ``(h k, d)``.
        spec: the parameter that stores it.
        axes: labels of each canonical axis, outermost first, e.g. ``(("h", "k"), ("d",))``.
    """

    role: str
    size: tuple[int, ...]
    spec: ParamSpec
    axes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Anatomy:
    """What every parameter of a model is, by role and axes.

    Args:
        specs: every parameter once, in the model's order.
        sizes: of the axis labels: ``d`` residual stream, ``h`` heads, ``k`` head dim, ``m`` MLP
            hidden, ``t`` tokens, ``p q`` patch, ``c`` input channels, ``n`` classes, ...
        depth: number of blocks of the main stack.
        family: ``vit``, ``convnext``, ``bert``, ``gpt2``.
        traits: what the module says of itself where shapes are silent: ``prefix_tokens``,
            ``pos_prefix`` (their rows inside the position embedding), ``grid``, ``pool``, ``act``.
    """

    specs: tuple[ParamSpec, ...]
    sizes: Mapping[str, int]
    depth: int
    family: str
    traits: Mapping[str, object]

    @cached_property
    def _pieces(self) -> dict[str, list[dict[str, Piece]]]:
        stacks: dict[str, list[dict[str, Piece]]] = {"": [{}]}
        for spec in self.specs:
            blocks = stacks.setdefault(spec.stack, [])
            at = spec.block or 0
            while len(blocks) <= at:
                blocks.append({})
            for role, view in zip(spec.parts, spec.layout.parts, strict=True):
                blocks[at][role] = Piece(role, view.shape, spec, view.axes)
        return stacks

    @cached_property
    def _main(self) -> tuple[str, ...]:
        return tuple(self.traits["main_stacks"])  # pyright: ignore[reportArgumentType]

    @cached_property
    def blocks(self) -> tuple[Mapping[str, Piece], ...]:
        """The pieces of each block of the main stack by canonical role, in depth order."""
        return tuple(block for stack in self._main for block in self._pieces[stack])

    @cached_property
    def extra_blocks(self) -> tuple[tuple[str, Mapping[str, Piece]], ...]:
        """The blocks of other stacks, such as CaiT's class attention, each with its stack."""
        others = [stack for stack in self._pieces if stack and stack not in self._main]
        return tuple((stack, block) for stack in others for block in self._pieces[stack])

    @cached_property
    def outside(self) -> Mapping[str, Piece]:
        """The pieces outside the blocks by canonical role."""
        return self._pieces[""][0]

    @cached_property
    def _by_name(self) -> dict[str, ParamSpec]:
        names = {spec.key: spec for spec in self.specs}
        for spec in self.specs:
            names.update(dict.fromkeys((spec.name, *spec.tied), spec))
        return names

    def spec(self, name: str) -> ParamSpec:
        """Return the parameter of a name, with or without wrapper prefixes, or of a tied name."""
        try:
            return self._by_name[name]
        except KeyError:
            raise AnatomyError(
                f"no parameter is called {name!r}: use one of this model's, such as "
                f"{[spec.name for spec in self.specs[:3]]}"
            ) from None

    def pieces(self, spec: ParamSpec) -> list[Piece]:
        """Return the canonical pieces of a parameter, in storage order."""
        block = self._pieces[spec.stack][spec.block or 0]
        return [block[role] for role in spec.parts]

    def split(self, spec: ParamSpec, tensor: Tensor) -> dict[str, Tensor]:
        """Return the canonical parts of a parameter as writable views of ``tensor``.

        Args:
            spec: of the parameter.
            tensor: of its stored shape.

        Returns:
            From canonical role to a view in canonical orientation, of :attr:`Piece.size`.

        Examples:
            >>> import torch, torchvision
            >>> from weightinit.anatomy import anatomy
            >>> with torch.device("meta"):
            ...     model = torchvision.models.vit_b_16()
            >>> seen = anatomy(model)
            >>> spec = seen.blocks[0]["attn.k.weight"].spec
            >>> parts = seen.split(spec, torch.zeros(spec.shape))
            >>> list(parts), parts["attn.k.weight"].shape
            (['attn.q.weight', 'attn.k.weight', 'attn.v.weight'], torch.Size([768, 768]))
        """
        return dict(zip(spec.parts, spec.layout.split(tensor), strict=True))

    def merge(self, spec: ParamSpec, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the stored tensor of the given canonical parts: the inverse of :meth:`split`."""
        return spec.layout.merge([parts[role] for role in spec.parts])

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return a compact table: one line a role, pattern and shape, with the blocks' range."""
        from weightinit.anatomy.show import table

        return table(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        from weightinit.anatomy.show import to_dict

        return to_dict(self)
