"""Whether a network passes a signal, told from its form and its values without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from weightinit.anatomy.core import Anatomy
from weightinit.anatomy.parameter import Piece
from weightinit.anatomy.roles import scale_of

__all__ = ["silent"]


def silent(anatomy: Anatomy, values: Mapping[str, Tensor]) -> list[str]:
    """Return the names of parameters that would let nothing of the input through.

    Such are embeddings and stems of zeros, norms of the whole stream whose gains are zeros, and, in
    a model whose class token alone is read, attention that writes nothing in any block. A head of
    zeros is none of them: training starts it. ``values`` are those to be written, by name; what is
    missing is taken to pass a signal.
    """

    def zero(piece: Piece | None) -> bool:
        value = None if piece is None else values.get(piece.spec.name)
        if piece is None or value is None:
            return False
        part = anatomy.split(piece.spec, value)[piece.role]
        return not (part[:8].any() or part.any())  # the first rows tell nearly always

    found = {piece.spec.name for piece in _path(anatomy) if zero(piece)}
    if anatomy.traits.pool == "token" and anatomy.blocks:
        ends = [_attention(block, zero) for block in anatomy.all_blocks]
        found |= set(filter(None, ends)) if all(ends) else set()
    return sorted(found)


def _path(anatomy: Anatomy) -> Iterator[Piece]:
    """Yield the parameters through which all of the signal goes."""
    for piece in anatomy.outside.values():
        fact = piece.facts
        through = fact.essential and fact.kind not in ("position", "token")
        if through or (fact.place and fact.kind == "norm" and fact.gain):
            yield piece
    if anatomy.traits.form == "post_norm":
        for block in anatomy.blocks:
            yield from (p for p in block.values() if p.facts.branch_norm and p.facts.gain)


def _attention(block: Mapping[str, Piece], zero: Callable[[Piece | None], bool]) -> str | None:
    """Return what makes the attention of a block write nothing; None if it writes."""
    for role, piece in block.items():
        if piece.facts.serves == "attn" and (piece.ends or piece.facts.letter == "v"):
            for part in (piece, scale_of(role, block)):
                if part is not None and not part.facts.bias and zero(part):
                    return part.spec.name
    return None
