"""What reads the stream after post-norm blocks: pooling layers and heads of a narrower target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from weightinit.anatomy import Anatomy, Piece
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.blocks import Values
from weightinit.methods.activation.leastsquares import Moments, choose
from weightinit.methods.activation.stream import Stream

__all__ = ["fit_readers"]


@torch.no_grad()
def fit_readers(
    running: Running,
    target: Anatomy,
    stream: Stream,
    last: Sequence[tuple[Tensor, Tensor]],
    *,
    ridge: float,
) -> Values:
    """Return the values of what reads the stream of a narrower target.

    What a layer of the ancestor is given is regressed on what the target's is given. Of a layer
    between the stream and a head (BERT's pooler) those channels are kept that explain best all that
    it gives, and the head reads these. The layers of the ancestor's copy are overwritten. ``last``
    are the streams after the blocks, the ancestor's and the target's, one pair a batch
    ``([..., d], [..., d'])``.
    """
    outside, width = running.anatomy.outside, target.sizes["d"]
    layers = [
        piece
        for role, piece in outside.items()
        if piece.facts.place == "reads"
        and piece.axes[1:] == (("d",),)
        and role in target.outside
        and (piece.axes[0].stream or target.outside[role].size[0] == piece.size[0])
    ]
    # What lies between the stream and the heads comes before them.
    layers.sort(key=lambda piece: not piece.axes[0].stream)
    wanted = {
        piece.role: [_given(running, piece, number, x) for number, (x, _) in enumerate(last)]
        for piece in layers
    }
    padded = [pad(y, (0, x.shape[-1] - width)).to(x) for x, y in last]
    values: Values = {}
    prior = stream.read
    for piece in layers:
        moments, made = Moments(), Moments()
        weight = exact(running.part(piece))
        for number, (y, goal) in enumerate(zip(padded, wanted[piece.role], strict=True)):
            moments.add(_given(running, piece, number, y)[:, :width], goal)
            made.add(goal @ weight.T, goal @ weight.T)
        read, shift = moments.fit(prior, ridge=ridge)
        fitted = {piece.role: weight @ read, piece.facts.bias_role: weight @ shift}
        if (bias := outside.get(piece.facts.bias_role)) is not None:
            fitted[bias.role] += exact(running.part(bias))
        if piece.axes[0].stream:
            kept = choose(*made.centred(), width)[0]
            fitted = {role: value[kept] for role, value in fitted.items()}
            prior = torch.eye(len(weight)).to(weight)[:, kept]
        for role in fitted.keys() & outside.keys():
            values[role] = running.check(fitted[role]).cpu()
            part = running.part(outside[role])
            part.zero_()
            part[tuple(slice(n) for n in fitted[role].shape)] = fitted[role].to(part)
    return values


def _given(running: Running, piece: Piece, number: int, x: Tensor) -> Tensor:
    """Return what a layer is given where x is the stream after the blocks, float64 ``[N, d]``."""
    given: list[Tensor] = []
    with watching({running.owner(piece): given.append}):
        running.resume(number, x)
    return exact(given[0]).flatten(0, -2)
