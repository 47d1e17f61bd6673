"""Whether two models can share weights at all, whichever method moves them."""

from __future__ import annotations

from collections.abc import Iterable

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError

__all__ = ["LARGE_RATIO", "check_pair"]

#: Beyond this ratio of two widths or depths, little of the ancestor is left.
LARGE_RATIO = 4.0
#: Roles whose absence or presence leaves the function of a block alone or is made up for.
LOOSE = ("bias", "ls1", "ls2", "gamma")
#: What a block computes besides its weights.
FUNCTION = {"act": "activation", "post_norm": "norm placement", "norm": "norm", "rope": "rope"}


def check_pair(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return what to tell the user of a pair of models, or raise because they do not fit.

    Args:
        ancestor: anatomy of the source of weights.
        target: anatomy of the model to fill.

    Raises:
        ProjectionError: if they are of different families, or their blocks hold other parts.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=96))
        ...     for n in (6, 1))
        >>> check_pair(old, new)
        ['depth differs by a factor of 6: an ancestor closer in size gives more']
    """
    if ancestor.family != target.family:
        raise ProjectionError(
            f"a {ancestor.family} has no weights for a {target.family}: use an ancestor of the "
            "target's family"
        )
    mine, theirs = (_roles(seen) for seen in (target, ancestor))
    if mine != theirs:
        raise ProjectionError(
            f"the blocks are of other parts: the ancestor has {_some(theirs - mine)} that the "
            f"target lacks, and lacks its {_some(mine - theirs)}; use an ancestor of the same "
            "architecture"
        )
    notes = []
    for trait, name in FUNCTION.items():
        old, new = ancestor.traits.get(trait), target.traits.get(trait)
        if old is not None and new is not None and old != new:
            notes.append(
                f"the {name} differs ({old} in the ancestor, {new} in the target): another function"
            )
    sizes = {label: (ancestor.sizes[label], target.sizes[label]) for label in ("d", "m")
             if label in ancestor.sizes and label in target.sizes}  # fmt: skip
    for label, (old, new) in {**sizes, "depth": (ancestor.depth, target.depth)}.items():
        ratio = max(old, new) / min(old, new)
        if ratio > LARGE_RATIO:
            notes.append(
                f"{label} differs by a factor of {ratio:.3g}: an ancestor closer in size gives more"
            )
    return notes


def _roles(anatomy: Anatomy) -> set[str]:
    return {
        role
        for block in anatomy.blocks
        for role in block
        if not role.endswith(".bias") and role not in LOOSE
    }


def _some(roles: Iterable[str]) -> str:
    return ", ".join(sorted(roles)) or "nothing"
