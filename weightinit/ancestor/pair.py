"""Where the parameters of a model are stored in its files: by name, or by role."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from weightinit.anatomy import Anatomy, anatomy
from weightinit.anatomy.match import families_of, match, prefix_of
from weightinit.anatomy.source import shorten, strip
from weightinit.ancestor.weights import Weights
from weightinit.errors import AnatomyError
from weightinit.text import some

__all__ = ["blocks_among", "fault", "pair"]


def blocks_among(names: Iterable[str], like: Iterable[str]) -> list[str]:
    """Return the names that lie in blocks of the family that the names ``like`` are of."""
    families = families_of(map(strip, like))
    family = families.get(prefix_of(families))
    places = _keys(names).items() if family else ()
    matches = [(name, match(family, key)) for key, name in places if family]
    return [name for name, place in matches if place is not None and place.block is not None]


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Return each name by what it is without wrappers and prefix."""
    keys = {strip(name): name for name in names}
    prefix = prefix_of(families_of(keys))
    return {shorten(key, prefix): name for key, name in keys.items()}


def fault(missing: list[str], differing: list[str], stray: list[str]) -> str:
    """Return what is wrong with the weights of a model, in words."""
    parts = [
        f"{verb} {some((name[:80] for name in names), 8)}"
        for verb, names in (("lack", missing), ("differ in", differing), ("have beside", stray))
        if names
    ]
    return f"the weights {', and '.join(parts)}"


def pair(
    expected: Anatomy, module: nn.Module, weights: Weights, library: str
) -> tuple[dict[str, str] | None, str, list[str]]:
    """Return the name in the files of each parameter of a model, or None and what is wrong.

    What the files hold besides, outside the blocks, is the last of the three.
    """
    keys = _keys(weights.shapes)
    names, missing, differing = {}, [], []
    used: set[str] = set()
    for spec in expected.specs:
        aliases = (spec.name, *spec.tied)
        name = next((n for n in aliases if n in weights.shapes), None) or keys.get(spec.key)
        used.update(aliases, [name or spec.name])
        if name is None:
            missing.append(spec.name)
        elif weights.shapes[name] != spec.shape:
            differing.append(f"{name} {list(weights.shapes[name])} for {list(spec.shape)}")
        else:
            names[spec.name] = name
    buffers = {expected.key(name) for name, _ in module.named_buffers()}
    extra = [
        name
        for name in weights.shapes.keys() - used
        if expected.key(name) not in buffers and weights.floating(name)
    ]
    # Files may keep the head of the pretraining; a block too many is another model.
    stray = blocks_among(extra, [spec.key for spec in expected.specs])
    if not (missing or differing or stray):
        return names, "", sorted(extra)
    # transformers 5 renames the tensors that 4 and the files know by other names.
    renamed = _by_role(expected, weights) if library == "transformers" else None
    return renamed, fault(missing, differing, extra if library == "timm" else stray), []


def _by_role(expected: Anatomy, weights: Weights) -> dict[str, str] | None:
    try:
        heads = {label: size for label, size in expected.sizes.items() if label == "h"}
        stored = anatomy(weights.meta(), sizes=heads, unexplained="outside")
    except AnatomyError:
        return None
    places = {(s.stack, s.block, s.role, s.pattern, s.parts, s.shape): s.name for s in stored.specs}
    names = {
        s.name: places.pop((s.stack, s.block, s.role, s.pattern, s.parts, s.shape), "")
        for s in expected.specs
    }
    too_many = any(block is not None for _, block, *_ in places)
    return None if too_many or not all(names.values()) else names
