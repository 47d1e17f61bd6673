"""What became of every parameter: text, dict, HTML, rich table, plot."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from weightinit._version import __version__
from weightinit.anatomy import Blocks
from weightinit.files.writing import save_json
from weightinit.text import first, spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "Row"]

HEADER = ("role", "blocks", "shape", "numbers", "action", "source")
#: In the order of the table: what is fresh comes last, where it is seen.
ACTIONS = ("written", "kept", "fresh")


@dataclass(frozen=True)
class Row:
    """What happened to one parameter.

    Args:
        name: its name.
        role: its role.
        block: index of its block, or None outside the blocks.
        shape: its shape.
        action: ``"written"`` from the source, ``"fresh"`` by a rule, or ``"kept"``.
        source: where its values come from.
        how: the same in short, without roles and blocks.
        blocks: blocks of the ancestor that it comes from, each with its weight.
    """

    name: str
    role: str
    block: int | None
    shape: tuple[int, ...]
    action: str
    source: str
    how: str = ""
    blocks: Blocks = ()


@dataclass(frozen=True, repr=False)
class Report:
    """What a plan does to a model; ``str()`` is a table with one line a role, fresh ones last.

    Args:
        rows: one a parameter.
        source: where the values come from.
        notes: what the user should know besides.
        seed: of the generator that was passed, if one was.
        model: the model, for the plot.
        planned: returns the planned values by name, or None when they are written; for the plot.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=7)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=5)
        >>> report = wi.plan_projection(ancestor, model).report()
        >>> report
        Report(ancestor a VisionTransformer, by Auto(): 54 written, 2 fresh, 0 kept)
        >>> report.block_map
        '0-1 <- 0-1, 2-3 <- 2'
        >>> report.numbers["fresh"]
        965
    """

    rows: Sequence[Row]
    source: str
    notes: Sequence[str] = ()
    seed: int | None = None
    model: nn.Module | None = field(default=None, compare=False)
    planned: Callable[[], Mapping[str, Tensor] | None] | None = field(default=None, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many parameters are written, fresh and kept."""
        counted = Counter(row.action for row in self.rows)
        return {action: counted[action] for action in ("written", "fresh", "kept")}

    @property
    def numbers(self) -> dict[str, int]:
        """How many numbers are written, fresh and kept."""
        counted: Counter[str] = Counter()
        for row in self.rows:
            counted[row.action] += math.prod(row.shape)
        return {action: counted[action] for action in ("written", "fresh", "kept")}

    @property
    def block_map(self) -> str:
        """Which blocks of the target come from which of the ancestor; empty if there is none."""
        found: dict[int, Counter[Blocks]] = {}
        for row in self.rows:
            if row.block is not None and row.blocks:
                found.setdefault(row.block, Counter())[row.blocks] += 1
        return _block_map({block: found[block].most_common(1)[0][0] for block in sorted(found)})

    def lines(self, *, full: bool = False) -> list[tuple[str, ...]]:
        """Return the table: role, blocks, shape, numbers, action and source.

        Args:
            full: one line for each role, source and shape, every source in full; else one line for
                each role, shape and action.
        """
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            key = (row.role, "x".join(map(str, row.shape)) or "1", row.action)
            groups.setdefault((*key, row.source) if full else key, []).append(row)
        ordered = sorted(groups.items(), key=lambda item: ACTIONS.index(item[0][2]))
        return [
            (
                key[0],
                _spans(rows) or "-",
                key[1],
                f"{sum(math.prod(row.shape) for row in rows):,}",
                key[2],
                key[3] if full else _sources(rows),
            )
            for key, rows in ordered
        ]

    def heading(self) -> list[str]:
        """Return what stands above the table: the source, shares of numbers, the map of blocks."""
        numbers = {action: n for action, n in self.numbers.items() if n}
        total = sum(numbers.values()) or 1
        shares = ", ".join(
            f"{_percent(count / total)} {action}" for action, count in numbers.items()
        )
        blocks = [f"blocks {self.block_map}"] if self.block_map else []
        return [self.summary, f"{total:,} numbers: {shares}", *blocks]

    @property
    def summary(self) -> str:
        """Where the weights are from, and how many parameters are written, fresh and kept."""
        counts = ", ".join(f"{count} {action}" for action, count in self.counts.items())
        return f"{self.source}: {counts}"

    def __repr__(self) -> str:
        return f"Report({self.summary})"

    def __str__(self) -> str:
        """Return heading, table and notes as text."""
        table = [HEADER, *self.lines()]
        widths = [max(len(line[i]) for line in table) for i in range(5)]
        text = [
            "  ".join([*(line[i].ljust(widths[i]) for i in range(5)), line[5]]) for line in table
        ]
        return "\n".join([*self.heading(), *text, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return heading, table and notes for a notebook."""

        def cells(line: Sequence[str], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)

        lines = [f"<tr>{cells(line, 'td')}</tr>" for line in self.lines()]
        above = "<br>".join(html.escape(line) for line in self.heading())
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        head = f"<thead><tr>{cells(HEADER, 'th')}</tr></thead>"
        body = f"<tbody>{''.join(lines)}</tbody>"
        return f"<p>{above}</p><table>{head}{body}</table><ul>{notes}</ul>"

    def __rich__(self) -> Any:
        """Return a rich table, which ``rich.print`` shows."""
        from rich.table import Table

        table = Table(title="\n".join(self.heading()), caption="\n".join(self.notes))
        for name in HEADER:
            table.add_column(name)
        colour = {"written": "green", "fresh": "yellow", "kept": "cyan"}
        for line in self.lines():
            table.add_row(*line, style=colour[line[4]])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "weightinit": __version__,
            "source": self.source,
            "seed": self.seed,
            "counts": self.counts,
            "numbers": self.numbers,
            "block_map": self.block_map,
            "notes": list(self.notes),
            "rows": [
                asdict(row) | {"shape": list(row.shape), "blocks": list(map(list, row.blocks))}
                for row in self.rows
            ],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, whole or not at all.

        Raises:
            WeightInitError: if the file cannot be written.
        """
        save_json(self.to_dict(), path)

    def plot(self) -> Figure:
        """Return a matplotlib figure: standard deviations of matrices by block, a panel a role.

        Before the plan is committed, the planned values are computed and shown beside those of the
        model (grey); afterwards those of the model. What is fresh has a hollow mark.

        Raises:
            ModuleNotFoundError: if matplotlib is missing (``pip install weightinit[report]``).
        """
        from weightinit.plot import deviations

        present = dict(self.model.named_parameters()) if self.model is not None else {}
        planned = self.planned() if self.planned is not None else None
        series: dict[str, Mapping[str, Tensor]] = {"after": present}
        if planned is not None:
            series = {"before": present, "after": {**present, **planned}}
        return deviations(self.source, self.rows, series)


def _spans(rows: Sequence[Row]) -> str:
    return spans(row.block for row in rows if row.block is not None)


def _sources(rows: Sequence[Row]) -> str:
    """Return the sources of one role in short: the commonest first, others with their blocks."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.how or row.source, []).append(row)
    (most, _), *others = sorted(groups.items(), key=lambda item: -len(item[1]))
    rest = first([f"{_spans(some)}: {how}" for how, some in others], 3)
    return f"{most}; {rest}" if rest else most


def _percent(share: float) -> str:
    """Return a share in percent that is 0 or 100 only where it is exactly that."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < share < 1 else f"{share:.1%}"


def _block_map(found: Mapping[int, Blocks]) -> str:
    """Return a map of blocks in words: copies of one block together, and runs of single ones."""
    groups: list[tuple[list[int], Blocks]] = []
    for block, mix in found.items():
        if groups and groups[-1][1] == mix:
            groups[-1][0].append(block)
        else:
            groups.append(([block], mix))
    runs: list[tuple[list[int], list[int], str]] = []
    for new, mix in groups:
        plain = len(mix) == 1 and mix[0][1] == 1
        words = "" if plain else " + ".join(f"{weight:.2g} x {i}" for i, weight in mix[:3])
        old = mix[0][0]
        if plain and runs and len(new) == 1 and not runs[-1][2]:
            before, theirs, _ = runs[-1]
            if len(before) == len(theirs) and (before[-1], theirs[-1]) == (new[0] - 1, old - 1):
                before.append(new[0])
                theirs.append(old)
                continue
        runs.append((list(new), [old], words))
    return first([f"{spans(new)} <- {words or spans(old)}" for new, old, words in runs], 16)
