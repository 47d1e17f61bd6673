"""What a post-norm ancestor does on the calibration batches, as a whole and block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.stream import normalise

__all__ = ["ENDS", "Sight"]

#: Of each branch: the matrix that writes into the stream, and the norm after it.
ENDS = {"attn": ("attn.proj", "norm1"), "mlp": ("mlp.fc2", "norm2")}


class _EnoughError(Exception):
    """A forward pass has come as far as it is needed."""


class Sight:
    """What the ancestor does on every batch. Tokens of padding are left out of all sums.

    Attributes:
        moment: second moments of the normalised stream, before gain and bias, float64 ``[d, d]``.
        similarity: mean cosine of the normalised streams that two blocks are given, float64.
        sums: what the norm before the blocks is given, one a batch ``[..., d]``.
        streams: the stream before the blocks, one a batch ``[..., d]``.
    """

    def __init__(self, running: Running) -> None:
        self.running, old = running, running.anatomy
        self.sums: list[Tensor] = []
        self.streams: list[Tensor] = []
        self._calls: list[list[Callable[[Tensor], Tensor]]] = []
        self._masks = [_mask(keywords) for _, keywords in running.calls]
        pieces = [old.outside["norm_pre.weight"]]
        pieces += [block[f"{norm}.weight"] for block in old.blocks for _, norm in ENDS.values()]
        norms = [running.owner(piece) for piece in pieces]
        moment = similarity = torch.zeros((), dtype=torch.float64)
        tokens = 0
        for number in range(len(running.calls)):
            given: list[Tensor] = []
            with watching(dict.fromkeys(norms, given.append)):
                stream, calls = running.trace(number)
            flat = (exact(self.flat(number, x)) for x in given)
            seen = [normalise(x, norm) for x, norm in zip(flat, norms, strict=True)]
            for x in seen:
                moment = moment.to(x) + x.T @ x
            begins = torch.stack([x.flatten() for x in seen[:-1:2]])
            similarity = similarity.to(begins) + begins @ begins.T
            tokens += len(seen[0])
            self.sums.append(given[0])
            self.streams.append(stream)
            self._calls.append(calls)
        if tokens < len(moment):
            raise ProjectionError(
                f"calibration= holds {tokens} tokens, and the stream has {len(moment)} channels: "
                "pass more batches, several times as many tokens as channels"
            )
        self.moment = running.check(moment)
        self.similarity = similarity / (tokens * len(moment))

    def flat(self, number: int, x: Tensor) -> Tensor:
        """Return the tokens of a batch that are no padding, ``[N, ...]``."""
        mask = self._masks[number]
        return x.flatten(0, -2) if mask is None or mask.shape != x.shape[:-1] else x[mask]

    def owner(self, block: int, role: str) -> nn.Module:
        """Return the module of a weight of a block."""
        return self.running.owner(self.running.anatomy.blocks[block][f"{role}.weight"])

    def look(self, number: int, block: int, x: Tensor) -> dict[str, Tensor]:
        """Run a block of the ancestor on a batch, and return what is seen of it.

        That is, by branch: what it ``"reads"``, and the ``"sum"`` that the norm after it is given;
        also what ``"attn.proj"`` is given, and the stream at the ``"end"``.
        """
        seen = {"attn reads": x}

        def note(name: str) -> Callable[[Tensor], None]:
            return partial(seen.__setitem__, name)

        inputs = {self.owner(block, norm): note(f"{b} sum") for b, (_, norm) in ENDS.items()}
        inputs[self.owner(block, "attn.proj")] = note("attn.proj")
        with watching(inputs, {self.owner(block, "norm1"): note("mlp reads")}):
            seen["end"] = self._calls[number][block](x)
        if seen.keys() < {"attn sum", "mlp sum", "mlp reads", "attn.proj"}:
            raise ProjectionError(
                f"block {block} of the ancestor does not call its norms and its matrices one by "
                "one: pass it without fused blocks, or use method='subcloning'"
            )
        return seen

    def hidden(self, number: int, block: int, branch: str, x: Tensor) -> Tensor:
        """Return what the last matrix of a branch is given where the branch reads x."""
        given: list[Tensor] = []

        def enough(z: Tensor) -> None:
            given.append(z)
            raise _EnoughError

        watched = {self.owner(block, ENDS[branch][0]): enough}
        hook = self.owner(block, "norm1").register_forward_hook(lambda *_: x)
        with suppress(_EnoughError), hook, watching(watched):
            self._calls[number][block](x)
        return given[0]


def _mask(keywords: Mapping[str, object]) -> Tensor | None:
    """Return which tokens of a batch are no padding, if the call tells."""
    mask = keywords.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
