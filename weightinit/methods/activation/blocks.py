"""Blocks made smaller one after the other, each on what the blocks before it now give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.keep import Keep
from weightinit.methods.activation.leastsquares import Moments
from weightinit.methods.activation.stream import Stream, normalise

__all__ = ["Blocks", "Values", "absorbed"]

#: From canonical role to values, float64, of a block of the target.
Values = dict[str, Tensor]

#: What writes into the stream, and the layer scale after it.
SCALES = {"attn.proj": "ls1", "mlp.fc2": "ls2"}


class _EnoughError(Exception):
    """What was looked for has been seen."""


@dataclass(frozen=True)
class Blocks:
    """Makes a target's blocks out of an ancestor's.

    Neighbouring blocks that become one are computed side by side, all from the stream at their
    beginning. What reads the stream is fitted to read the target's instead: the normalised stream
    of the ancestor is regressed on the target's, once for each norm, and the matrices after it are
    multiplied by the result, gain and all. The heads and neurons are kept that explain most of
    what their blocks write into the stream, and the matrices that write are fitted to what is
    missing there, given the hidden activations that the smaller block really has.

    The target is played by the ancestor's own modules: its stream lies in the span of P^T, and
    heads and neurons that it lacks are zeros. Nothing here knows how a block computes.

    Args:
        running: the ancestor's copy, whose blocks are overwritten.
        target: anatomy of the target.
        stream: of the target in the ancestor's.
        calls: for each batch and block of the ancestor, from the stream before to that after it.
        ridge: of all regressions.
    """

    running: Running
    target: Anatomy
    stream: Stream
    calls: Sequence[Sequence[Callable[[Tensor], Tensor]]]
    ridge: float

    @torch.no_grad()
    def shrink(
        self, groups: Sequence[Sequence[int]], streams: list[Tensor]
    ) -> tuple[list[Values], list[Tensor]]:
        """Return the blocks of the target, and its stream after them in the ancestor's terms.

        Args:
            groups: the ancestor's blocks that each block of the target is made of.
            streams: what the first block is given, one a batch ``[..., d]``.
        """
        theirs = streams
        ours = [(self.project(x) @ self.stream.read.T).to(x) for x in streams]
        found = []
        for index, group in enumerate(groups):
            work = _Group(self, index, list(group))
            theirs = work.look(theirs, ours)
            work.attention(ours)
            ours = work.mlp(ours, theirs)
            found.append(work.values)
        return found, ours

    def project(self, x: Tensor) -> Tensor:
        """Return the target's stream, float64 ``[..., d']``."""
        return exact(x) @ self.stream.write.T


def absorbed(bare: Sequence[tuple[Tensor, Tensor]], stream: Stream) -> Tensor:
    """Return the bias of a norm, float64 ``[d']``, by which matrices without one get theirs.

    Args:
        bare: such matrices ``[outputs, d']`` and the biases ``[outputs]`` that they miss.
        stream: gives the size.
    """
    if not bare:
        return torch.zeros_like(stream.write[:, 0])
    return torch.linalg.pinv(torch.cat([m for m, _ in bare])) @ torch.cat([b for _, b in bare])


class _Group:
    """One block of the target in the making."""

    def __init__(self, blocks: Blocks, index: int, group: list[int]) -> None:
        self.blocks, self.group = blocks, group
        self.running, self.stream = blocks.running, blocks.stream
        self.wanted = blocks.target.blocks[index]
        self.pieces = blocks.running.anatomy.blocks[group[0]]
        # Copies: the first of these blocks is about to be overwritten.
        self.parts = [
            {
                role: exact(self.running.part(piece)).clone()
                for role, piece in blocks.running.anatomy.blocks[place].items()
            }
            for place in group
        ]
        self.values: Values = {}
        self.norms: list[list[Tensor]] = []
        self.goals: list[Tensor] = []
        self.keep = Keep(blocks.running.anatomy, blocks.target, group)

    def look(self, theirs: list[Tensor], ours: list[Tensor]) -> list[Tensor]:
        """Run the ancestor's blocks, choose what is kept of them; return the stream after them."""
        self.reads = [Moments() for _ in self.group]
        hidden = {role: Moments() for role in SCALES}
        after = []
        for batch, (begin, y) in enumerate(zip(theirs, ours, strict=True)):
            given, x = self._given(y, "norm1"), begin
            runs: list[Values] = []
            for place, reads in enumerate(self.reads):
                x, seen = self._theirs(place, batch, x)
                reads.add(given, seen["norm1"])
                runs.append(seen)
            written = {
                role: torch.stack([self._written(i, role, x) for i, x in enumerate(runs)]).sum(0)
                for role in SCALES
            }
            for role, moments in hidden.items():
                inner = torch.cat([seen[role] for seen in runs], -1)
                moments.add(inner, self.blocks.project(written[role]))
            self.norms.append([seen["norm2"].to(x) for seen in runs])
            self.goals.append(self.blocks.project(exact(begin) + written["attn.proj"]))
            after.append(x)
        for role, moments in hidden.items():
            self.running.check(moments.centred()[0])
            self.keep.choose(facts(f"{role}.weight").branch, moments)
        return after

    def attention(self, ours: list[Tensor]) -> None:
        """Fit what heads read and write."""
        self._read("attn", "norm1", self.reads)
        fit = Moments()
        for batch, y in enumerate(ours):
            hidden = self._until(batch, y, "attn.proj")
            fit.add(hidden, self.goals[batch] - self.blocks.project(y))
        self._write("attn.proj", fit)

    def mlp(self, ours: list[Tensor], theirs: list[Tensor]) -> list[Tensor]:
        """Fit what neurons read and write; return the target's stream after the block."""
        reads = [Moments() for _ in self.group]
        middle = []
        for batch, y in enumerate(ours):
            middle.append(self._until(batch, y, "norm2"))
            given = self._given(middle[-1], "norm2")
            for moments, norm in zip(reads, self.norms[batch], strict=True):
                moments.add(given, exact(norm))
        self._read("mlp", "norm2", reads)
        fit = Moments()
        for batch, y in enumerate(ours):
            hidden = self._until(batch, y, "mlp.fc2")
            fit.add(hidden, self.blocks.project(exact(theirs[batch]) - exact(middle[batch])))
        self._write("mlp.fc2", fit)
        return [self._play(batch)(y) for batch, y in enumerate(ours)]

    def _given(self, y: Tensor, norm: str) -> Tensor:
        """Return the target's normalised stream, float64 ``[..., d']``."""
        owner = self.running.owner(self.pieces[f"{norm}.weight"])
        return self.blocks.project(normalise(exact(y), owner))

    def _theirs(self, place: int, batch: int, x: Tensor) -> tuple[Tensor, Values]:
        """Run one block of the ancestor; return the stream after it, and what went on inside."""
        pieces = self.running.anatomy.blocks[self.group[place]]
        seen: Values = {}

        def note(name: str) -> Callable[[Tensor], None]:
            return lambda x: seen.__setitem__(name, exact(x))

        def owner(name: str) -> torch.nn.Module:
            return self.running.owner(pieces[f"{name}.weight"])

        inputs = {owner(role): note(role) for role in SCALES} | {owner("norm2"): note("middle")}
        outputs = {owner(norm): note(norm) for norm in ("norm1", "norm2")}
        with watching(inputs, outputs):
            after = self._play(batch, place)(x)
        if batch == 0 and not self._adds(place, seen, x, exact(after)):
            raise ProjectionError(
                f"block {self.group[place]} of the ancestor does not add attention and MLP to the "
                "stream one after the other: use method='weight_selection'"
            )
        return after, seen

    def _adds(self, place: int, seen: Values, x: Tensor, after: Tensor) -> bool:
        """Return whether attention and MLP were added to the stream one after the other."""
        if not {*SCALES, "norm1", "norm2", "middle"} <= seen.keys():
            return False
        steps = ((x, "attn.proj", seen["middle"]), (seen["middle"], "mlp.fc2", after))
        return all(
            torch.allclose(end, exact(begin) + self._written(place, role, seen), 1e-3, 1e-3)
            for begin, role, end in steps
        )

    def _play(self, batch: int, place: int = 0) -> Callable[[Tensor], Tensor]:
        return self.blocks.calls[batch][self.group[place]]

    def _written(self, place: int, role: str, seen: Values) -> Tensor:
        """Return what hidden activations ``[..., inputs]`` add to the ancestor's stream."""
        parts = self.parts[place]
        value = seen[role] @ parts[f"{role}.weight"].T
        if f"{role}.bias" in parts:
            value = value + parts[f"{role}.bias"]
        return value * parts[SCALES[role]] if SCALES[role] in parts else value

    def _until(self, batch: int, y: Tensor, role: str) -> Tensor:
        """Run the smaller block up to a norm or a matrix; return what that is given."""
        seen: list[Tensor] = []

        def enough(x: Tensor) -> None:
            seen.append(x)
            raise _EnoughError

        try:
            with watching({self.running.owner(self.pieces[f"{role}.weight"]): enough}):
                self._play(batch)(y)
        except _EnoughError:
            pass
        fact = facts(f"{role}.weight")
        kept = self.keep.kept[fact.branch] if fact.end else None
        return seen[0] if kept is None else exact(seen[0])[..., : len(kept)]

    def _read(self, branch: str, norm: str, moments: list[Moments]) -> None:
        """Fit what reads the stream after a norm, whose gain and bias it takes over."""
        inside = {r: piece for r, piece in self.pieces.items() if piece.facts.branch == branch}
        biases = {
            role: piece.facts.bias_role
            for role, piece in inside.items()
            if piece.axes[1:] == (("d",),)
        }
        both = self.pieces.keys() & self.wanted.keys()
        gain, free = f"{norm}.weight", f"{norm}.bias" in both
        offset = free or both.issuperset(biases.values())
        fits = [
            seen.fit(parts[gain][:, None] * self.stream.read, ridge=self.blocks.ridge, bias=offset)
            for parts, seen in zip(self.parts, moments, strict=True)
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

    def _write(self, role: str, moments: Moments) -> None:
        """Fit what writes into the stream; it takes the layer scale over."""
        weight, bias, scale = f"{role}.weight", f"{role}.bias", SCALES[role]
        ones = torch.ones_like(self.stream.write[0])
        scaled = [parts[weight] * parts.get(scale, ones)[:, None] for parts in self.parts]
        prior = self.stream.write @ self.keep.keep(weight, scaled)
        has = bias in self.pieces.keys() & self.wanted.keys()
        matrix, offset = moments.fit(prior, ridge=self.blocks.ridge, bias=has)
        self._set(weight, matrix, self.stream.read @ matrix)
        self._set(bias, offset, self.stream.read @ offset)
        self._set(scale, torch.ones_like(self.stream.write[:, 0]), ones)

    def _set(self, role: str, value: Tensor, theirs: Tensor | None = None) -> None:
        """Keep the target's values of a role, and play them in the ancestor's block."""
        if role in self.wanted:
            size = self.wanted[role].size
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
            if role in self.wanted or role in SCALES.values():
                part[tuple(slice(n) for n in played.shape)] = played.to(part)
