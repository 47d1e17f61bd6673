"""What of an ancestor has no place in a target, and what central of a target is drawn afresh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from weightinit.anatomy import Anatomy, facts
from weightinit.recipes import Recipe
from weightinit.text import first

__all__ = ["assumed", "drawn", "left_out", "lost", "neutral", "squared", "taken_over"]


def lost(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return what the target has no place for although the ancestor's function depends on it."""
    roles = [role for role in _homeless(ancestor, target) if not facts(role).dispensable]
    roles += [words for role, words in _shortened(ancestor, target) if facts(role).kind == "token"]
    return _sentence(roles, ": what the ancestor does with it is lost")


def left_out(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return what else the target has no place for, such as another head."""
    roles = [role for role in _homeless(ancestor, target) if facts(role).dispensable]
    roles += [words for role, words in _shortened(ancestor, target) if facts(role).kind != "token"]
    notes = _sentence(roles, "")
    if spare := [spec.name for spec in ancestor.unexplained]:
        notes.append(f"left out of the ancestor, as no rule explains it: {first(spare)}")
    return notes


def assumed(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return what nothing tells of a text's positions and is taken to be as in the other model."""
    old, new = ancestor.traits.first_position, target.traits.first_position
    piece = target.position_table
    if piece is None or ancestor.position_table is None or not target.is_table(piece):
        return []
    unknown = "ancestor" if old is None else "target"
    if None not in (old, new) or not (old or new):
        return []
    return [
        f"nothing tells in which row the positions of the {unknown} begin, and they are taken to "
        f"begin in row {old or new} as the other's: pass a module, or a folder with config.json"
    ]


def squared(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return a note if positions are resampled from a grid that is only taken to be a square."""
    old, new = ancestor.traits, target.traits
    tables = ancestor.position_table, target.position_table
    if None in tables or not old.grid_assumed or old.grid in (None, new.grid):
        return []
    return [
        f"nothing tells the grid of the ancestor's positions, and it is taken for {old.grid}: pass "
        "the module, or weightinit.Ancestor.open(..., grid=(rows, columns)), if it is no square"
    ]


def neutral(ancestor: Anatomy, target: Anatomy) -> list[str]:
    """Return what of the target's blocks the ancestor lacks, and starts where it does nothing."""
    old, new = ({role for block in seen.blocks for role in block} for seen in (ancestor, target))
    roles = sorted(role for role in new - old if not facts(role).loose)
    if not roles or any(facts(role).neutral is None for role in roles):
        return []
    text = f"{', '.join(roles)}, which the ancestor lacks, start where they do nothing"
    if any(facts(role).kind == "table" for role in roles):
        text += "; attention within windows, if the target has it, is another function still"
    return [text]


def drawn(recipes: Iterable[Recipe], source: str = "ancestor") -> list[str]:
    """Return which embeddings, positions and layers of the stem are fresh, on which all rests."""
    fresh = (recipe.spec.role for recipe in recipes if recipe.action == "fresh")
    roles = list(dict.fromkeys(role for role in fresh if facts(role).central))
    if not roles:
        return []
    return [
        f"{', '.join(roles)} of the target cannot come from the {source} and is drawn afresh: the "
        f"blocks expect another input, so train it first, or take another {source}"
    ]


def taken_over(target: Anatomy, recipes: Sequence[Recipe]) -> list[str]:
    """Return a note if a classifier is inherited, whose classes may be others."""
    head = target.outside.get("head.weight")
    if head is None or target.is_table(head):
        return []
    action = next(recipe.action for recipe in recipes if recipe.spec == head.spec)
    if action != "written":
        return []
    return [
        f"the head is the ancestor's, as it has {head.size[0]} classes too: keep=['head'] keeps "
        "the target's own if they are others"
    ]


def _homeless(ancestor: Anatomy, target: Anatomy) -> Iterator[str]:
    """Yield the roles of the ancestor that the target lacks, and nothing of the target takes up."""
    old, new = (
        {role for pieces in (*seen.all_blocks, seen.outside) for role in pieces}
        for seen in (ancestor, target)
    )
    taken = {x for role in new - old for x in facts(role).substitutes}
    yield from sorted(old - new - taken)


def _shortened(ancestor: Anatomy, target: Anatomy) -> Iterator[tuple[str, str]]:
    """Yield the index tables of which the target has fewer rows, in words."""
    for role, piece in target.outside.items():
        old = ancestor.outside.get(role)
        if old is not None and target.is_table(piece) and piece.size[0] < old.size[0]:
            yield role, f"{old.size[0] - piece.size[0]} of {old.size[0]} rows of {role}"


def _sentence(roles: Sequence[str], effect: str) -> list[str]:
    return (
        [f"the target has no place for the ancestor's {', '.join(roles)}{effect}"] if roles else []
    )
