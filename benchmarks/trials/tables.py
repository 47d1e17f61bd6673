"""The tables that the rows of a suite make."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import schema

Rows = Sequence[Mapping[str, Any]]


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def mean(rows: Rows, key: str) -> float:
    """The mean of a column, a list standing for its last entry."""
    return statistics.mean(r[key][-1] if isinstance(r[key], list) else r[key] for r in rows)


def spread(rows: Rows) -> float:
    """Half the range of the final accuracy over the seeds."""
    scores = [row["trained"] for row in rows]
    return (max(scores) - min(scores)) / 2


def cell(rows: Rows) -> str:
    """``trained ± half the range (at once)``."""
    if not rows:
        return ""
    if "trained" not in rows[0]:
        return f"({mean(rows, 'at_once'):.1f})"
    varied = f" ± {spread(rows):.1f}" if len(rows) > 1 else ""
    return f"{mean(rows, 'trained'):.1f}{varied} ({mean(rows, 'at_once'):.0f})"


def accuracies(
    rows: Rows, column: Callable[[Mapping[str, Any]], Any], *, costs: bool = True
) -> str:
    """Methods by columns, with what each method takes."""
    columns = list(dict.fromkeys(column(row) for row in rows))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        line = [name, *(cell([row for row in own if column(row) == c]) for c in columns)]
        if costs:
            line += [_thousands(max(row["transferred"] for row in own)), _range(own, "scalers")]
            line.append(f"{mean(own, 'fit_seconds') + mean(own, 'seconds'):.0f}")
        lines.append(line)
    extra = ["carried", "scalers fitted", "seconds"] if costs else []
    return table(["", *columns, *extra], lines)


def best_rate(rows: Rows) -> list[Mapping[str, Any]]:
    """The rows at the rate that scores best on validation images, by method and size."""
    groups: dict[Any, dict[float, list[Mapping[str, Any]]]] = {}
    for row in rows:
        key = row["name"], row["width"], row["depth"]
        groups.setdefault(key, {}).setdefault(row["lr"], []).append(row)
    chosen = {
        key: max(rates, key=lambda lr: mean(rates[lr], "val")) for key, rates in groups.items()
    }
    return [row for row in rows if row["lr"] == chosen[row["name"], row["width"], row["depth"]]]


def _range(rows: Rows, key: str) -> str:
    low, high = min(row[key] for row in rows), max(row[key] for row in rows)
    return f"{low}" if low == high else f"{low} - {high}"


def _thousands(number: int) -> str:
    return f"{number / 1000:.0f} k" if number else "0"


def steps_saved(rows: Rows) -> tuple[str, list[dict[str, Any]]]:
    """How many steps from scratch each start is worth: log-linear between the budgets of scratch.

    Returns:
        A Markdown table, and its rows.
    """
    scratch = sorted(
        (row["steps"], row["trained"]) for row in rows if row["name"] == "timm default"
    )
    found = []
    for row in sorted(rows, key=lambda row: (row["name"], row["steps"])):
        if row["name"] == "timm default":
            continue
        worth: float | None = None
        for (a, low), (b, high) in itertools.pairwise(scratch):
            if low <= row["trained"] <= high:
                part = (row["trained"] - low) / (high - low)
                worth = math.exp(math.log(a) + part * (math.log(b) - math.log(a)))
        if row["trained"] < scratch[0][1]:
            text = f"under {scratch[0][0]}"
        elif worth is None:
            text = f"over {scratch[-1][0]}"
        else:
            text = f"{worth:.0f}"
        found.append(
            {"name": row["name"], "steps": row["steps"], "trained": row["trained"], "worth": text}
        )
    lines = [[r["name"], r["steps"], f"{r['trained']:.1f}", r["worth"]] for r in found]
    budget = ", ".join(f"{score:.1f} after {steps}" for steps, score in scratch)
    text = f"From scratch: {budget} steps.\n\n" + table(
        ["start", "its steps", "test accuracy", "steps from scratch for as much"], lines
    )
    return text, found


def results(suite: str, device: str = "cpu") -> dict[str, Any]:
    """The newest result file of a suite on one kind of device."""
    files = [schema.load(path) for path in schema.RESULTS.glob(f"{suite}--*--{device}.json")]
    return max(files, key=lambda result: result["timestamp"])


def trials(suite: str) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a suite at micro scale, and where they come from.

    Those whose sources learned from a quick ancestor are in a file of their own, and named so.
    """
    name = f"learngene-{suite}-micro"
    result = results(name)
    rows, origins = [*result["rows"]], [origin(result)]
    if list(schema.RESULTS.glob(f"{name}-quick--*")):
        quick = results(f"{name}-quick")
        rows += [{**row, "name": f"{row['name']} (quick ancestor)"} for row in quick["rows"]]
        origins.append(origin(quick))
    return rows, "\n\n".join(origins)


def origin(result: dict[str, Any]) -> str:
    """Where the numbers of a table come from."""
    kind, versions = result["machine"], result["versions"]
    return (
        f"`{result['command']}`; seeds {', '.join(map(str, result['seeds']))}; {kind['threads']} "
        f"threads of {kind['gpu'] or kind['cpu']}, load {kind['load']} a core; "
        f"torch {versions['torch']}, timm {versions['timm']}."
    )
