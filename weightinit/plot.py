"""Plots: of a report, how large values are by role and block; of a comparison, scores by start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from weightinit.report import Row

__all__ = ["bars", "deviations"]

COLOURS = {"before": "0.7", "after": "tab:blue"}
#: Title of the panel of what belongs to no block.
OUTSIDE = "outside the blocks"


def deviations(
    title: str, rows: Sequence[Row], series: Mapping[str, Mapping[str, Tensor]]
) -> Figure:
    """Return a figure of standard deviations of matrices, a panel a role.

    ``series`` are values by name of the parameter, called ``"before"`` and ``"after"``.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if len(row.shape) > 1:
            panels.setdefault(OUTSIDE if row.block is None else row.role, []).append(row)
    columns = min(4, len(panels)) or 1
    height = math.ceil(len(panels) / columns) or 1
    figure = Figure(figsize=(3 * columns + 1, 2.5 * height + 1), layout="constrained")
    figure.suptitle(title, fontsize="small", wrap=True)
    grid = list(figure.subplots(height, columns, squeeze=False).flat)
    marks: dict[str, Any] = {}
    for axes, (role, members) in zip(grid, panels.items(), strict=False):
        _draw(axes, members, series)
        axes.set_title(role, fontsize="small")
        marks |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    grid[0].set_ylabel("standard deviation", fontsize="small")
    if marks:
        figure.legend(marks.values(), marks, loc="outside lower center", ncols=len(marks))
    return figure


def _draw(axes: Any, rows: Sequence[Row], series: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Draw a curve a series over the blocks, points outside of them; hollow marks are fresh."""
    outside = rows[0].block is None
    places = [i if row.block is None else row.block for i, row in enumerate(rows)]
    for label, values in series.items():
        heights = [_deviation(values.get(row.name)) for row in rows]
        style = {"color": COLOURS[label], "marker": "o", "linestyle": "" if outside else "-"}
        axes.plot(places, heights, label=label, **style)
        fresh = [i for i, row in enumerate(rows) if row.action == "fresh" and label == "after"]
        if fresh:
            points = [places[i] for i in fresh], [heights[i] for i in fresh]
            axes.scatter(*points, fc="white", ec="tab:red", zorder=3, label="fresh")
    axes.margins(y=0.2)
    axes.set_ylim(bottom=0)
    if outside:
        axes.set_xticks(places, [row.role for row in rows], rotation=60, fontsize="xx-small")
    else:
        axes.set_xlabel("block", fontsize="x-small")


def _deviation(value: Tensor | None) -> float:
    """Return a standard deviation, nan of what is not there."""
    if value is None or value.is_meta:
        return math.nan
    with torch.no_grad():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        return float(whole.float().std(correction=0))


def bars(
    title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str
) -> Figure:
    """Return a figure of horizontal bars, a group a label, the first label on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.5 * len(labels)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = [place + (index - (len(series) - 1) / 2) * height for place in range(len(labels))]
        colour = ("0.7", "tab:blue")[index]
        drawn = axes.barh(places, values, height, label=label, color=colour)
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize="x-small")
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel=unit, title=title)
    figure.legend(loc="outside lower center", ncols=len(series), fontsize="small")
    return figure
