"""How large a fitted target's weights are made, so that training does not overwrite them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Piece
from weightinit.inherit.running import Running, exact
from weightinit.methods.activation.observation import Observation
from weightinit.methods.activation.stream import SCALES, Stream

__all__ = ["Pace"]

#: The rate that random weights are trained at, and the largest change, relative to its size, that
#: one step at that rate is to make to what a matrix puts out.
RATE, CHANGE = 1e-3, 0.025
#: Mean absolute value of inputs of variance 1, and the standard deviation of random weights.
INPUT, USUAL = 0.8, 0.02
#: The largest factor, and the largest value of a stream, for which half precision has room.
LARGEST, ROOM = 256.0, 8192.0
#: Least variance of a token in units of a norm's eps, and how near to one another outputs must be.
EPSILONS, CLOSE = 100.0, 0.02
PLACES = ("before", "first norm", "final norm")


@dataclass(frozen=True)
class Pace:
    """Factors that leave a target's function as it is, and make a step of AdamW small beside it.

    A step moves every weight by the learning rate, whatever the weight's size. Where the inputs of
    a matrix go together, as hundreds of pixels do, a few steps overwrite what it had learned. Norms
    take the size of the stream off, so that all that writes into it may be larger by one factor;
    and the gain of a norm may be as much smaller as what reads it is larger.

    Args:
        stream: by how much the stream, and all that writes into it, is larger.
        reads: by how much what reads a norm is larger, and the norm's gain smaller.
        reached: whether the weights that write into the stream are as large as they should be.
    """

    stream: float = 1.0
    reads: float = 1.0
    reached: bool = False

    @classmethod
    def of(
        cls,
        running: Running,
        target: Anatomy,
        stream: Stream,
        observed: Observation,
        *,
        apart: bool,
    ) -> Pace:
        """Return the factors of a smaller target; one of the ancestor's own size stays as it is.

        The stream keeps its size where anything but norms sees it, where something enters it that
        is no weight of the ancestor's, and where a norm's eps has a say. ``apart`` says that
        parameters outside the blocks see it which are neither a norm nor after one. Nothing is
        scaled beside what the target keeps, unless that reads the final norm, and beside what of
        its blocks no rule explains.
        """
        old = running.anatomy
        beside = any(piece.facts.place != "reads" for piece in target.kept_pieces)
        beside |= any(spec.block is not None for spec in target.unexplained)
        if beside or not Difference(old, target).shrunk:
            return cls()
        width, ratio = target.sizes["d"], (target.sizes["d"] / old.sizes["d"]) ** 0.5
        writes, reads = _typical(running)
        reads = min(max(1.0, _size(width) * width**-0.5 / _sound(reads / ratio)), LARGEST)
        written = [(x @ stream.write.T.to(x)).square().mean() for x in observed.streams]
        begin = float(torch.stack(written).mean().sqrt())
        fan_in = max((math.prod(stem.size[1:]) for stem in _stems(target)), default=0)
        wanted = max(USUAL / _sound(writes * ratio), _size(fan_in) / _sound(begin))
        larger = max(1.0, min(wanted, LARGEST, ROOM / _sound(observed.largest)))
        if larger > 1.0:
            free = not apart and observed.least > EPSILONS and _alike(old, target)
            if not (free and _begun(running, observed) and _ended(running, observed)):
                larger = 1.0
        return cls(larger, reads, larger >= wanted)


def _size(inputs: int) -> float:
    """Return how large outputs must be for a step to be small beside them, by how many inputs."""
    return RATE * INPUT * inputs / CHANGE


def _sound(size: float) -> float:
    return max(size, 1e-12)


def _typical(running: Running) -> tuple[float, float]:
    """Return the median size of the weights that write into the stream, and of those that read it.

    Layer scales and the gains of norms count as part of them.
    """
    writes: list[Tensor] = []
    reads: list[Tensor] = []
    for block in running.anatomy.blocks:
        values = {role: exact(running.part(piece)) for role, piece in block.items()}
        ones = torch.ones_like(values["norm1.weight"])
        for role, scale in SCALES.items():
            weight = values[f"{role}.weight"] * values.get(scale, ones)[:, None]
            writes.append(weight.square().mean().sqrt())
        for role, piece in block.items():
            norm = {"attn": "norm1.weight", "mlp": "norm2.weight"}.get(piece.facts.branch)
            if norm and piece.axes[1:] == (("d",),):
                reads.append((values[role] * values[norm]).square().mean().sqrt())
    return float(torch.stack(writes).median()), float(torch.stack(reads).median())


def _stems(target: Anatomy) -> list[Piece]:
    """Return the projections of patches that write into the stream, with no norm in between."""
    pieces = target.outside.values()
    if any(piece.facts.place == "first norm" for piece in pieces):
        return []
    before = [piece for piece in pieces if piece.facts.place == "before"]
    return [piece for piece in before if len(piece.axes) > 1 and piece.axes[0].stream]


def _alike(old: Anatomy, target: Anatomy) -> bool:
    """Return whether both begin and end their streams in the same way, by explained parameters."""
    ours, theirs = (
        {place: {r for r, p in model.outside.items() if p.facts.place == place} for place in PLACES}
        for model in (target, old)
    )
    same = ours["first norm"] == theirs["first norm"] and ours["before"] <= theirs["before"]
    ends = bool(ours["final norm"] and theirs["final norm"])
    turned = old.sizes["d"] != target.sizes["d"] or not theirs["first norm"]
    return same and ends and turned and not target.unexplained


def _begun(running: Running, observed: Observation) -> bool:
    """Return whether the stream before the blocks is larger if the weights before it are."""
    outside = running.anatomy.outside.values()
    pieces = [p for p in outside if p.facts.place == "first norm"]
    pieces = pieces or [p for p in outside if p.facts.place == "before"]
    parts = {(p.spec.key, p.role): running.part(p) for p in pieces}
    for part in parts.values():
        part *= 2
    begun, _ = running.trace(0, whole=False)
    for part in parts.values():
        part /= 2
    return _close(begun, 2 * observed.streams[0])


def _ended(running: Running, observed: Observation) -> bool:
    """Return whether the ancestor puts the same out where the stream after its blocks is larger."""
    one, other = (running.resume(0, size * observed.streams[0]) for size in (1, 2))
    pairs = list(zip(_tensors(one), _tensors(other), strict=True))
    return bool(pairs) and all(_close(larger, plain) for plain, larger in pairs)


def _close(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm()) <= CLOSE * float(wanted.norm())


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of floating point of a model's output."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)
