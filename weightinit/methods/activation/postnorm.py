"""Post-norm blocks (BERT's) made smaller one after the other: x = norm(x + f(x)), twice a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece, facts
from weightinit.inherit.running import Running, exact
from weightinit.methods.activation.blocks import Values
from weightinit.methods.activation.keep import Keep
from weightinit.methods.activation.leastsquares import Moments
from weightinit.methods.activation.pooled import fit_readers
from weightinit.methods.activation.sight import ENDS, Sight
from weightinit.methods.activation.skip import Skip
from weightinit.methods.activation.stream import Stream, groups_of, normalise, principal

__all__ = ["PostNorm", "fit_post_norm", "unlike"]


@dataclass(frozen=True)
class PostNorm:
    """The blocks of a target, and the norm before them.

    Attributes:
        stream: how the target's normalised stream lies in the ancestor's.
        groups: the ancestor's blocks that each block of the target is made of.
        blocks: values of each block by role.
        outside: values of the norm before the blocks, and of what reads the stream after them.
    """

    stream: Stream
    groups: list[list[int]]
    blocks: list[Values]
    outside: Values


@torch.no_grad()
def fit_post_norm(running: Running, target: Anatomy, *, ridge: float) -> PostNorm:
    """Return a post-norm target fitted to what the ancestor does.

    Before gain and bias, every norm of the target is to give P times what the ancestor's gives.
    Gains do not commute with P. So the gains of a norm are those with which the skip connection
    after it, together with what the next branch writes, is nearest to P times the ancestor's sum;
    what reads the norm is divided by them. Neighbouring blocks that become one are read side by
    side, and the heads and neurons are kept that explain most of what is missing in the sum.

    The target is played by the modules of the ancestor's copy, whose blocks are overwritten: its
    stream takes up their first channels. Its norms are computed here.
    """
    sight = Sight(running)
    stream = principal(sight.moment, target.sizes["d"], centred=True)
    groups = groups_of(sight.similarity, target.depth)
    outside = running.anatomy.outside
    norm, owner = _Norm.of(running, outside, "norm_pre"), running.owner(outside["norm_pre.weight"])
    ours = [normalise(exact(x) @ stream.write.T, owner) for x in sight.sums]
    theirs = sight.streams
    first: Values = {}
    blocks: list[Values] = []
    place, name = first, "norm_pre"
    for group in groups:
        block = _Group(sight, target, stream, group, ridge)
        theirs = block.look(theirs)
        for branch, (_, after) in ENDS.items():
            ours, gain, shift = block.fit(branch, norm, ours)
            place[f"{name}.weight"], place[f"{name}.bias"] = gain, shift
            place, name, norm = block.values, after, block.norms[-1][branch]
        blocks.append(block.values)
    end = Skip()
    for number, (x, goal) in enumerate(zip(ours, theirs, strict=True)):
        x = sight.flat(number, x)
        end.add(x[:, :0], x, exact(sight.flat(number, goal)) @ stream.write.T)
    _, gain, shift = end.fit(stream.write[:, :0], _through(stream, norm.gain), ridge=ridge)
    place[f"{name}.weight"], place[f"{name}.bias"] = gain, shift
    for values in (first, *blocks):
        values.update({role: running.check(value).cpu() for role, value in values.items()})
    if target.sizes["d"] != running.anatomy.sizes["d"]:
        last = [(x, gain * y + shift) for x, y in zip(theirs, ours, strict=True)]
        first |= fit_readers(running, target, stream, last, ridge=ridge)
    return PostNorm(stream, groups, blocks, first)


def unlike(old: Anatomy, new: Anatomy) -> list[str]:
    """Return roles that a fit needs and that one of two post-norm models lacks."""
    first = {"norm_pre.weight", "norm_pre.bias"}
    lacking = (first - model.outside.keys() for model in (old, new))
    blocks = (*old.blocks, *new.blocks)
    every = {role for block in blocks for role in block}
    every |= {facts(role).bias_role for role in every if not facts(role).bias}
    return sorted(set().union(*lacking, *(every - block.keys() for block in blocks)))


def _through(stream: Stream, gain: Tensor) -> Tensor:
    """Return the gains ``[d']`` that are nearest to those of the ancestor's channels."""
    return (stream.write * gain * stream.read.T).sum(1)


@dataclass(frozen=True)
class _Norm:
    """Gain and bias of a norm of the ancestor, float64 ``[d]``."""

    gain: Tensor
    bias: Tensor

    @classmethod
    def of(cls, running: Running, pieces: Mapping[str, Piece], name: str) -> _Norm:
        return cls(*(exact(running.part(pieces[f"{name}.{x}"])) for x in ("weight", "bias")))


class _Group:
    """One block of the target, and the group of the ancestor's blocks that it is made of."""

    def __init__(
        self, sight: Sight, target: Anatomy, stream: Stream, group: Sequence[int], ridge: float
    ) -> None:
        self.sight, self.target, self.stream = sight, target, stream
        self.group, self.ridge = group, ridge
        running, blocks = sight.running, sight.running.anatomy.blocks
        self.pieces = blocks[group[0]]
        # Copies: the first of these blocks is about to be overwritten.
        self.parts = [
            {role: exact(running.part(piece)).clone() for role, piece in blocks[place].items()}
            for place in group
        ]
        self.norms = [
            {branch: _Norm.of(running, blocks[place], norm) for branch, (_, norm) in ENDS.items()}
            for place in group
        ]
        self.values: Values = {}
        self.keep = Keep(running.anatomy, target, group)
        self.runs: list[list[dict[str, Tensor]]] = []

    def look(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """Run the ancestor's blocks, and return its stream after them."""
        for number, x in enumerate(theirs):
            runs: list[dict[str, Tensor]] = []
            for place in self.group:
                runs.append(self.sight.look(number, place, x))
                x = runs[-1]["end"]
            self.runs.append(runs)
        return [runs[-1]["end"] for runs in self.runs]

    def fit(
        self, branch: str, norm: _Norm, ours: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Fit a branch.

        ``norm`` is the ancestor's norm before it, and ``ours`` what the target's makes of the
        stream before gain and bias, one a batch ``[..., d']``.

        Returns:
            What the norm after it makes of the stream, and gain and bias of the norm before it.
        """
        gain, shift = _through(self.stream, norm.gain), self.stream.write @ norm.bias
        write, after = ENDS[branch]
        matrices, offsets = self._reads(branch, norm, gain, ours)
        weight = f"{write}.weight"
        kept = self.keep.keep(weight, [parts[weight] for parts in self.parts])
        moments, hidden = Skip(), []
        for number, x in enumerate(ours):
            z = self._hidden(number, branch, x)
            flat = self.sight.flat
            moments.add(exact(flat(number, z)), flat(number, x), self._goal(number, branch))
            hidden.append(z)
        prior = self.stream.write @ kept
        matrix, gain, offset = moments.fit(prior, gain, ridge=self.ridge)
        for role, read in matrices.items():
            self._set(f"{role}.weight", read / gain)
            self._set(f"{role}.bias", offsets[role] - read @ (shift / gain))
        for role, piece in self.pieces.items():
            if piece.facts.branch == branch and piece.facts.module not in (write, *matrices):
                self._set(role, self.keep.keep(role, [parts[role] for parts in self.parts]))
        self._set(weight, matrix)
        self._set(f"{write}.bias", offset - shift)
        owner = self.sight.owner(self.group[-1], after)
        pairs = zip(ours, hidden, strict=True)
        sums = (gain * x + exact(z) @ matrix.T + offset for x, z in pairs)
        return [normalise(x, owner) for x in sums], gain, shift

    def _reads(
        self, branch: str, norm: _Norm, gain: Tensor, ours: Sequence[Tensor]
    ) -> tuple[Values, Values]:
        """Choose heads or neurons; return what reads for them the norm without gain and bias."""
        reads = [Moments() for _ in self.group]
        for number, x in enumerate(ours):
            flat = self.sight.flat(number, x)
            for run, moments in zip(self.runs[number], reads, strict=True):
                moments.add(flat, exact(self.sight.flat(number, run[f"{branch} reads"])))
        if not self.keep.all(branch):
            self._choose(branch, gain, ours)
        before = [norm, *(norms["mlp"] for norms in self.norms[:-1])]
        if branch == "mlp":
            before = [norms["attn"] for norms in self.norms]
        fits = [
            moments.fit(one.gain[:, None] * self.stream.read, ridge=self.ridge)
            for one, moments in zip(before, reads, strict=True)
        ]
        matrices: Values = {}
        offsets: Values = {}
        for weight, piece in self.pieces.items():
            if piece.facts.branch != branch or piece.axes[1:] != (("d",),):
                continue
            role, bias = piece.facts.module, piece.facts.bias_role
            pairs = list(zip(self.parts, fits, strict=True))
            matrices[role] = self.keep.keep(weight, [parts[weight] @ w for parts, (w, _) in pairs])
            offsets[role] = self.keep.keep(
                bias, [parts[weight] @ b + parts[bias] for parts, (_, b) in pairs]
            )
            self._play(weight, matrices[role])
            self._play(bias, offsets[role])
        return matrices, offsets

    def _choose(self, branch: str, gain: Tensor, ours: Sequence[Tensor]) -> None:
        """Choose the heads or neurons that explain most of what the skip connection misses."""
        missing = Moments()
        for number, x in enumerate(ours):
            inner: list[Tensor] = []
            for place, run in zip(self.group, self.runs[number], strict=True):
                z = run["attn.proj"]
                if branch == "mlp":
                    z = self.sight.hidden(number, place, branch, run["mlp reads"])
                inner.append(self.sight.flat(number, z))
            rest = self._goal(number, branch) - gain * self.sight.flat(number, x)
            missing.add(torch.cat(inner, 1), rest.to(inner[0]))
        gram, cross = missing.centred()
        self.keep.choose(branch, self.sight.running.check(gram), cross)

    def _goal(self, number: int, branch: str) -> Tensor:
        """Return P times the sum that the norm after the group's last branch is given."""
        given = self.runs[number][-1][f"{branch} sum"]
        return exact(self.sight.flat(number, given)) @ self.stream.write.T

    def _hidden(self, number: int, branch: str, x: Tensor) -> Tensor:
        """Return the kept hidden activations of the target's branch, which reads x."""
        like = self.runs[number][0]["end"]
        padded = torch.zeros_like(like)
        padded[..., : x.shape[-1]] = x.to(like)
        hidden = self.sight.hidden(number, self.group[0], branch, padded)
        return hidden[..., : len(self.keep.kept[branch])]

    def _play(self, role: str, value: Tensor) -> None:
        """Put values into the first channels of the ancestor's block."""
        part = self.sight.running.part(self.pieces[role])
        part.zero_()
        part[tuple(slice(n) for n in value.shape)] = value.to(part)

    def _set(self, role: str, value: Tensor) -> None:
        if role in self.target.blocks[0]:
            self.values[role] = value
