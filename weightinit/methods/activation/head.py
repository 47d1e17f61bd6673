"""What reads the stream after the blocks, fitted to read a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, first_tensor, watching
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
    for role, piece in heads.items():
        if running.bare(piece):
            _check(running, piece, features[role][0], theirs[0])
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
    bare = {role: piece for role, piece in heads.items() if running.bare(piece)}

    def note(role: str) -> Callable[[Tensor], None]:
        # A class token as it is given would hold the stream that it is a view of.
        return lambda x: found[role].append(x.clone())

    calls = {role: {running.owner(piece): note(role)} for role, piece in heads.items()}
    watched = {m: see for role in heads.keys() - bare.keys() for m, see in calls[role].items()}
    for number, x in enumerate(streams if heads else ()):
        if watched:
            with watching(watched):
                running.resume(number, x)
        for role, piece in bare.items():
            with _identity(running, piece), watching({}, calls[role]):
                running.resume(number, x)
    return found


@contextmanager
def _identity(running: Running, piece: Piece) -> Iterator[None]:
    """Let a bare matrix be the identity, so that what is given to it comes out."""
    parameters, name = running.owner(piece)._parameters, piece.spec.key.rpartition(".")[2]
    own = running.part(piece)
    kept, parameters[name] = parameters[name], nn.Parameter(torch.eye(own.shape[1]).to(own))
    try:
        yield
    finally:
        parameters[name] = kept


def _check(running: Running, piece: Piece, given: Tensor, stream: Tensor) -> None:
    """Raise ProjectionError if the ancestor's output is not the product with a bare matrix."""
    out = first_tensor((running.resume(0, stream),))
    wanted = given @ running.part(piece).T
    if out.shape != wanted.shape or not torch.allclose(out, wanted, 1e-3, 1e-3):
        raise ProjectionError(
            f"the ancestor's output is not what {piece.spec.name} is multiplied with: use "
            "method='subcloning'"
        )
