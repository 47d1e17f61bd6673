"""The tensors outside the blocks: collected from a model, and carried into one of another size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Labels, Piece, Traits, facts, label_of, token_roles
from weightinit.anatomy.resample import resample_axis, resample_patch, resample_pos, resample_table
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis, tiled
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.method import LazyTensor
from weightinit.init.operators import along
from weightinit.recipes import Part

__all__ = ["carry", "collect", "resampled", "resized"]

Value = Tensor | LazyTensor
#: What is done to the axes that are no channels, and a few words on it for the report.
Resize = tuple[Callable[[Tensor], Tensor], str]
Token = tuple[str, int]  # its role, and its row there


def collect(anatomy: Anatomy, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of a model's tensors outside its blocks, by canonical role."""
    tensors: dict[str, Tensor] = {}
    for piece in anatomy.outside.values():
        value = parameters[piece.spec.name].detach().cpu()
        tensors[piece.role] = anatomy.split(piece.spec, value)[piece.role].clone()
    return tensors


def resampled(piece: Piece) -> bool:
    """Return whether a piece is of positions or patches, which another grid or size resamples."""
    kinds = {label_of(label).kind for labels in piece.axes for label in labels}
    return piece.facts.kind == "position" or "patch" in kinds


def resized(value: Tensor, piece: Piece, *, old: Traits, new: Traits) -> Tensor:
    """Return a table of relative positions for another window, and any other tensor as it is."""
    rows = piece.size[0]
    if piece.facts.kind != "table":
        return value
    if piece.axes[1] == ("k",):  # offsets along one axis of the grid, for each channel
        return value if len(value) == rows else resample_axis(value, rows)
    if len(value) == rows and old.grid in (None, new.grid):
        return value
    assert new.grid is not None
    return resample_table(value, old.grid, new.grid, rows)


def carry(
    piece: Piece,
    target: Anatomy,
    outside: Mapping[str, Value],
    traits: Traits,
    axes: Callable[[Labels], Axis | None] | None = None,
    seed: int = 0,
) -> Part | None:
    """Return how one tensor outside the blocks comes from those of a source of another size.

    Args:
        piece: piece of the target.
        target: anatomy of the target.
        outside: tensors of the source by role, from :func:`collect`.
        traits: traits of the source, of which grid and prefix tokens count.
        axes: operators of the channels, by the labels of an axis; None repeats them.
        seed: base seed for the new rows of an index table.

    Returns:
        None where the source has nothing for it, such as other classes or a token it lacks.

    Raises:
        ProjectionError: if positions are to be resampled and their grid cannot be told.
    """
    name = _name(piece, target, outside)
    if name is None:
        return None
    value, rank = outside[name], len(piece.size)
    carrier = _Carrier(piece, name, target, outside, traits, seed)
    found = carrier.resize()
    if carrier.kind != "patch" and len(value.shape) != rank:
        return None
    # The first axes are resized.
    fixed = 0 if found is None else rank if carrier.kind == "patch" else 1
    steps = []
    for dim, labels in enumerate(piece.axes):
        same = value.shape[dim : dim + 1] == piece.size[dim : dim + 1]
        if labels.channel or labels.block:
            axis = tiled(piece.size[dim]) if axes is None else axes(labels)
            if axis is not None:
                steps.append((dim, axis.op(piece.side(dim))))
            elif not same:
                return None
        elif dim >= fixed and not same:
            return None

    def inherit(out: Tensor) -> None:
        carried = value.to(out)
        if found is not None:
            carried = found[0](carried)
        for dim, op in steps:
            carried = along(carried, dim, op)
        if carried.shape != out.shape:
            raise ProjectionError(
                f"{piece.role} of {piece.spec.name} {list(out.shape)} would be "
                f"{list(carried.shape)}: give the target the ancestor's size there"
            )
        out.copy_(carried)

    text = f"{name} {'x'.join(map(str, value.shape))}" if found is None else found[1]
    return Part("written", text, inherit)


def _name(piece: Piece, target: Anatomy, outside: Mapping[str, Value]) -> str | None:
    """Return the source's role for a piece: its own, or one that serves as it."""
    if piece.role in outside:
        return piece.role
    for role in piece.facts.substitutes:
        # A final norm that the target has as well is for that one, and a token embedding is the
        # head of as many words, not of as many classes.
        taken = piece.facts.kind == "norm" and role in target.outside
        classes = facts(role).kind == "embedding" and not target.is_table(piece)
        if role in outside and not taken and not classes:
            return role
    return None


