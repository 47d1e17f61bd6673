"""Blocks made smaller one after the other, each on what the blocks before it now give."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weightinit.anatomy import Anatomy, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.keep import Keep
from weightinit.methods.activation.leastsquares import Moments
from weightinit.methods.activation.pace import Pace
from weightinit.methods.activation.stream import SCALES, Entry, Stream, normalise

__all__ = ["Blocks", "Values", "absorbed"]

#: From canonical role to a tensor.
Values = dict[str, Tensor]

#: How many times as many tokens as inputs to choose from are looked at.
TIMES = 2
#: Tokens by which it is checked how blocks compute.
FEW = 200


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
    stream is read out of the span of P^T, and heads and neurons that it lacks are zeros. Nothing
    here knows how a block computes. ``calls`` are, for each batch and block of the ancestor,
    functions from the stream before the block to that after it.
    """

    running: Running
    target: Anatomy
    stream: Stream
    calls: Sequence[Sequence[Callable[[Tensor], Tensor]]]
    picks: Sequence[Tensor]  # the tokens of each batch that regressions look at
    ridge: float
    pace: Pace = field(default_factory=Pace)

    @torch.no_grad()
    def shrink(
        self,
        groups: Sequence[Sequence[int]],
        streams: list[Tensor],
        entry: Entry | None = None,
    ) -> tuple[list[Values], list[Tensor]]:
        """Return the blocks of the target, and its stream after them in the ancestor's terms.

        ``streams`` are those before the first block, one a batch ``[..., d]``, and ``entry`` is the
        norm before it, if there is one. They are replaced by those after the blocks.
        """
        ours = [entry(exact(x), self.stream).to(x) if entry else self.project(x) for x in streams]
        values = []
        shown = sys.stderr.isatty()
        for index, group in enumerate(tqdm(groups, "fitting", disable=not shown, unit="block")):
            block = _Group(self, index, group)
            block.fit(streams, ours)
            values.append(block.values)
        for batch, y in enumerate(ours):
            ours[batch] = self.widen(y)
        return values, ours

    def project(self, x: Tensor) -> Tensor:
        """Return the target's stream ``[..., d']``."""
        return x @ self.stream.write.T.to(x)

    def widen(self, y: Tensor) -> Tensor:
        """Return the target's stream in the ancestor's terms ``[..., d]``."""
        return y @ self.stream.read.T.to(y)

    def rows(self, x: Tensor, batch: int) -> Tensor:
        """Return the tokens of a batch that regressions look at, ``[tokens, channels]``."""
        return x.flatten(0, -2)[self.picks[batch]]


def absorbed(bare: Sequence[tuple[Tensor, Tensor]], stream: Stream) -> Tensor:
    """Return the bias of a norm, float64 ``[d']``, that stands in for biases after it.

    ``bare`` are matrices ``[outputs, d']``, each with the bias ``[outputs]`` that it misses.
    """
    if not bare:
        return torch.zeros_like(stream.write[:, 0])
    return torch.linalg.pinv(torch.cat([m for m, _ in bare])) @ torch.cat([b for _, b in bare])


@dataclass(frozen=True)
class _Record:
    """What the ancestor's blocks of one group do, at the tokens that regressions look at.

    The tensors are views of one batch each, into a tensor for all.
    """

    reads: Moments  # the first norms' outputs side by side, regressed on the target's
    norms: Sequence[Tensor]  # the second norms' outputs side by side
    goals: Sequence[Tensor]  # what attention is to write into the target's stream
    after: Sequence[Tensor]  # the target's stream after the blocks as it should be


def branch_of(role: str) -> str:
    """Return the branch of a matrix that writes into the stream."""
    return facts(f"{role}.weight").branch


