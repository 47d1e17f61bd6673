"""Whether two models can share weights at all, whichever method moves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightinit.anatomy import Anatomy, Difference, facts, label_of
from weightinit.errors import ProjectionError
from weightinit.text import first, some

__all__ = ["check_pair"]

#: Beyond this ratio of two widths or depths, little of the ancestor is left.
LARGE_RATIO = 4.0
#: What a model computes besides its weights, by trait.
FUNCTION = {
    "act": "activation",
    "form": "norm placement",
    "norm": "norm",
    "rope": "rope",
    "pool": "pooling",
}


def check_pair(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return notes on a pair of models, or raise ProjectionError because they do not fit.

    They do not fit if they are of different families, if their blocks hold other parts, if the
    ancestor lacks some of its tensors, or if it has the target's shapes and other heads. What the
    target keeps needs nothing of the ancestor.
    """
    if ancestor.family != target.family:
        raise ProjectionError(
            f"a {ancestor.family} has no weights for a {target.family}: use an ancestor of the "
            "target's family"
        )
    if lost := list(_lost(ancestor, target)):
        raise ProjectionError(
            f"the ancestor lacks {first(lost)}, which it must have beside its other tensors: pass "
            "all of its state dict, or the module itself"
        )
    own, there = (_roles(blocks) for blocks in (ancestor.blocks, target.blocks))
    # What does nothing at a known value starts there.
    wanted = {x for x in _roles(_unkept(target)) if facts(x).neutral is None}
    extra, missing = some(own - there, 8), some(wanted - own, 8)
    if extra or missing:
        faults = [f"the ancestor has {extra}, which the target lacks"] if extra else []
        faults += [f"the target has {missing}, which the ancestor lacks"] if missing else []
        raise ProjectionError(
            f"the blocks are of other parts: {', and '.join(faults)}; use an ancestor of the same "
            "architecture"
        )
    _check_heads(ancestor, target)
    notes = []
    for trait, name in FUNCTION.items():
        old, new = getattr(ancestor.traits, trait), getattr(target.traits, trait)
        if old is not None and new is not None and old != new:
            notes.append(
                f"the {name} differs ({old} in the ancestor, {new} in the target): another function"
            )
    sizes = {**Difference(ancestor, target).widths, "depth": (ancestor.depth, target.depth)}
    for label, (old, new) in sizes.items():
        ratio = max(old, new) / min(old, new)
        if ratio > LARGE_RATIO and (label == "depth" or label_of(label).width):
            notes.append(
                f"{label} differs by a factor of {ratio:.3g}: an ancestor closer in size gives more"
            )
    return notes


def _lost(ancestor: Anatomy, target: Anatomy) -> Iterator[str]:
    """Yield the tensors that an ancestor cannot be without, by stack, block and role."""
    for role in sorted(set.intersection(*map(set, _unkept(target)))):
        lacking = [index for index, block in enumerate(ancestor.blocks) if role not in block]
        if len(lacking) < ancestor.depth:
            yield from (f"{role} of block {index}" for index in lacking)
    own = ancestor.outside
    for role, piece in target.outside.items():
        if piece.spec.name in target.kept:
            continue
        tied = role == "head.weight" and ancestor.word_table is not None
        cut = piece.facts.bias_role in own and role not in own and not tied
        # A model that lacks it may be another architecture; a bare file or state dict is cut off.
        essential = piece.facts.essential and ancestor.traits.library is None
        if cut or (essential and not own.keys() & {role, *piece.facts.substitutes}):
            yield role


def _check_heads(ancestor: Anatomy, target: Anatomy) -> None:
    """Raise ProjectionError if shapes agree and head counts do not."""
    (h, k), (new_h, new_k) = (
        (anatomy.sizes.get("h"), anatomy.sizes.get("k")) for anatomy in (ancestor, target)
    )
    if h and k and new_h and new_k and h != new_h and h * k == new_h * new_k:
        raise ProjectionError(
            f"the ancestor has {h} heads of {k} and the target {new_h} of {new_k}: the shapes are "
            f"the same and the function is another; build the target with {h} heads, or with heads "
            f"of {k} ({new_h} of them are embed_dim={new_h * k})"
        )


def _unkept(target: Anatomy) -> list[list[str]]:
    """Return the roles of each block that the target does not keep."""
    return [
        [role for role, piece in block.items() if piece.spec.name not in target.kept]
        for block in target.blocks
    ]


def _roles(blocks: Iterable[Iterable[str]]) -> set[str]:
    return {role for block in blocks for role in block if not facts(role).loose}
