"""What became of every parameter: text, dict, rich table, plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weightinit.text import spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One parameter: its name, role, block, shape, what happened to it, and from where."""

    name: str
    role: str
    block: int | None
    shape: tuple[int, ...]
    action: str
    source: str


@dataclass(frozen=True)
class Report:
    """What a plan does to a model; ``str()`` is a table with one line for each role and source.

    Args:
        rows: one a parameter.
        source: where the values come from.
        notes: what the user should know besides.
        model: the model, for the plot.
    """

    rows: Sequence[Row]
    source: str
    notes: Sequence[str] = ()
    model: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many parameters are written, fresh and kept."""
        counted = Counter(row.action for row in self.rows)
        return {action: counted[action] for action in ("written", "fresh", "kept")}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "source": self.source,
            "counts": self.counts,
            "notes": list(self.notes),
            "rows": [asdict(row) | {"shape": list(row.shape)} for row in self.rows],
        }

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """Return the table: role, blocks, shape, action and source; like rows are one line."""
        groups: dict[tuple[str, tuple[int, ...], str, str], list[int]] = {}
        for row in self.rows:
            key = (row.role, row.shape, row.action, row.source)
            groups.setdefault(key, []).extend([] if row.block is None else [row.block])
        return [
            (
                role,
                spans(blocks) or "-",
                "x".join(map(str, shape)) or "1",
                action,
                source,
            )
            for (role, shape, action, source), blocks in groups.items()
        ]

    def __str__(self) -> str:
        """Return the table as text."""
        header = ("role", "blocks", "shape", "action", "source")
        table = [header, *self.lines()]
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        text = [
            "  ".join([*(line[i].ljust(widths[i]) for i in range(4)), line[4]]) for line in table
        ]
        counts = ", ".join(f"{count} {action}" for action, count in self.counts.items())
        return "\n".join([f"{self.source}: {counts}", *text, *(f"note: {n}" for n in self.notes)])

    def __rich__(self) -> Any:
        """Return a rich table, which ``rich.print`` shows."""
        from rich.table import Table

        table = Table(title=f"{self.source}", caption="\n".join(self.notes))
        for name in ("role", "blocks", "shape", "action", "source"):
            table.add_column(name)
        colour = {"written": "green", "fresh": "yellow", "kept": "cyan"}
        for line in self.lines():
            table.add_row(*line, style=colour[line[3]])
        return table

    def plot(self) -> Figure:
        """Return a matplotlib figure: the standard deviation of each role's values by block.

        Raises:
            ModuleNotFoundError: if matplotlib is missing (``pip install weightinit[report]``).
        """
        from matplotlib.figure import Figure

        parameters = dict(self.model.named_parameters()) if self.model is not None else {}
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            value = parameters.get(row.name)
            if value is None or value.is_meta or row.block is None or value.dim() < 2:
                continue
            with torch.no_grad():
                spread = float(value.float().std())
            curves.setdefault(row.role, []).append((row.block, spread))
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for role, points in curves.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=role)
        axes.set(xlabel="block", ylabel="standard deviation", title=self.source)
        if curves:
            axes.legend(fontsize="small")
        return figure
