"""Which parameters ``keep=`` names: those that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightinit.anatomy.parameter import ParamSpec
from weightinit.errors import ProjectionError

__all__ = ["entries_of", "kept_by"]


def entries_of(keep: Iterable[str]) -> tuple[str, ...]:
    """Return the entries of ``keep=``; a single one may stand without a list."""
    if isinstance(keep, str):
        return (keep,)
    entries = tuple(keep) if isinstance(keep, Iterable) else (keep,)
    if not all(isinstance(entry, str) for entry in entries):
        raise ProjectionError(f"keep={keep!r}: pass a list of parameters' names or roles")
    return entries


def kept_by(
    keep: Iterable[str], specs: Sequence[ParamSpec], unexplained: Sequence[ParamSpec] = ()
) -> frozenset[str]:
    """Return the names of the parameters to keep; an entry that keeps nothing is an error."""
    kept: set[str] = set()
    for entry in keep:
        found = {
            spec.name
            for spec in (*specs, *unexplained)
            if any(
                name == entry or name.startswith(f"{entry}.")
                for name in (spec.name, spec.key, spec.role, *spec.parts)
            )
        }
        if not found:
            roles = sorted({spec.role for spec in specs})
            raise ProjectionError(
                f"keep={entry!r} names no parameter: use a parameter's name, the start of one, or "
                f"a role of {roles}"
            )
        kept |= found
    return frozenset(kept)
