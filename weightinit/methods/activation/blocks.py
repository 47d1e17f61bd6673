"""Blocks made smaller one after the other, each on what the blocks before it now give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.keep import Keep
from weightinit.methods.activation.leastsquares import Moments
from weightinit.methods.activation.stream import Entry, Stream, normalise

__all__ = ["Blocks", "Values", "absorbed"]

#: From canonical role to a tensor, float64.
Values = dict[str, Tensor]

#: From each matrix that writes into the stream to the layer scale after it.
SCALES = {"attn.proj": "ls1", "mlp.fc2": "ls2"}


class _EnoughError(Exception):
    """A forward pass has come as far as it is needed."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a target, made out of an ancestor's one after the other.

    Neighbouring blocks that become one are computed side by side, all from the stream at their
    beginning. What reads the stream is fitted to read the target's instead: the normalised stream
    of the ancestor is regressed on the target's, once for each norm, and the matrices after it are
    multiplied by the result, gain and all. The heads and neurons are kept that explain most of
    what their blocks write into the stream, and the matrices that write are fitted to what is
    missing there, given the hidden activations that the smaller block really has.

    The target is played by the modules of the ancestor's copy, whose blocks are overwritten: its
    stream lies in the span of P^T, and heads and neurons that it lacks are zeros. Nothing here
    knows how a block computes. ``calls`` are, for each batch and block of the ancestor, functions
    from the stream before the block to that after it.
    """

    running: Running
    target: Anatomy
    stream: Stream
    calls: Sequence[Sequence[Callable[[Tensor], Tensor]]]
    ridge: float

    @torch.no_grad()
    def shrink(
        self,
        groups: Sequence[Sequence[int]],
        streams: list[Tensor],
        entry: Entry | None = None,
    ) -> tuple[list[Values], list[Tensor]]:
        """Return the blocks of the target, and its stream after them in the ancestor's terms.

        ``streams`` are those before the first block, one a batch ``[..., d]``, and ``entry`` is the
        norm before it, if there is one.
        """
        theirs = streams
        starts = (entry(exact(x), self.stream) if entry else self.project(x) for x in streams)
        ours = [(y @ self.stream.read.T).to(x) for x, y in zip(streams, starts, strict=True)]
        values = []
        for index, group in enumerate(groups):
            block = _Group(self, index, group)
            theirs, ours = block.fit(theirs, ours)
            values.append(block.values)
        return values, ours

    def project(self, x: Tensor) -> Tensor:
        """Return the target's stream, float64 ``[..., d']``."""
        return exact(x) @ self.stream.write.T


def absorbed(bare: Sequence[tuple[Tensor, Tensor]], stream: Stream) -> Tensor:
    """Return the bias of a norm, float64 ``[d']``, that stands in for biases after it.

    ``bare`` are matrices ``[outputs, d']``, each with the bias ``[outputs]`` that it misses.
    """
    if not bare:
        return torch.zeros_like(stream.write[:, 0])
    return torch.linalg.pinv(torch.cat([m for m, _ in bare])) @ torch.cat([b for _, b in bare])


@dataclass(frozen=True)
class _Record:
    """What the ancestor's blocks of one group do."""

    after: list[Tensor]  # the stream after them, one a batch
    reads: list[Moments]  # for each block, the first norm's output regressed on the target's
    norms: list[list[Tensor]]  # for each batch and block, the second norm's output
    goals: list[Tensor]  # the target's stream after attention as it should be, one a batch


class _Group:
    """One block of the target, and the group of the ancestor's blocks that it is made of."""

    def __init__(self, blocks: Blocks, index: int, group: Sequence[int]) -> None:
        self.blocks, self.group = blocks, group
        self.running, self.stream = blocks.running, blocks.stream
        self.target = blocks.target.blocks[index]
        own = blocks.running.anatomy.blocks
        self.pieces = own[group[0]]
        # Copies: the first of these blocks is about to be overwritten.
        self.parts = [
            {role: exact(self.running.part(piece)).clone() for role, piece in own[place].items()}
            for place in group
        ]
        self.values: Values = {}
        self.keep = Keep(blocks.running.anatomy, blocks.target, group)

    def fit(self, theirs: list[Tensor], ours: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Fit the block, and return the ancestor's and the target's streams after it."""
        record = self._look(theirs, ours)
        project = self.blocks.project
        self._read("attn", "norm1", record.reads)
        goals = zip(record.goals, ours, strict=True)
        self._write("attn.proj", ours, (goal - project(y) for goal, y in goals))
        reads = [Moments() for _ in self.group]
        middle = [self._until(batch, y, "norm2") for batch, y in enumerate(ours)]
        for x, norms in zip(middle, record.norms, strict=True):
            given = self._given(x, "norm2")
            for moments, norm in zip(reads, norms, strict=True):
                moments.add(given, exact(norm))
        self._read("mlp", "norm2", reads)
        steps = zip(middle, record.after, strict=True)
        self._write("mlp.fc2", ours, (project(exact(end) - exact(x)) for x, end in steps))
        return record.after, [self._play(batch)(y) for batch, y in enumerate(ours)]

    def _look(self, theirs: list[Tensor], ours: list[Tensor]) -> _Record:
        """Run the ancestor's blocks, and choose what is kept of them."""
        record = _Record([], [Moments() for _ in self.group], [], [])
        hidden = {role: Moments() for role in SCALES}
        for batch, (begin, y) in enumerate(zip(theirs, ours, strict=True)):
            given, x = self._given(y, "norm1"), begin
            runs: list[Values] = []
            for place, reads in enumerate(record.reads):
                x, activations = self._theirs(place, batch, x)
                reads.add(given, activations["norm1"])
                runs.append(activations)
            written = {
                role: torch.stack([self._written(i, role, x) for i, x in enumerate(runs)]).sum(0)
                for role in SCALES
            }
            for role, moments in hidden.items():
                inner = torch.cat([activations[role] for activations in runs], -1)
                moments.add(inner, self.blocks.project(written[role]))
            record.norms.append([activations["norm2"].to(x) for activations in runs])
            record.goals.append(self.blocks.project(exact(begin) + written["attn.proj"]))
            record.after.append(x)
        for role, moments in hidden.items():
            self.running.check(moments.centred()[0])
            self.keep.choose(facts(f"{role}.weight").branch, moments)
        return record

    def _given(self, y: Tensor, norm: str) -> Tensor:
        """Return the target's normalised stream, float64 ``[..., d']``."""
        owner = self.running.owner(self.pieces[f"{norm}.weight"])
        return self.blocks.project(normalise(exact(y), owner))

    def _theirs(self, place: int, batch: int, x: Tensor) -> tuple[Tensor, Values]:
        """Run one block of the ancestor; return the stream after it, and activations inside."""
        pieces = self.running.anatomy.blocks[self.group[place]]
        activations: Values = {}

        def note(name: str) -> Callable[[Tensor], None]:
            return lambda x: activations.__setitem__(name, exact(x))

        def owner(name: str) -> torch.nn.Module:
            return self.running.owner(pieces[f"{name}.weight"])

        inputs = {owner(role): note(role) for role in SCALES} | {owner("norm2"): note("middle")}
        outputs = {owner(norm): note(norm) for norm in ("norm1", "norm2")}
        with watching(inputs, outputs):
            after = self._play(batch, place)(x)
        if batch == 0 and not self._adds(place, activations, x, exact(after)):
            raise ProjectionError(
                f"block {self.group[place]} of the ancestor does not add attention and MLP to the "
                "stream one after the other: use method='weight_selection'"
            )
        return after, activations

    def _adds(self, place: int, activations: Values, x: Tensor, after: Tensor) -> bool:
        """Return whether attention and MLP were added to the stream one after the other."""
        if not {*SCALES, "norm1", "norm2", "middle"} <= activations.keys():
            return False
        middle = activations["middle"]
        return all(
            torch.allclose(end, exact(begin) + self._written(place, role, activations), 1e-3, 1e-3)
            for begin, role, end in ((x, "attn.proj", middle), (middle, "mlp.fc2", after))
        )

    def _play(self, batch: int, place: int = 0) -> Callable[[Tensor], Tensor]:
        return self.blocks.calls[batch][self.group[place]]

    def _written(self, place: int, role: str, activations: Values) -> Tensor:
        """Return what hidden activations ``[..., inputs]`` add to the ancestor's stream."""
        parts = self.parts[place]
        value = activations[role] @ parts[f"{role}.weight"].T
        if f"{role}.bias" in parts:
            value = value + parts[f"{role}.bias"]
        return value * parts[SCALES[role]] if SCALES[role] in parts else value

    def _until(self, batch: int, y: Tensor, role: str) -> Tensor:
        """Run the smaller block up to a norm or a matrix; return what that is given."""
        given: list[Tensor] = []

        def enough(x: Tensor) -> None:
            given.append(x)
            raise _EnoughError

        piece = self.pieces[f"{role}.weight"]
        with suppress(_EnoughError), watching({self.running.owner(piece): enough}):
            self._play(batch)(y)
        if not piece.facts.end:
            return given[0]
        return exact(given[0])[..., : len(self.keep.kept[piece.facts.branch])]

    def _read(self, branch: str, norm: str, moments: list[Moments]) -> None:
        """Fit what reads the stream after a norm, whose gain and bias it takes over."""
        inside = {r: piece for r, piece in self.pieces.items() if piece.facts.branch == branch}
        biases = {
            role: piece.facts.bias_role
            for role, piece in inside.items()
            if piece.axes[1:] == (("d",),)
        }
        both = self.pieces.keys() & self.target.keys()
        gain, free = f"{norm}.weight", f"{norm}.bias" in both
        offset = free or both.issuperset(biases.values())
        fits = [
            one.fit(parts[gain][:, None] * self.stream.read, ridge=self.blocks.ridge, bias=offset)
            for parts, one in zip(self.parts, moments, strict=True)
        ]
        matrices: Values = {}
        offsets: Values = {}
        for role, bias in biases.items():
            pairs = list(zip(self.parts, fits, strict=True))
            matrices[role] = self.keep.keep(role, [parts[role] @ w for parts, (w, _) in pairs])
            offsets[role] = self.keep.keep(role, [parts[role] @ b for parts, (_, b) in pairs])
            if bias in self.pieces:
                offsets[role] += self.keep.keep(bias, [parts[bias] for parts in self.parts])
        bare = [(matrices[role], offsets[role]) for role in biases if biases[role] not in both]
        shift = absorbed(bare if free else [], self.stream)
        self._set(gain, torch.ones_like(shift), torch.ones_like(self.stream.write[0]))
        self._set(f"{norm}.bias", shift, self.stream.read @ shift)
        for role, matrix in matrices.items():
            self._set(role, matrix, matrix @ self.stream.write)
            self._set(biases[role], offsets[role] - matrix @ shift)
        done = {*biases, *biases.values()}
        for role, piece in inside.items():
            if role not in done and not piece.facts.end:
                self._set(role, self.keep.keep(role, [parts[role] for parts in self.parts]))

    def _write(self, role: str, ours: list[Tensor], missing: Iterable[Tensor]) -> None:
        """Fit what writes what is missing into the stream; it takes the layer scale over."""
        moments = Moments()
        for batch, (y, rest) in enumerate(zip(ours, missing, strict=True)):
            moments.add(self._until(batch, y, role), rest)
        weight, bias, scale = f"{role}.weight", f"{role}.bias", SCALES[role]
        ones = torch.ones_like(self.stream.write[0])
        scaled = [parts[weight] * parts.get(scale, ones)[:, None] for parts in self.parts]
        prior = self.stream.write @ self.keep.keep(weight, scaled)
        has = bias in self.pieces.keys() & self.target.keys()
        matrix, offset = moments.fit(prior, ridge=self.blocks.ridge, bias=has)
        self._set(weight, matrix, self.stream.read @ matrix)
        self._set(bias, offset, self.stream.read @ offset)
        self._set(scale, torch.ones_like(self.stream.write[:, 0]), ones)

    def _set(self, role: str, value: Tensor, theirs: Tensor | None = None) -> None:
        """Set the target's values of a role, and put ``theirs`` into the ancestor's block."""
        if role in self.target:
            size = self.target[role].size
            if value.shape != size:
                raise ProjectionError(
                    f"{role} of shape {tuple(value.shape)} does not become {size}: keep the "
                    "ancestor's grid of patches"
                )
            self.values[role] = self.running.check(value).cpu()
        if role in self.pieces:
            part = self.running.part(self.pieces[role])
            played = value if theirs is None else theirs
            part.zero_()
            if role in self.target or role in SCALES.values():
                part[tuple(slice(n) for n in played.shape)] = played.to(part)