class _Group:
    """One block of the target, and the group of the ancestor's blocks that it is made of."""

    def __init__(self, blocks: Blocks, index: int, group: Sequence[int]) -> None:
        self.blocks, self.group = blocks, group
        self.running, self.stream = blocks.running, blocks.stream
        self.target = blocks.target.blocks[index]
        own = blocks.running.anatomy.blocks
        self.pieces = own[group[0]]
        self.parts = [
            {role: self.running.part(piece) for role, piece in own[place].items()}
            for place in group
        ]
        # The first of these blocks is about to be overwritten.
        self.parts[0] = {role: part.clone() for role, part in self.parts[0].items()}
        self.dtype = self.parts[0]["norm1.weight"].dtype
        self.values: Values = {}
        self.keep = Keep(blocks.running.anatomy, blocks.target, group)
        self.mlp: nn.Module | None = self._mlp()

    def fit(self, theirs: list[Tensor], ours: list[Tensor]) -> None:
        """Fit the block, and replace the ancestor's and the target's streams by those after it.

        The ancestor's are ``[..., d]`` and the target's ``[..., d']``.
        """
        record = self._look(theirs, ours)
        self._read("attn", "norm1", record.reads)
        middle = self._attend(record.goals, ours)
        reads = Moments()
        for x, norms in zip(middle, record.norms, strict=True):
            reads.add(self._normalised(x, "norm2"), norms)
        self._read("mlp", "norm2", reads)
        hidden = (self._neurons(y, batch, middle[batch]) for batch, y in enumerate(ours))
        goals = (y - x for y, x in zip(record.after, middle, strict=True))
        self._write("mlp.fc2", zip(hidden, goals, strict=True))
        for batch, y in enumerate(ours):
            wide = self.blocks.widen(y)
            # What the block adds is projected alone, so that rounding does not add up.
            y += self.blocks.project(self._play(batch)(wide) - wide)

    def _look(self, theirs: list[Tensor], ours: list[Tensor]) -> _Record:
        """Run the ancestor's blocks, and choose what is kept of them."""
        project, rows = self.blocks.project, self.blocks.rows
        record = self._record(ours[0])
        hidden = {role: Moments() for role in SCALES if not self.keep.all(branch_of(role))}
        among: dict[str, Tensor] = {}
        for batch, y in enumerate(ours):
            x, y = theirs[batch], rows(y, batch)
            goal = rows(x, batch)
            runs: list[Values] = []
            for place in range(len(self.group)):
                begin = rows(x, batch)
                x, activations = self._theirs(place, batch, x)
                goal += activations.pop("middle") - begin
                for role in among:
                    seen = activations[role]
                    activations[role] = seen[:, self._inside(among[role], place, seen.shape[-1])]
                runs.append(activations)
            theirs[batch] = x

            def together(name: str, runs: list[Values] = runs) -> Tensor:
                return torch.cat([run.pop(name) for run in runs], -1)

            for role, moments in hidden.items():
                side = together(role)
                if batch == 0:
                    written = side.var(0) * self._writes(role).square().sum(0).to(y)
                    among[role] = self.keep.candidates(branch_of(role), written)
                    side = side[:, among[role]]
                moments.add(self._fewer(side))
            record.reads.add(self._normalised(y, "norm1"), together("norm1"))
            record.norms[batch].copy_(together("norm2"))
            record.goals[batch].copy_(project(goal) - y)
            record.after[batch].copy_(project(rows(x, batch)))
        for role in [*hidden]:
            gram = self.running.check(hidden.pop(role).centred()[0])
            cross = gram @ self._writes(role)[:, among[role]].T
            self.keep.choose(branch_of(role), gram, cross, among[role])
        return record

    def _record(self, like: Tensor) -> _Record:
        """Return room for a record; allocated at once, it does not scatter over the memory."""
        sizes = [len(few) for few in self.blocks.picks]
        new, old = self.stream.write.shape
        widths = (len(self.group) * old, new, new)
        return _Record(Moments(), *(like.new_empty(sum(sizes), n).split(sizes) for n in widths))

    @staticmethod
    def _inside(among: Tensor, place: int, width: int) -> Tensor:
        """Return which of a block's channels are among those of all blocks side by side."""
        own = among - place * width
        return own[(own >= 0) & (own < width)]

    def _attend(self, goals: Sequence[Tensor], ours: Sequence[Tensor]) -> list[Tensor]:
        """Fit what attention writes; return the target's stream after it, at the tokens looked at.

        ``goals`` are what attention is to write into the target's stream.
        """
        hidden = [self._until(batch, y, "attn.proj") for batch, y in enumerate(ours)]
        weight, offset = self._write("attn.proj", zip(hidden, goals, strict=True))
        return [
            self.blocks.rows(y, batch) + h @ weight.T.to(h) + offset.to(h)
            for batch, (y, h) in enumerate(zip(ours, hidden, strict=True))
        ]

    def _fewer(self, x: Tensor) -> Tensor:
        """Return every few of many tokens: to choose by, twice as many as inputs are enough."""
        tokens = sum(map(len, self.blocks.picks))
        return x[:: max(1, tokens // (TIMES * x.shape[-1]))]

    def _writes(self, role: str) -> Tensor:
        """Return the matrix by which the hidden activations of all blocks write, ``[d', inputs]``.

        They write into the target's stream.
        """
        write = self.stream.write
        return torch.cat(
            [
                (write * exact(parts[SCALES[role]]) if SCALES[role] in parts else write)
                @ exact(parts[f"{role}.weight"])
                for parts in self.parts
            ],
            1,
        )

    def _normalised(self, y: Tensor, norm: str) -> Tensor:
        """Return what a norm makes of the target's stream ``[..., d']``, which commutes with P."""
        return normalise(y, self.running.owner(self.pieces[f"{norm}.weight"]))

    def _theirs(self, place: int, batch: int, x: Tensor) -> tuple[Tensor, Values]:
        """Run one block of the ancestor; return the stream after it, and activations inside."""
        pieces = self.running.anatomy.blocks[self.group[place]]
        activations: Values = {}

        def note(name: str) -> Callable[[Tensor], None]:
            return lambda x: activations.__setitem__(name, self.blocks.rows(x, batch))

        def owner(name: str) -> nn.Module:
            return self.running.owner(pieces[f"{name}.weight"])

        inputs = {owner(role): note(role) for role in SCALES} | {owner("norm2"): note("middle")}
        outputs = {owner(norm): note(norm) for norm in ("norm1", "norm2")}
        with watching(inputs, outputs):
            after = self._play(batch, place)(x)
        if batch == 0 and not self._adds(place, activations, x, after):
            raise ProjectionError(
                f"block {self.group[place]} of the ancestor does not add attention and MLP to the "
                "stream one after the other: use method='weight_selection'"
            )
        if batch == place == 0 and self.mlp is not None:
            found = self._hidden(self.mlp, activations["norm2"][:FEW])
            if not torch.allclose(found, activations["mlp.fc2"][:FEW], 1e-3, 1e-3):
                self.mlp = None
        return after, activations

    def _adds(self, place: int, activations: Values, x: Tensor, after: Tensor) -> bool:
        """Return whether attention and MLP were added to the stream one after the other."""
        if not {*SCALES, "norm1", "norm2", "middle"} <= activations.keys():
            return False
        few = {name: exact(value[:FEW]) for name, value in activations.items()}
        begin, end = (exact(self.blocks.rows(y, 0)[:FEW]) for y in (x, after))
        middle = few["middle"]
        return all(
            torch.allclose(end, begin + self._written(place, role, few), 1e-3, 1e-3)
            for begin, role, end in ((begin, "attn.proj", middle), (middle, "mlp.fc2", end))
        )

    def _play(self, batch: int, place: int = 0) -> Callable[[Tensor], Tensor]:
        return self.blocks.calls[batch][self.group[place]]

    def _written(self, place: int, role: str, activations: Values) -> Tensor:
        """Return what hidden activations ``[..., inputs]`` add to the ancestor's stream."""
        parts = self.parts[place]
        value = activations[role] @ exact(parts[f"{role}.weight"]).T
        if f"{role}.bias" in parts:
            value = value + parts[f"{role}.bias"]
        return value * parts[SCALES[role]] if SCALES[role] in parts else value

    def _until(self, batch: int, y: Tensor, role: str) -> Tensor:
        """Run the smaller block up to a matrix; return what that is given, of kept inputs."""
        given = self._enough(lambda: self._play(batch)(self.blocks.widen(y)), role)
        return self._kept(self.blocks.rows(given, batch), role)

    def _enough(self, play: Callable[[], object], role: str) -> Tensor:
        """Return what a matrix is given when something is played, which ends there."""
        given: list[Tensor] = []

        def enough(x: Tensor) -> None:
            given.append(x)
            raise _EnoughError

        with suppress(_EnoughError), watching({self._owner(role): enough}):
            play()
        return given[0]

    def _kept(self, x: Tensor, role: str) -> Tensor:
        return x[..., : len(self.keep.kept[branch_of(role)])]

    def _owner(self, role: str) -> nn.Module:
        return self.running.owner(self.pieces[f"{role}.weight"])

    def _mlp(self) -> nn.Module | None:
        """Return the module that is the MLP, of a block that has it in one."""
        inside = [piece for piece in self.pieces.values() if piece.facts.branch == "mlp"]
        mlp = self.running.around(inside)
        return None if mlp is self.running.block(self.group[0]) else mlp

    def _neurons(self, y: Tensor, batch: int, middle: Tensor) -> Tensor:
        """Return the hidden activations of the smaller MLP, token by token if it is a module."""
        if self.mlp is None:
            return self._until(batch, y, "mlp.fc2")
        given = self._owner("norm2")(self.blocks.widen(middle))
        return self._kept(self._hidden(self.mlp, given), "mlp.fc2")

    def _hidden(self, mlp: nn.Module, given: Tensor) -> Tensor:
        return self._enough(lambda: mlp(given), "mlp.fc2")

    def _read(self, branch: str, norm: str, moments: Moments) -> None:
        """Fit what reads the stream after a norm, whose gain and bias it takes over.

        ``moments`` are those of the norm's outputs in all blocks side by side.
        """
        inside = {r: piece for r, piece in self.pieces.items() if piece.facts.branch == branch}
        biases = {
            role: piece.facts.bias_role
            for role, piece in inside.items()
            if piece.axes[1:] == (("d",),)
        }
        both = self.pieces.keys() & self.target.keys()
        gain, free = f"{norm}.weight", f"{norm}.bias" in both
        offset = free or both.issuperset(biases.values())
        prior = torch.cat([exact(parts[gain])[:, None] * self.stream.read for parts in self.parts])
        weight, add = moments.fit(prior, ridge=self.blocks.ridge, bias=offset)
        fits = list(zip(weight.chunk(len(self.group)), add.chunk(len(self.group)), strict=True))
        matrices: Values = {}
        offsets: Values = {}
        pairs = list(zip(self.parts, fits, strict=True))
        for role, bias in biases.items():
            matrices[role] = self.keep.keep(role, [exact(p[role]) @ w for p, (w, _) in pairs])
            offsets[role] = self.keep.keep(role, [exact(p[role]) @ b for p, (_, b) in pairs])
            if bias in self.pieces:
                offsets[role] += self.keep.keep(bias, [parts[bias] for parts in self.parts])
        bare = [(matrices[role], offsets[role]) for role in biases if biases[role] not in both]
        shift = absorbed(bare if free else [], self.stream)
        larger = self.blocks.pace.reads
        self._set(gain, torch.ones_like(shift) / larger, torch.ones_like(self.stream.write[0]))
        self._set(f"{norm}.bias", shift / larger, self.stream.read @ shift)
        for role, matrix in matrices.items():
            self._set(role, matrix * larger, matrix @ self.stream.write)
            self._set(biases[role], offsets[role] - matrix @ shift)
        done = {*biases, *biases.values()}
        for role, piece in inside.items():
            if role not in done and not piece.facts.end:
                self._set(role, self.keep.keep(role, [parts[role] for parts in self.parts]))

    def _write(self, role: str, samples: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Fit what writes into the stream; it takes the layer scale over.

        ``samples`` are hidden activations and what they are to add to the target's stream. Returns
        the weight ``[d', inputs]`` and bias ``[d']`` by which they add to it.
        """
        moments = Moments()
        for hidden, missing in samples:
            moments.add(hidden, missing)
        weight, bias, scale = f"{role}.weight", f"{role}.bias", SCALES[role]
        prior = self._writes(role)[:, self.keep.kept[branch_of(role)]]
        has = bias in self.pieces.keys() & self.target.keys()
        matrix, offset = moments.fit(prior, ridge=self.blocks.ridge, bias=has)
        read = self.stream.read
        larger = self.blocks.pace.stream
        self._set(weight, matrix * larger, read @ matrix)
        self._set(bias, offset * larger, read @ offset)
        self._set(scale, torch.ones_like(self.stream.write[:, 0]), torch.ones_like(read[:, 0]))
        return matrix, offset

    def _set(self, role: str, value: Tensor, theirs: Tensor | None = None) -> None:
        """Set the target's values of a role, and put ``theirs`` into the ancestor's block."""
        if role in self.target:
            size = self.target[role].size
            if value.shape != size:
                raise ProjectionError(
                    f"{role} of shape {tuple(value.shape)} does not become {size}: keep the "
                    "ancestor's grid of patches"
                )
            # No more digits than the ancestor's own: all blocks' values are held until the end.
            self.values[role] = self.running.check(value).to(self.dtype).cpu()
        if role in self.pieces:
            part = self.running.part(self.pieces[role])
            played = value if theirs is None else theirs
            part.zero_()
            if role in self.target or role in SCALES.values():
                part[tuple(slice(n) for n in played.shape)] = played.to(part)
