"""What a comparison found: one outcome a start, as a table, plain values, a file and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from weightinit._version import __version__
from weightinit.files.writing import save_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Outcome", "Score", "rank"]

#: Characters of a reason that the table shows.
WIDTH = 120


@dataclass(frozen=True)
class Score:
    """A model on the held-out examples.

    Args:
        loss: mean loss.
        accuracy: share of right predictions in percent, or None where labels are no classes.
    """

    loss: float
    accuracy: float | None = None

    def __str__(self) -> str:
        loss = f"{self.loss:.3f}"
        return loss if self.accuracy is None else f"{self.accuracy:.1f} ({loss})"


@dataclass(frozen=True)
class Outcome:
    """What one start is worth.

    Args:
        name: of the candidate.
        source: where its weights come from; empty where they could not be had.
        at_once: score before any training.
        trained: score after it, at the best rate; None if there is none.
        lr: that rate.
        rates: score at each learning rate; a loss that is not finite ends a training.
        notes: what else is to be known.
        error: why there is no score, and what to do; empty if there is one.
    """

    name: str
    source: str = ""
    at_once: Score | None = None
    trained: Score | None = None
    lr: float | None = None
    rates: tuple[tuple[float, Score], ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def score(self) -> Score | None:
        """The score after training, or, where nothing was trained, at once."""
        return None if self.error else self.trained or self.at_once


def rank(score: Score | None) -> tuple[float, float]:
    """Return what scores are sorted by: accuracy if there is one, then loss; the best is least."""
    if score is None or not math.isfinite(score.loss):
        return math.inf, math.inf
    return -(score.accuracy or 0.0), score.loss


@dataclass(frozen=True)
class Comparison:
    """What :func:`weightinit.compare` found.

    Args:
        rows: one :class:`Outcome` for each candidate, the best first, then those without a score.
        steps: number of optimizer steps of each training.
        lrs: learning rates that were tried.
        examples: number of held-out examples.
        seed: base seed of all random draws.

    Examples:
        >>> rows = [Outcome("random", "own weights", Score(2.3, 10.0), Score(0.9, 71.0), 1e-3)]
        >>> comparison = Comparison(rows, steps=100, lrs=(3e-4, 1e-3), examples=400, seed=0)
        >>> comparison.best.name
        'random'
        >>> print(comparison)
        Accuracy in percent (loss) on 400 held-out examples; standard error up to 2.5 points.
        start   at once       100 steps     lr     from
        random  10.0 (2.300)  71.0 (0.900)  0.001  own weights
        note: best at the highest rate of lrs=: random. Try higher ones
    """

    rows: Sequence[Outcome]
    steps: int
    lrs: tuple[float, ...]
    examples: int
    seed: int

    @property
    def best(self) -> Outcome:
        """The start with the best score."""
        return self.rows[0]

    @property
    def notes(self) -> list[str]:
        """What to know of the comparison as a whole, then of single starts."""
        found = []
        for edge, word, which in ((min, "lower", "lowest"), (max, "higher", "highest")):
            at = [row.name for row in self.rows if row.lr is not None and row.lr == edge(self.lrs)]
            if at and len(self.lrs) > 1:
                found.append(f"best at the {which} rate of lrs=: {', '.join(at)}. Try {word} ones")
        return found + [f"{row.name}: {note}" for row in self.rows for note in row.notes]

    def lines(self) -> list[tuple[str, ...]]:
        """Return the table: start, score at once, after training, learning rate, source."""
        trained = [f"{self.steps} steps", "lr"] if self.steps else []
        table = [("start", "at once", *trained, "from")]
        for row in self.rows:
            if row.error:
                continue
            end = [str(row.trained), f"{row.lr:g}"] if self.steps else []
            table.append((row.name, str(row.at_once), *end, row.source))
        return table

    def __str__(self) -> str:
        """Return table, reasons and notes as text."""
        table = self.lines()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]) - 1)]
        text = [self._heading()]
        for line in table:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
            text.append("  ".join([*cells, line[-1]]))
        text += [f"{row.name}: {_cut(row.error)}" for row in self.rows if row.error]
        return "\n".join([*text, *(f"note: {_cut(note)}" for note in self.notes)])

    def _heading(self) -> str:
        on = f"on {self.examples} held-out examples"
        if self.best.score is None or self.best.score.accuracy is None:
            return f"Loss {on}."
        error = 50 / math.sqrt(self.examples)
        return f"Accuracy in percent (loss) {on}; standard error up to {error:.1f} points."

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values; a loss that is not finite is None."""
        found = asdict(self)
        found["notes"] = self.notes
        for row in found["rows"]:
            row["rates"] = [{"lr": lr, **score} for lr, score in row["rates"]]
            for score in (row["at_once"], row["trained"], *row["rates"]):
                if score is not None and not math.isfinite(score["loss"]):
                    score["loss"] = None
        return {"weightinit": __version__, "best": self.best.name, **found}

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, whole or not at all.

        Raises:
            WeightInitError: if the file cannot be written.
        """
        save_json(self.to_dict(), path)

    def plot(self) -> Figure:
        """Return a matplotlib figure: each start's score at once and after training.

        Raises:
            ModuleNotFoundError: if matplotlib is missing (``pip install weightinit[report]``).
        """
        from weightinit.plot import bars

        kind = "loss" if self.best.score and self.best.score.accuracy is None else "accuracy"
        scored = [row for row in self.rows if not row.error]
        labels = [row.name if row.lr is None else f"{row.name}\nlr {row.lr:g}" for row in scored]
        series = {"at once": [getattr(row.at_once, kind) for row in scored]}
        if self.steps:
            series[f"{self.steps} steps"] = [getattr(row.trained, kind) for row in scored]
        unit = f"held-out {kind}" + (", %" if kind == "accuracy" else "")
        return bars(f"Which start: {self.examples} held-out examples", labels, series, unit)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
