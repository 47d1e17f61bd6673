"""A model seen as roles and axis patterns, whichever library it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from weightinit.anatomy.labels import label_of
from weightinit.anatomy.layout import Layout, View
from weightinit.anatomy.parameter import ParamSpec, Piece
from weightinit.anatomy.source import shorten, strip
from weightinit.anatomy.traits import Traits
from weightinit.errors import AnatomyError

__all__ = ["Anatomy"]


@dataclass(frozen=True)
class Anatomy:
    """What every parameter of a model is, by role and axes.

    Args:
        specs: every parameter once, in the model's order.
        sizes: size of each axis label: ``d`` residual stream, ``h`` heads, ``k`` head dim, ``m``
            MLP hidden, ``t`` tokens, ``p q`` patch, ``c`` input channels, ``n`` classes, ...
        depth: number of blocks of the main stack.
        family: family of the model, such as ``vit`` or ``gpt2``; ``custom`` by rules alone.
        traits: what the model computes besides its weights; see :class:`Traits`.
        prefix: what stands before the model's own names, such as ``"model.encoder."``.
        unexplained: parameters that no rule explains and that were allowed to be there.
        kept: names of the parameters that stay as they are by request, explained or not.
    """

    specs: tuple[ParamSpec, ...]
    sizes: Mapping[str, int]
    depth: int
    family: str
    traits: Traits
    prefix: str = ""
    unexplained: tuple[ParamSpec, ...] = ()
    kept: frozenset[str] = frozenset()

    def key(self, name: str) -> str:
        """Return a name of a module like it without wrappers and without the prefix."""
        return shorten(strip(name), self.prefix)

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
    def blocks(self) -> tuple[Mapping[str, Piece], ...]:
        """The pieces of each block of the main stack by canonical role, in depth order."""
        return tuple(block for stack in self.traits.main_stacks for block in self._pieces[stack])

    @cached_property
    def extra_blocks(self) -> tuple[tuple[str, Mapping[str, Piece]], ...]:
        """The blocks of other stacks, such as CaiT's class attention, each with its stack."""
        others = [stack for stack in self._pieces if stack and stack not in self.traits.main_stacks]
        return tuple((stack, block) for stack in others for block in self._pieces[stack])

    @cached_property
    def all_blocks(self) -> tuple[Mapping[str, Piece], ...]:
        """The blocks of the main stack, then those of others."""
        return (*self.blocks, *(block for _, block in self.extra_blocks))

    @cached_property
    def stacks(self) -> Mapping[str, tuple[Mapping[str, Piece], ...]]:
        """The blocks of each main stack by its name, in order."""
        return {stack: tuple(self._pieces[stack]) for stack in self.traits.main_stacks}

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """How many blocks each main stack has, in order: one number but for several widths."""
        return tuple(len(self._pieces[stack]) for stack in self.traits.main_stacks)

    @cached_property
    def kept_pieces(self) -> tuple[Piece, ...]:
        """The pieces of the explained parameters that stay as they are."""
        kept = (spec for spec in self.specs if spec.name in self.kept)
        return tuple(piece for spec in kept for piece in self.pieces(spec))

    def index(self, spec: ParamSpec) -> int | None:
        """Return the block of the main stack that a parameter belongs to; None elsewhere."""
        if spec.block is None or spec.stack not in self.traits.main_stacks:
            return None
        stack = self.traits.main_stacks.index(spec.stack)
        return sum(self.stages[:stack]) + spec.block

    @cached_property
    def outside(self) -> Mapping[str, Piece]:
        """The pieces outside the blocks by canonical role."""
        return self._pieces[""][0]

    @property
    def word_table(self) -> Piece | None:
        """The table of words, ``[vocabulary, d]``; None of a model that reads no texts."""
        return self.outside.get("embed.token.weight")

    @property
    def position_table(self) -> Piece | None:
        """The positions that are added to the stream, ``[tokens, d]``; None without such."""
        return self.outside.get("pos")

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
        """Return the canonical parts of a parameter as writable views of a tensor, by role.

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

    def is_table(self, piece: Piece) -> bool:
        """Return whether the rows of a piece are those of an index, whose common ones are kept.

        They are of tokens, of their types, or of positions in a text; of classes only where they
        are the words of the vocabulary.
        """
        kinds = {label_of(label).kind for label in piece.axes[0]} if piece.axes else set()
        words = self.word_table
        if kinds == {"class"}:
            return words is not None and words.size[0] == piece.size[0]
        text = words is not None and piece.facts.kind == "position"
        return kinds == {"index"} or text

    @cached_property
    def widths(self) -> Mapping[str, int]:
        """Sizes of the channels, grouped key-value heads among them."""
        channels = {x: size for x, size in self.sizes.items() if label_of(x).kind == "channel"}
        for piece in self.blocks[0].values() if self.blocks else ():
            for labels, size in zip(piece.axes, piece.size, strict=True):
                if labels == ("e", "k"):
                    return {**channels, "e": size // self.sizes["k"]}
        return channels

    def reshaped(self, widths: Mapping[str, int], stages: Sequence[int]) -> Anatomy:
        """Return the anatomy of a model of other widths and depths; no such model is built.

        ``stages`` counts the blocks of each main stack; a piece is a parameter of its own there.
        """
        counts = {x: sum(stages) for x in self.sizes if label_of(x).kind == "block"}
        widths = {**widths, **counts}
        new = {label: widths.get(label, size) for label, size in self.sizes.items()}
        old = {**self.sizes, **self.widths}
        pieces: list[tuple[Piece, int | None]] = [(piece, None) for piece in self.outside.values()]
        depths = dict(zip(self.traits.main_stacks, stages, strict=True))
        for stack, blocks in self._pieces.items():
            for index in range(depths.get(stack, len(blocks)) if stack else 0):
                alike = {role: piece for block in reversed(blocks) for role, piece in block.items()}
                alike |= blocks[min(index, len(blocks) - 1)]
                pieces += [(piece, index) for piece in alike.values()]
        specs = tuple(_reshaped(piece, old, widths, index) for piece, index in pieces)
        kept = (piece.spec.name in self.kept for piece, _ in pieces)
        return replace(
            self,
            specs=specs,
            sizes=new,
            depth=sum(stages),
            traits=replace(self.traits, depths=tuple(stages)),
            kept=frozenset(spec.name for spec, stays in zip(specs, kept, strict=True) if stays),
        )

    def __str__(self) -> str:
        """Return a compact table: one line a role, pattern and shape, with the blocks' range."""
        from weightinit.anatomy.show import table

        return table(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values: family, depth, sizes, traits and every parameter."""
        return {
            "family": self.family,
            "depth": self.depth,
            "sizes": dict(self.sizes),
            "traits": self.traits.to_dict(),
            "parameters": [
                {
                    name: list(value) if isinstance(value, tuple) else value
                    for name, value in vars(spec).items()
                    if name not in ("key", "layout")
                }
                for spec in self.specs
            ],
            "unexplained": [spec.name for spec in self.unexplained],
        }


def _reshaped(
    piece: Piece, old: Mapping[str, int], widths: Mapping[str, int], block: int | None
) -> ParamSpec:
    """Return a canonical piece as a parameter of its own, of other widths."""
    shape = tuple(
        size
        * math.prod(widths.get(label, 1) for label in labels if label in old)
        // math.prod(old[label] for label in labels if label in old and label in widths)
        for size, labels in zip(piece.size, piece.axes, strict=True)
    )
    name = piece.role if block is None else f"{piece.spec.stack}.{block}.{piece.role}"
    view = View(0, 0, shape, tuple(range(len(shape))), shape, piece.axes, plain=True, turned=False)
    return replace(
        piece.spec,
        name=name,
        key=name,
        role=piece.role,
        pattern=" ".join(f"({labels})" for labels in piece.axes),
        shape=shape,
        block=block,
        parts=(piece.role,),
        layout=Layout(shape, -1, (view,)),
    )
