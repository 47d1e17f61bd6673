"""One matrix for the residual stream: its principal directions, as norms see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from weightinit.errors import ProjectionError

__all__ = ["SCALES", "Entry", "Stream", "centres", "groups_of", "normalise", "principal"]

#: From each matrix that writes into the stream to the layer scale after it.
SCALES = {"attn.proj": "ls1", "mlp.fc2": "ls2"}


def centres(norm: nn.Module) -> bool:
    """Return whether a norm subtracts the mean of the channels; raise if it is unknown."""
    if isinstance(norm, nn.LayerNorm) or "LayerNorm" in type(norm).__name__:
        return True
    if "rms" in type(norm).__name__.lower():
        return False
    raise ProjectionError(
        f"the stream is normalised by a {type(norm).__name__}, and only LayerNorm and RMSNorm are "
        "understood: use method='weight_selection'"
    )


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Return what a norm makes of the stream ``[..., d]`` before its gain and bias."""
    if centres(norm):
        x = x - x.mean(-1, keepdim=True)
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0.0)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@dataclass(frozen=True)
class Stream:
    """How the residual stream of a target lies in the ancestor's.

    The rows of P are orthogonal; those of a centring norm map the ones direction to the ones
    direction, and all that is orthogonal to it to what is orthogonal to it again: the mean of the
    channels is taken off on both sides alike. They have length (d'/d)^1/2. The variance over d'
    channels is then |P x|^2 / d' = |V^T x|^2 / d, the ancestor's but for what is lost, so that the
    norm's eps weighs as much. Norms commute with P: norm(P x) = P norm(V V^T x).
    """

    write: Tensor  # P, float64 [d', d], which multiplies what is written into the stream
    read: Tensor  # P^+ = P^T d / d', float64 [d, d'], which multiplies what reads the stream

    @classmethod
    def of(cls, write: Tensor) -> Stream:
        """Return the stream of a matrix P."""
        return cls(write, write.T * (write.shape[1] / write.shape[0]))


def principal(moment: Tensor, size: int, *, centred: bool) -> Stream:
    """Return the stream of the directions that hold most of what norms see.

    Of all bases of their span, the target's channels take the one that is nearest to channels of
    the ancestor: at the same width P is the identity. ``moment`` are second moments of the
    normalised stream, float64 ``[d, d]``, and ``centred`` says whether norms subtract the mean.
    """
    width = len(moment)
    if size == width:
        return Stream.of(torch.eye(width, dtype=moment.dtype, device=moment.device))
    inside, outside = _free(width, moment, centred), _free(size, moment, centred)
    _, vectors = torch.linalg.eigh(inside.T @ moment @ inside)
    kept = inside @ vectors[:, len(vectors) - outside.shape[1] :]
    nearest = kept.square().sum(1).sort(descending=True, stable=True).indices[:size].sort().values
    left, _, right = torch.linalg.svd(outside.T @ kept[nearest])
    write = outside @ left @ right @ kept.T
    if centred:
        write = write + 1 / (size * width) ** 0.5
    return Stream.of(write * (size / width) ** 0.5)


@dataclass(frozen=True)
class Entry:
    """A norm of the whole stream before the blocks (CLIP's), which follows P nearly.

    The ancestor's is g n(x) + b. The target's is given P g n(x) up to each token's size, normalises
    it, and has one gain for all channels: the mean size. Only the sizes of tokens differ then.
    """

    write: Tensor  # P g (I - 1 1^T / d), [d', d], which multiplies what is written before the norm
    gain: Tensor  # [d']
    shift: Tensor  # P b, [d']
    centred: bool

    @classmethod
    def of(
        cls, stream: Stream, gain: Tensor, bias: Tensor, streams: Sequence[Tensor], *, centred: bool
    ) -> Entry:
        """Return the norm for the ancestor's streams after it, one a batch ``[..., d]``."""
        eye = torch.eye(len(gain), dtype=gain.dtype, device=gain.device)
        write = stream.write * gain @ (eye - 1 / len(gain) if centred else eye)
        ones, shift = torch.ones_like(stream.write[:, 0]), stream.write @ bias
        bare = cls(write, ones, shift, centred)
        sizes = [bare._spread(x.to(gain), stream).flatten() for x in streams]
        return cls(write, ones * torch.cat(sizes).mean(), shift, centred)

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        """Return the target's stream ``[..., d']`` where the ancestor's is x ``[..., d]``."""
        y = self._centred(x, stream)
        return self.gain * y / self._spread(x, stream) + self.shift

    def _centred(self, x: Tensor, stream: Stream) -> Tensor:
        y = x @ stream.write.T - self.shift
        return y - y.mean(-1, keepdim=True) if self.centred else y

    def _spread(self, x: Tensor, stream: Stream) -> Tensor:
        return self._centred(x, stream).square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def _free(size: int, like: Tensor, centred: bool) -> Tensor:
    """Return an orthonormal basis of the vectors of mean zero, or of all."""
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    if not centred:
        return eye
    ones = torch.ones_like(eye[:, :1])
    return torch.linalg.qr(torch.cat([ones, eye[:, 1:]], 1))[0][:, 1:]


def groups_of(similarity: Tensor, number: int) -> list[list[int]]:
    """Return which neighbouring blocks become one: those between which the stream changes least.

    All blocks of a group are computed from the stream at its beginning; the sum of how far the
    stream has moved by then is minimised. No group has more than old / new blocks, rounded up,
    because its heads and neurons share the room of one. ``similarity`` is the mean cosine of the
    streams that two blocks are given, ``[old, old]``.

    Examples:
        >>> groups_of(torch.tensor([[1, 0.9, 0.1], [0.9, 1, 0.5], [0.1, 0.5, 1]]), 2)
        [[0, 1], [2]]
    """
    old = len(similarity)
    most = -(-old // number)
    moved = 1.0 - similarity.double()
    best: list[dict[int, tuple[float, Sequence[int]]]] = [{0: (0.0, ())}]
    for _ in range(number):
        reached: dict[int, tuple[float, Sequence[int]]] = {}
        for start, (cost, cuts) in best[-1].items():
            for end in range(start + 1, min(start + most, old) + 1):
                total = cost + float(moved[start, start:end].sum())
                if end not in reached or total < reached[end][0] - 1e-12:
                    reached[end] = total, (*cuts, end)
        best.append(reached)
    cuts = [0, *best[-1][old][1]]
    return [list(range(a, b)) for a, b in pairwise(cuts)]
