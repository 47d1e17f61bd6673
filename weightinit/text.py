"""Lists in messages and tables, cut short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["first", "some", "spans"]


def first(names: Sequence[str], limit: int = 8) -> str:
    """Return the first names, cut and escaped for a terminal, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(_plain, names[:limit])) + more


def _plain(name: str) -> str:
    cut = f"{name[:200]}..." if len(name) > 200 else name
    return cut if cut.isprintable() else ascii(cut)


def some(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names in alphabetical order as text, and how many more there are."""
    return first(sorted(names), limit)


def spans(numbers: Iterable[int]) -> str:
    """Return numbers as ranges.

    Examples:
        >>> spans([0, 1, 2, 5, 7, 8])
        '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
