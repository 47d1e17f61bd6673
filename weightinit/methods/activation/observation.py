"""What an ancestor does on the calibration batches, and the tokens that a fit looks at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.stream import normalise

__all__ = ["Observation", "picks"]

#: Tokens that regressions look at, and that the stream's directions are found by, per channel.
TOKENS, LOOKS = 32, 16


class Observation:
    """What the ancestor does on the calibration batches.

    Up to ``most`` neighbouring blocks are compared, on as many batches as it takes.

    Attributes:
        moment: second moments of the normalised stream, float64 ``[d, d]``.
        similarity: mean cosine of the streams that two blocks are given, float64.
        largest: the largest value of the stream anywhere.
        least: the least variance of a token that a norm is given, in units of the norm's eps.
        streams: the stream before the blocks, one a batch.
        calls: the blocks as functions of the stream, for each batch.
    """

    def __init__(self, running: Running, *, most: int) -> None:
        self.most, self.seen, self.largest, self.least = most, 0, 0.0, math.inf
        self.moment = torch.zeros((), dtype=torch.float64)
        self.similarity = torch.eye(running.anatomy.depth, dtype=torch.float64)
        self.recent: list[Tensor] = []
        norms = {
            running.owner(block[f"{norm}.weight"]): index if norm == "norm1" else None
            for index, block in enumerate(running.anatomy.blocks)
            for norm in ("norm1", "norm2")
        }
        for piece in running.anatomy.outside.values():
            if piece.facts.place == "final norm":
                norms[running.owner(piece)] = None
        watched: dict[nn.Module, Callable[[Tensor], None]] = {
            norm: partial(self._see, norm, index) for norm, index in norms.items()
        }
        width, number = running.anatomy.sizes["d"], len(running.calls)
        self.streams, self.calls = [], []
        tokens, looks = 0, number
        for index in range(number):
            # Some of the batches, evenly spread, are enough.
            look = not index or index * looks // number > (index - 1) * looks // number
            with watching(watched if look else {}):
                stream, calls = running.trace(index, whole=look)
            self.streams.append(stream)
            self.calls.append(calls)
            tokens += stream[..., 0].numel()
            looks = looks if index else min(number, math.ceil(LOOKS * width / tokens))
        if tokens < width:
            raise ProjectionError(
                f"calibration= holds {tokens} tokens, and the stream has {width} "
                "channels: pass more batches, several times as many tokens as channels"
            )
        self.recent.clear()
        self.similarity += torch.triu(self.similarity, 1) * (1 / self.seen - 1)

    def _see(self, norm: nn.Module, index: int | None, x: Tensor) -> None:
        """Take in what a norm is given; ``index`` is that of the block that it begins."""
        z = normalise(x, norm).flatten(0, -2)
        self.largest = max(self.largest, float(x.abs().max()))
        # What is left of the variance 1 tells how much the eps is beside the token's own.
        kept = float(z.square().mean(-1).min())
        self.least = min(self.least, kept / max(1.0 - kept, 1e-9))
        moment = exact(z.T @ z)
        self.moment = self.moment.to(moment) + moment
        if index is None:
            return
        self.seen += len(z) * (index == 0)
        self.recent = [z, *self.recent[: self.most - 1]] if index else [z]
        for back, other in enumerate(self.recent[1:], 1):
            self.similarity[index - back, index] += float((z * other).sum()) / z.shape[-1]


def picks(streams: Sequence[Tensor]) -> list[Tensor]:
    """Return the tokens that regressions look at, of each batch's stream ``[..., d]``.

    They are 32 times as many as channels, the first of every sample among them and the others
    drawn, or all if there are fewer.
    """
    counts = [x[..., 0].numel() for x in streams]
    share = TOKENS * streams[0].shape[-1] / sum(counts)
    generator = torch.Generator().manual_seed(0)
    chosen: list[Tensor] = []
    for x, count in zip(streams, counts, strict=True):
        length = x.shape[-2]
        order = torch.rand(count // length, length, generator=generator)
        order[:, 0] = 0.0
        few = order.flatten().sort(stable=True).indices[: math.ceil(count * share)]
        chosen.append(few.sort().values.to(x.device))
    return chosen
