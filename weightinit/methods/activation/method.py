"""Activation-aware projection: a smaller network that does on a few batches what its ancestor does.

Ours. No training, no labels: principal directions of the residual stream (as in SliceGPT, Ashkboos
et al., https://arxiv.org/abs/2401.15024), one matrix for all blocks here, and least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Labels, Piece, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.depth import Mix
from weightinit.inherit.running import Runnable, Running, exact, watching
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import along
from weightinit.methods.activation.blocks import Blocks, Values
from weightinit.methods.activation.head import fit_head, readers
from weightinit.methods.activation.stream import Stream, centres, groups_of, normalise, principal
from weightinit.methods.subcloning import check_shrinking
from weightinit.plan import Inheritance, Part

__all__ = ["ActivationAware", "suits"]

#: What a block must hold; all else must belong to one of its two branches.
NEEDED = {f"{role}.weight" for role in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")}
#: Where outside the blocks a parameter may touch a stream that is rotated.
PLACES = ("before", "final norm", "reads")


@dataclass(frozen=True)
class ActivationAware:
    """Fit the target to what the ancestor does on a few unlabelled batches, in closed form.

    The residual stream is projected onto its principal directions, by one matrix P for all blocks;
    heads and neurons are kept by how much of their block's output they explain; neighbouring blocks
    become one where the stream changes least; and all that reads and writes the stream is repaired
    by ridge regression, block after block, on what the smaller network itself computes
    (:class:`~weightinit.methods.activation.blocks.Blocks`). Gains, biases and layer scales end up
    in the matrices beside them. At full size the function is the ancestor's.

    Needs ``calibration=``: 5 to 20 batches of 128 images do, several times as many samples (of
    images, for the head) as the ancestor has channels. It holds the stream of all of them some five
    times: batches x tokens x embed_dim x 20 bytes, and runs about ten forward passes. For blocks
    with a norm before attention and MLP.

    Args:
        ridge: of the regressions, relative to the mean variance of what is regressed on.

    Raises:
        ProjectionError: if ``ridge`` is not positive.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d, num_heads=d // 32,
        ...                       img_size=32, num_classes=5) for n, d in ((4, 96), (3, 64)))
        >>> batches = [torch.randn(8, 3, 32, 32) for _ in range(5)]
        >>> wi.project_from(old, new, method=ActivationAware(), calibration=batches) is new
        True
    """

    ridge: float = 1e-2

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.ridge > 0:
            raise ProjectionError(f"ridge={self.ridge}: pass a positive number, such as 1e-2")

    def plan(
        self,
        source: Runnable,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> Inheritance:
        """Return a part for every piece of a target that is no larger on any axis.

        Raises:
            ProjectionError: if it is larger, if the blocks are of another kind, or if there is no
                calibration.
        """
        old = source.anatomy
        check_shrinking(old, target, "activation-aware projection")
        _check(old, target)
        found = _Shrinking(Running(source, calibration), target, self.ridge).found()
        narrower = old.sizes["d"] != target.sizes["d"]
        read, write = found.stream.read.T.cpu(), found.stream.write.cpu()

        def axes(labels: Labels, place: Place) -> Axis | None:
            if not labels.stream:
                return None
            if found.shift is not None and place.facts.place == "final norm":
                return Axis(_constant(found.shift), read, _constant(torch.ones_like(found.shift)))
            return Axis(_cast(write), _cast(read)) if narrower else None

        depth: list[Mix] = [((group[0], 1.0),) for group in found.groups]
        transfer = Transfer(axes, depth, "principal directions")
        parts = transfer_parts(source, target, transfer, seed=seed)
        parts |= _fitted(target.outside, found.head, "")
        for group, block, values in zip(found.groups, target.blocks, found.blocks, strict=True):
            where = f" of block{'s' * (len(group) > 1)} {', '.join(map(str, group))}"
            parts |= _fitted(block, values, where)
        return Inheritance(parts)


def _constant(values: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda tensor, _: values.to(tensor)


def _cast(matrix: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda tensor, dim: along(tensor, dim, matrix.to(tensor))


def _fitted(pieces: Mapping[str, Piece], values: Values, where: str) -> dict[Piece, Part]:
    """Return the parts of the pieces whose values were found."""

    def part(role: str) -> Part:
        text = f"{role}{where} (fitted on calibration batches)"
        return Part("written", text, lambda out: out.copy_(values[role]))

    return {piece: part(role) for role, piece in pieces.items() if role in values}


def suits(old: Anatomy, new: Anatomy) -> bool:
    """Whether the blocks are of a kind that can be fitted, and heads and tables keep their size."""
    try:
        _check(old, new)
    except ProjectionError:
        return False
    # Tables of relative positions are neither resampled nor, where all blocks share one, chosen.
    own, shared = (
        any(piece.facts.kind == "table" for piece in pieces.values())
        for pieces in (old.blocks[0], old.outside)
    )
    alike = old.traits.grid == new.traits.grid
    alike = alike and (not shared or old.sizes["h"] == new.sizes["h"])
    grouped = "e" in old.widths
    return old.sizes["k"] == new.sizes["k"] and not grouped and (alike or not (own or shared))


def _check(old: Anatomy, new: Anatomy) -> None:
    """Raise ProjectionError if blocks or stream are of a kind that P cannot be put into."""
    roles = {role for block in (*old.blocks, *new.blocks) for role in block}
    wrong = sorted(role for role in roles if facts(role).serves not in ("attn", "mlp"))
    wrong += [f"no {role}" for role in sorted(NEEDED - roles)]
    wrong += sorted({stack for stack, _ in (*old.extra_blocks, *new.extra_blocks)})
    if old.traits.form not in (None, "pre_norm"):
        wrong.append("norms after attention and MLP")
    if wrong:
        raise ProjectionError(
            f"activation-aware projection needs blocks with a norm before attention and before the "
            f"MLP, and these have {', '.join(wrong)}: use method='subcloning'"
        )
    if old.sizes["d"] == new.sizes["d"]:
        return
    wrong = [
        role
        for role, piece in old.outside.items()
        if any(labels.stream for labels in piece.axes) and piece.facts.place not in PLACES
    ] + [f"tied {role}" for role, piece in old.outside.items() if piece.spec.tied]
    if wrong:
        raise ProjectionError(
            f"{', '.join(wrong)} cannot follow a rotation of the stream's channels: keep embed_dim "
            f"= {old.sizes['d']}, or use method='subcloning'"
        )


@dataclass(frozen=True)
class _Found:
    """What was found on the batches.

    Args:
        stream: of the target in the ancestor's.
        groups: of the ancestor's blocks, one a block of the target.
        blocks: values of each.
        head: of what reads the stream after the blocks.
        shift: what becomes of the final norm's bias, its gain being 1; None leaves it alone.
    """

    stream: Stream
    groups: list[list[int]]
    blocks: list[Values]
    head: Values
    shift: Tensor | None


class _Shrinking:
    def __init__(self, running: Running, target: Anatomy, ridge: float) -> None:
        self.running, self.target, self.ridge = running, target, ridge
        self.old = running.anatomy
        self.readers = readers(self.old, target)
        self.features: dict[str, list[Tensor]] = {role: [] for role in self.readers}

    @torch.no_grad()
    def found(self) -> _Found:
        """Return all that a target is made of."""
        running, width, depth = self.running, self.target.sizes["d"], self.target.depth
        norm = running.owner(self.old.blocks[0]["norm1.weight"])
        moment, similarity = self._look(-(-self.old.depth // depth))
        stream = principal(running.check(moment), width, centred=centres(norm))
        groups = groups_of(similarity, depth)
        blocks = Blocks(running, self.target, stream, self.calls, self.ridge)
        values, after = blocks.shrink(groups, self.streams)
        if not self.readers and width == self.old.sizes["d"]:
            return _Found(stream, groups, values, {}, None)
        head, shift = fit_head(running, self.target, stream, self.features, after, ridge=self.ridge)
        return _Found(stream, groups, values, head, shift)

    def _look(self, most: int) -> tuple[Tensor, Tensor]:
        """Run the ancestor; return the stream's second moments and its similarity over depth.

        Args:
            most: how many neighbouring blocks to compare.
        """
        running, depth = self.running, self.old.depth
        moment = torch.zeros((), dtype=torch.float64)
        similarity = torch.eye(depth, dtype=torch.float64)
        recent: list[Tensor] = []
        tokens = 0
        self.calls, self.streams = [], []

        def see(norm: nn.Module, index: int | None, x: Tensor) -> None:
            nonlocal moment, tokens
            z = normalise(exact(x), norm).flatten(0, -2)
            moment = moment.to(z) + z.T @ z
            if index is None:
                return
            tokens += len(z) * (index == 0)
            recent[:] = [z, *recent[: most - 1]] if index else [z]
            for back, other in enumerate(recent[1:], 1):
                similarity[index - back, index] += float((z * other).sum()) / z.shape[-1]

        norms = {
            running.owner(block[f"{norm}.weight"]): index if norm == "norm1" else None
            for index, block in enumerate(self.old.blocks)
            for norm in ("norm1", "norm2")
        }
        for piece in self.old.outside.values():
            if piece.facts.place == "final norm":
                norms[running.owner(piece)] = None
        watched: dict[nn.Module, Callable[[Tensor], None]] = {
            norm: partial(see, norm, index) for norm, index in norms.items()
        }
        for role, piece in self.readers.items():
            watched[running.owner(piece)] = self.features[role].append
        for number in range(len(running.calls)):
            with watching(watched):
                stream, calls = running.trace(number)
            self.streams.append(stream)
            self.calls.append(calls)
        if tokens < len(moment):
            raise ProjectionError(
                f"calibration= holds {tokens} tokens, and the stream has {len(moment)} channels: "
                "pass more batches, several times as many tokens as channels"
            )
        similarity += torch.triu(similarity, 1) * (1 / tokens - 1)
        return moment, similarity
