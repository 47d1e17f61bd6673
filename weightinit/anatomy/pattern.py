"""Axis patterns: what every axis of a parameter means.

A pattern names the axes of a stored tensor, outermost first, as einops does: ``"d (h k)"`` is a
matrix whose rows are the residual stream and whose columns are heads by head dim. An integer is an
axis of that length; ``+`` joins what a fused axis stores one after the other: the qkv of a timm
block is ``"(3 h k) d"`` with three parts, a parallel block's ``"(m + h k + h k + h k) d"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from weightinit.anatomy.labels import LOCAL_LABELS
from weightinit.errors import AnatomyError

__all__ = ["Factors", "Pattern", "parse", "solve"]

Factors = tuple[str, ...]  # the factors of a fused axis, outermost first: labels and integers
_TOKEN = re.compile(r"\(([^()]*)\)|([A-Za-z]\w*|\d+)|\S")
_FACTOR = re.compile(r"[A-Za-z]\w*|[1-9]\d*")


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: each axis is a sum of groups, and each group a product of factors."""

    text: str
    axes: tuple[tuple[Factors, ...], ...]

    @property
    def labels(self) -> frozenset[str]:
        """The labels that occur."""
        return frozenset(f for axis in self.axes for g in axis for f in g if not f.isdigit())

    def terms(self, parts: int = 1) -> tuple[int, tuple[tuple[Factors, ...], ...]]:
        """Return the fused axis (-1: none) and the axes of each part, one group an axis."""
        for at, axis in enumerate(self.axes):
            groups = axis
            if len(axis) == 1 and parts > 1 and axis[0][:1] == (str(parts),):
                groups = (axis[0][1:],) * parts
            if len(groups) > 1:
                rest = [tuple(axis) for axis in self.axes]
                return at, tuple(
                    tuple(a[0] for a in (*rest[:at], (group,), *rest[at + 1 :])) for group in groups
                )
        return -1, (tuple(axis[0] for axis in self.axes),)


@cache
def parse(pattern: str) -> Pattern:
    """Parse an axis pattern; AnatomyError if it is malformed, or adds up along several axes."""
    axes: list[tuple[Factors, ...]] = []
    for token in _TOKEN.finditer(pattern):
        group, factor = token.groups()
        groups = (group if group is not None else factor or "").split("+")
        if not all(g.split() and all(map(_FACTOR.fullmatch, g.split())) for g in groups):
            raise AnatomyError(
                f"pattern {pattern!r} is malformed at {token.group()!r}: write labels, positive "
                'integers and flat groups, as in "(3 h k) d" or "d (h k + m)"'
            )
        axes.append(tuple(tuple(g.split()) for g in groups))
    if sum(len(axis) > 1 for axis in axes) > 1:
        raise AnatomyError(f"pattern {pattern!r} adds up along two axes: '+' may stand in one only")
    return Pattern(pattern, tuple(axes))


def solve(pattern: str, shape: Sequence[int], sizes: Mapping[str, int]) -> dict[str, int] | None:
    """Return the sizes of further labels that a shape determines, or None if they contradict it.

    For ``"(3 h k) d"`` of shape ``(576, 192)`` with 3 heads they are ``{"k": 64, "d": 192}``. Some
    labels may stay open.
    """
    axes = parse(pattern).axes
    if len(axes) != len(shape):
        return None
    solved: dict[str, int] = {}
    pending = list(zip(axes, shape, strict=True))
    while pending:
        later = []
        for axis, length in pending:
            step = _solve_axis(axis, length, {**sizes, **solved} if solved else sizes)
            if step is None:
                return None
            if step is _OPEN:
                later.append((axis, length))
            else:
                solved.update(step)
        if len(later) == len(pending):
            break
        pending = later
    return solved


_OPEN: dict[str, int] = {"": 0}


def _solve_axis(
    axis: tuple[Factors, ...], length: int, sizes: Mapping[str, int]
) -> dict[str, int] | None:
    """Solve one axis: length = sum of products, linear in the one label that may be unknown."""
    known, factor, unknown = 0, 0, ""
    for group in axis:
        product, opens = 1, []
        for f in group:
            if f.isdigit():
                product *= int(f)
            elif f in sizes:
                product *= sizes[f]
            else:
                opens.append(f)
        if not opens:
            known += product
        elif len(opens) == 1 and unknown in ("", opens[0]):
            unknown, factor = opens[0], factor + product
        else:
            return _OPEN
    if not unknown:
        return {} if known == length else None
    size, rest = divmod(length - known, factor)
    empty = length == 0 and unknown in LOCAL_LABELS  # as of registers where there are none
    return {unknown: size} if (size > 0 or empty) and rest == 0 else None
