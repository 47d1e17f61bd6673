"""Where the parameters of a model are stored in its files: by name, or by role."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from weightinit.anatomy import Anatomy, anatomy
from weightinit.anatomy.match import family_of, match
from weightinit.anatomy.source import strip
from weightinit.ancestor.weights import Weights
from weightinit.errors import AnatomyError
from weightinit.files.checks import some

__all__ = ["blocks_among", "fault", "pair"]


def blocks_among(names: Iterable[str], like: Iterable[str]) -> list[str]:
    """Return the names that lie in blocks of the family that the names ``like`` are of."""
    family = family_of(map(strip, like))
    found = [(name, match(family, strip(name)) if family else None) for name in names]
    return [name for name, place in found if place is not None and place.block is not None]


def fault(missing: list[str], differing: list[str], stray: list[str]) -> str:
    """Return what is wrong with the weights of a model, in words."""
    parts = [
        f"{verb} {some((name[:80] for name in names), 8)}"
        for verb, names in (("lack", missing), ("differ in", differing), ("have beside", stray))
        if names
    ]
    return f"the weights {', and '.join(parts)}"


def pair(
    seen: Anatomy, module: nn.Module, weights: Weights, library: str
) -> tuple[dict[str, str] | None, str]:
    """Return the name in the files of each parameter of a model, or None and what is wrong.

    The model is on the meta device; its tensors that ``weights`` lacks, has in another shape or has
    besides are what may be wrong.
    """
    found, text = _by_name(seen, module, weights, library)
    if found is None and library == "transformers":
        # transformers 5 renames the tensors that 4 and the files know by other names.
        found = _by_role(seen, weights)
    return found, "" if found else text


def _by_name(
    seen: Anatomy, module: nn.Module, weights: Weights, library: str
) -> tuple[dict[str, str] | None, str]:
    keys = {strip(name): name for name in weights.shapes}
    found, missing, differing = {}, [], []
    used: set[str] = set()
    for spec in seen.specs:
        own = (spec.name, *spec.tied)
        name = next((n for n in own if n in weights.shapes), None) or keys.get(spec.key)
        used.update(own, [name or spec.name])
        if name is None:
            missing.append(spec.name)
        elif weights.shapes[name] != spec.shape:
            differing.append(f"{name} {list(weights.shapes[name])} for {list(spec.shape)}")
        else:
            found[spec.name] = name
    buffers = {strip(name) for name, _ in module.named_buffers()}
    stray = [
        name
        for name in weights.shapes.keys() - used
        if strip(name) not in buffers and weights.floating(name)
    ]
    if library == "transformers":
        # Its files often keep the head of the pretraining; a block too many is another model.
        stray = blocks_among(stray, [spec.key for spec in seen.specs])
    if missing or differing or stray:
        return None, fault(missing, differing, stray)
    return found, ""


def _by_role(seen: Anatomy, weights: Weights) -> dict[str, str] | None:
    try:
        heads = {label: size for label, size in seen.sizes.items() if label == "h"}
        stored = anatomy(weights.meta(), sizes=heads)
    except AnatomyError:
        return None
    places = {(s.stack, s.block, s.role, s.pattern, s.parts, s.shape): s.name for s in stored.specs}
    found = {
        s.name: places.pop((s.stack, s.block, s.role, s.pattern, s.parts, s.shape), "")
        for s in seen.specs
    }
    too_many = any(block is not None for _, block, *_ in places)
    return None if too_many or not all(found.values()) else found
