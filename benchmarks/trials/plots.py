"""The plots of docs/benchmarks.md: accuracy by depth and width, curves, numbers of scalers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trials.tables import Rows, mean

#: Suites that have a plot.
SUITES = ("depth", "width", "curves")


def draw(suites: Mapping[str, Rows], folder: Path) -> list[Path]:
    """Draw one SVG a plot and return the files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "weightinit"
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _figure(
            folder / "depth.svg", "blocks", lambda axes: _sizes(axes, suites["depth"], "depth")
        ),
        _figure(folder / "width.svg", "width", lambda axes: _sizes(axes, suites["width"], "width")),
        _figure(folder / "curves.svg", "steps", lambda axes: _curves(axes, suites["curves"])),
        _figure(
            folder / "scalers.svg",
            "width",
            lambda axes: _scalers(axes, suites["width"]),
            "trained scalers, and carried numbers",
        ),
    ]


def _figure(
    file: Path, x: str, plot: Callable[[Any], None], y: str = "accuracy in percent"
) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.4, 4.2))
    axes.set_prop_cycle(
        color=pyplot.colormaps["tab20"](range(20))
    )  # more methods than the default's
    plot(axes)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file


def _by(rows: Rows, key: str) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _sizes(axes: Any, rows: Rows, size: str) -> None:
    for name, own in _by(rows, "name").items():
        points = sorted(_by(own, size).items())
        xs = [x for x, _ in points]
        axes.plot(xs, [mean(group, "trained") for _, group in points], marker="o", label=name)
        low, high = (
            [pick(row["trained"] for row in group) for _, group in points] for pick in (min, max)
        )
        axes.fill_between(xs, low, high, alpha=0.2)


def _curves(axes: Any, rows: Rows) -> None:
    for color, (name, runs) in zip(
        ("C0", "C1", "C2", "C3"), _by(rows, "name").items(), strict=False
    ):
        for own in sorted(runs, key=lambda row: row["steps"]):
            at, values = [0, *own["at"]], [own["at_once"], *own["val"]]
            label = name if own is min(runs, key=lambda row: row["steps"]) else None
            axes.plot(at, values, color=color, label=label, alpha=0.8)
    axes.set_xscale("symlog", linthresh=50)


def _scalers(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    fitted = sorted((row["width"], row["scalers"]) for row in rows if row["scalers"])
    carried = sorted((row["width"], row["transferred"]) for row in rows if row["scalers"])
    whole = sorted((row["width"], row["parameters"]) for row in rows)
    for points, label in ((fitted, "scalers"), (carried, "carried"), (whole, "the whole model")):
        axes.plot(*zip(*dict(points).items(), strict=True), marker="o", label=label)
    axes.set_yscale("log")
