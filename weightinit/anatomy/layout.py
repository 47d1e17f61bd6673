"""Between stored tensors and their canonical parts: the only place that reshapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from weightinit.anatomy.labels import LOCAL_LABELS, Labels
from weightinit.anatomy.pattern import Factors, parse, solve
from weightinit.errors import AnatomyError

__all__ = ["Layout", "View", "layout"]


@dataclass(frozen=True)
class View:
    """How one part of a stored tensor is seen in canonical orientation."""

    start: int
    length: int
    factors: tuple[int, ...]  # of the part as stored
    order: tuple[int, ...]  # of the factors in canonical orientation
    shape: tuple[int, ...]  # canonical
    axes: tuple[Labels, ...]  # of the canonical axes
    plain: bool  # the part needs no reshaping
    turned: bool  # the part needs a transposition and nothing else


@dataclass(frozen=True)
class Layout:
    """The way between a stored tensor and its canonical parts, solved for one shape."""

    shape: tuple[int, ...]
    fused: int  # the axis along which the parts lie, or -1
    parts: tuple[View, ...]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the canonical parts as writable views of ``tensor``."""
        if tensor.shape != self.shape:
            raise AnatomyError(
                f"a tensor of shape {tuple(tensor.shape)} was given where {self.shape} was "
                "announced: pass the tensor of the parameter that was asked for"
            )
        return tuple(self._view(tensor, part) for part in self.parts)

    def _view(self, tensor: Tensor, part: View) -> Tensor:
        if self.fused >= 0:
            tensor = tensor.narrow(self.fused, part.start, part.length)
        if part.plain:
            return tensor
        if part.turned:
            return tensor.t()
        try:
            if tensor.shape != part.factors:
                tensor = tensor.view(part.factors)
            return tensor.permute(part.order).view(part.shape)
        except RuntimeError as error:
            raise AnatomyError(
                f"a tensor of shape {self.shape} and strides {tensor.stride()} has no view of "
                f"shape {part.shape}: call .contiguous() on it first"
            ) from error

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the stored tensor whose canonical parts are given: the inverse of split."""
        stored = []
        for tensor, part in zip(parts, self.parts, strict=True):
            lengths = [part.factors[i] for i in part.order]
            inverse = [part.order.index(i) for i in range(len(part.order))]
            shape = list(self.shape)
            if self.fused >= 0:
                shape[self.fused] = part.length
            stored.append(tensor.reshape(lengths).permute(inverse).reshape(shape))
        return stored[0] if len(stored) == 1 else torch.cat(stored, self.fused)


@lru_cache(maxsize=4096)
def _layout(
    pattern: str, shape: tuple[int, ...], sizes: tuple[tuple[str, int], ...], parts: int, to: str
) -> Layout:
    known = dict(sizes)
    solved = solve(pattern, shape, known)
    if solved is None:
        raise AnatomyError(f"shape {shape} contradicts pattern {pattern!r} with sizes {known}")
    known.update(solved)
    missing = sorted(parse(pattern).labels - known.keys())
    if missing:
        raise AnatomyError(
            f"sizes {missing} of pattern {pattern!r} do not follow from shape {shape}: "
            f"pass sizes={{{missing[0]!r}: ...}}"
        )
    fused, terms = parse(pattern).terms(parts)
    if len(terms) != parts:
        raise AnatomyError(
            f"pattern {pattern!r} stores {len(terms)} parts where {parts} are named: write the "
            "parts' number first in its group, or join the groups of the parts by '+'"
        )
    views, start = [], 0
    for stored in terms:
        view = _part(pattern, stored, to, known, start, fused)
        views.append(view)
        start += view.length
    return Layout(shape, fused, tuple(views))


def _part(
    pattern: str,
    stored: tuple[Factors, ...],
    to: str,
    sizes: dict[str, int],
    start: int,
    fused: int,
) -> View:
    size = {**sizes, **{f: int(f) for group in stored for f in group if f.isdigit()}}
    flat = [f for group in stored for f in group]
    default = tuple(g for g in stored if any(f != "1" for f in g))
    axes = tuple(axis[0] for axis in parse(to).axes) if to else default
    canonical = [f for group in axes for f in group]
    # A local label that the stored tensor lacks is an axis of one.
    added = {f for f in canonical if f in LOCAL_LABELS and f not in flat}
    size |= dict.fromkeys(added, 1)
    canonical = [f for f in canonical if f not in added]
    ones = [i for i, f in enumerate(flat) if f == "1" and f not in canonical]
    if sorted(canonical) != sorted(f for f in flat if f != "1" or f in canonical):
        raise AnatomyError(f"{to!r} does not rearrange {pattern!r}: use each of its labels once")
    places: dict[str, list[int]] = {}
    for i, f in enumerate(flat):
        places.setdefault(f, []).append(i)
    order = tuple([places[f].pop(0) for f in canonical] + ones)
    shape = tuple(math.prod(size[f] for f in group) for group in axes)
    lengths = [math.prod(size[f] for f in group) for group in stored]
    return View(
        start=start,
        length=lengths[fused] if fused >= 0 else 0,
        factors=tuple(size[f] for f in flat),
        order=order,
        shape=shape,
        axes=tuple(map(Labels, axes)),
        plain=order == tuple(range(len(flat))) and tuple(lengths) == shape,
        turned=len(stored) == 2 and axes == (stored[1], stored[0]),
    )


def layout(
    pattern: str, shape: Sequence[int], sizes: Mapping[str, int], parts: int = 1, to: str = ""
) -> Layout:
    """Return the layout of a stored tensor of so many parts, which is cached.

    ``to`` is the canonical pattern of each part, by default the stored one without axes of length
    1; ``sizes`` may lack what the shape determines.
    """
    labels = parse(pattern).labels
    known = tuple((f, sizes[f]) for f in sorted(labels) if f in sizes and f not in LOCAL_LABELS)
    return _layout(pattern, tuple(shape), known, parts, to)