class _Carrier:
    """What becomes of the axes of one tensor that are no channels."""

    def __init__(
        self,
        piece: Piece,
        name: str,
        target: Anatomy,
        outside: Mapping[str, Value],
        traits: Traits,
        seed: int,
    ) -> None:
        self.piece, self.name, self.target, self.seed = piece, name, target, seed
        self.outside, self.traits = outside, traits
        self.shape = tuple(outside[name].shape)
        kinds = {label_of(label).kind for labels in piece.axes for label in labels}
        self.kind = "patch" if "patch" in kinds else "table" if target.is_table(piece) else ""
        self.kind = self.kind or piece.facts.kind

    def resize(self) -> Resize | None:
        """Return how the axes become the target's; None where they have to be the same."""
        if self.kind == "patch":
            _, channels, *size = self.piece.size
            resize = partial(resample_patch, size=size, in_chans=channels)
            return resize, f"{self.name} {'x'.join(map(str, self.shape))}"
        if self.kind == "table":
            return self._table()
        return self._positions() if self.kind == "position" else None

    def _table(self) -> Resize:
        """Keep the common rows of an index table; further ones are drawn around their mean."""
        position = self.piece.facts.kind == "position"
        first, start = self._first() if position else (0, 0)
        rows = self.piece.size[0]
        kept = max(0, min(self.shape[0] - first, rows - start))
        new = rows - start - kept
        drawn = len(self.shape) > 1
        rule = "their mean" + " + trunc_normal_(std=0.02)" * drawn
        text = f"{self.name} {'x'.join(map(str, self.shape))}"
        if new or kept < self.shape[0] or start:
            text += f": {kept} common rows" + (f", {new} new ones of {rule}" if new else "")
        folded = self._folded()
        text += ", their positions added" if folded else ""

        def resize(value: Tensor) -> Tensor:
            for row, position in folded.items():
                value = value.index_add(
                    0, torch.tensor([row]), self.outside["pos"].to(value)[position][None]
                )
            found = value[first : first + kept]
            more = found.mean(0, keepdim=True).repeat(new, *[1] * (value.dim() - 1))
            if drawn:
                generator = sub_generator(self.seed, f"{self.piece.spec.key}.{self.piece.role}")
                noise = torch.empty(more.shape, dtype=torch.float32, device="cpu")
                more += nn.init.trunc_normal_(noise, std=0.02, generator=generator).to(value)
            # What comes before the first position is of the padding.
            padding = value.new_zeros(start, *value.shape[1:])
            both = min(first, start)
            padding[:both] = value[:both]
            return torch.cat([padding, found, more])

        return resize, text

    def _first(self) -> tuple[int, int]:
        """Return the rows of the first text position; one that is not known is the other's."""
        old, new = self.traits.first_position, self.target.traits.first_position
        known = old if new is None else new
        return (known if old is None else old) or 0, known or 0

    def _tokens(self) -> tuple[list[Token], list[Token]]:
        """Return the tokens that have a row among the positions, of the source and the target."""
        old = {role: tuple(value.shape) for role, value in self.outside.items()}
        new = {role: piece.size for role, piece in self.target.outside.items()}
        return _placed(old, self.traits), _placed(new, self.target.traits)

    def _folded(self) -> dict[int, int]:
        """Return which rows of tokens take up a position that the target has no place for."""
        unknown = self.target.position_table is not None and self.target.traits.pos_prefix is None
        if self.piece.facts.kind != "token" or "pos" not in self.outside or unknown:
            return {}
        old, new = self._tokens()
        return {
            row: place
            for place, (role, row) in enumerate(old)
            if role == self.name and (self.piece.role, row) not in new
        }

    def _positions(self) -> Resize | None:
        """Resample the grid, and keep the rows of the tokens that both have."""
        before, after = self.traits.positions, self.target.traits.positions
        alike = self.shape[0] == self.piece.size[0]
        if after is None or (before is None and alike):
            return (lambda value: value, f"{self.name}, as it is") if alike else None
        (new, more) = after
        fits = before is not None and before[0][0] * before[0][1] + before[1] == self.shape[0]
        if before is None or not fits or (self.traits.grid_assumed and new[0] != new[1]):
            raise ProjectionError(
                f"the ancestor has {self.shape[0]} positions, and nothing tells of which grid: "
                "pass the module itself, or weightinit.Ancestor.open(..., grid=(rows, columns)) "
                f"as the ancestor, for the target's grid of {new[0]}x{new[1]}"
            )
        (old, prefix) = before
        tokens, wanted = self._tokens()
        rows: list[int | None] = [
            row if len(tokens) <= row < prefix else None for row in range(more)
        ]
        for row, (role, index) in enumerate(wanted):
            alike = [(name, index) for name in (role, *facts(role).substitutes)]
            rows[row] = next((tokens.index(token) for token in alike if token in tokens), None)

        def resize(value: Tensor) -> Tensor:
            zero = value.new_zeros(value.shape[1])
            head = [zero if row is None else value[row] for row in rows]
            grid = resample_pos(value, old, new, prefix, 0)
            return torch.cat([torch.stack(head), grid]) if head else grid

        assumed = ", taken for a square" if self.traits.grid_assumed and old != new else ""
        return resize, f"{self.name} of a {old[0]}x{old[1]} grid{assumed}"


def _placed(shapes: Mapping[str, tuple[int, ...]], traits: Traits) -> list[Token]:
    """Return the tokens before the patches that have a row among the positions, in order."""
    rows = [(role, row) for role in token_roles(shapes) for row in range(shapes[role][0])]
    return rows[: traits.pos_prefix or 0]
