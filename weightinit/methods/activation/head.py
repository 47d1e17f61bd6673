"""What reads the stream after the blocks, fitted to read a smaller one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.blocks import Values, absorbed
from weightinit.methods.activation.leastsquares import Moments
from weightinit.methods.activation.stream import Stream

__all__ = ["bare_norms", "fit_head", "readers"]


def readers(old: Anatomy, new: Anatomy) -> dict[str, Piece]:
    """Return the ancestor's matrices that read the stream after the blocks, in the target too."""
    return {
        role: piece
        for role, piece in old.outside.items()
        if piece.facts.place == "reads"
        and piece.axes[1:] == (("d",),)
        and not piece.spec.tied
        and role in new.outside
        and new.outside[role].size[0] == piece.size[0]
    }


@torch.no_grad()
def fit_head(
    running: Running,
    target: Anatomy,
    stream: Stream,
    theirs: Sequence[Tensor],
    ours: Sequence[Tensor],
    *,
    ridge: float,
) -> tuple[Values, Tensor]:
    """Return what reads the stream after the blocks, and the bias of the norm before it.

    What the ancestor's heads are given is regressed on what the target's are given, whatever pools
    the tokens in between, and their matrices are multiplied by the result. The norm's gain becomes
    1. The final norms of the ancestor's copy are overwritten. ``theirs`` and ``ours`` are the
    ancestor's and the target's stream after the blocks in the ancestor's terms, one a batch.
    """
    outside = running.anatomy.outside
    heads = readers(running.anatomy, target)
    features = _given(running, heads, theirs)
    gain = bare_norms(running)
    gain = torch.ones_like(stream.write[0]) if gain is None else gain
    moments = {role: Moments() for role in heads}
    for role, given in _given(running, heads, ours).items():
        for x, wanted in zip(given, features[role], strict=True):
            moments[role].add(x @ stream.write.T.to(x), wanted)
    values: Values = {}
    bare: list[tuple[Tensor, Tensor]] = []
    for role, piece in heads.items():
        bias = piece.facts.bias_role
        weight, offset = moments[role].fit(gain[:, None] * stream.read, ridge=ridge)
        matrix = exact(running.part(piece))
        values[role], missing = matrix @ weight, matrix @ offset
        if bias in outside.keys() & target.outside.keys():
            values[bias] = missing + exact(running.part(outside[bias]))
        else:
            bare.append((values[role], missing))
    shift = absorbed(bare, stream)
    for role, piece in heads.items():
        if (bias := piece.facts.bias_role) in values:
            values[bias] = values[bias] - values[role] @ shift
    return {role: running.check(value).cpu() for role, value in values.items()}, shift.cpu()


def bare_norms(running: Running) -> Tensor | None:
    """Take gain and bias from the final norms of the ancestor's copy; return the gain, float64."""
    gain = None
    for piece in running.anatomy.outside.values():
        if piece.facts.place == "final norm":
            part, scales = running.part(piece), piece.facts.gain
            gain = exact(part).clone() if scales else gain
            part.fill_(float(scales))
    return gain


def _given(
    running: Running, heads: Mapping[str, Piece], streams: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """Return what the heads are given after streams, one a batch."""
    found: dict[str, list[Tensor]] = {role: [] for role in heads}
    watched = {running.owner(piece): found[role].append for role, piece in heads.items()}
    for number, x in enumerate(streams if heads else ()):
        with watching(watched):
            running.resume(number, x)
    return found
