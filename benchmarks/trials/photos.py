"""The table of what template bundles are worth on photos."""

from __future__ import annotations

from typing import Any

from trials.tables import mean, origin, results, spread, table


def photos() -> str:
    """Starts by targets: test accuracy at the rate that the first seed's validation picks."""
    result = results("default-bundle")
    rows: list[dict[str, Any]] = result["rows"]
    keys = ("width", "depth", "image", "patch", "steps")
    targets = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        line = [name]
        for target in targets:
            own = [r for r in rows if (r["name"], *(r[key] for key in keys)) == (name, *target)]
            rates = {lr: [r for r in own if r["lr"] == lr] for lr in {r["lr"] for r in own}}
            if not rates:
                line.append("")
                continue
            first = [row for row in own if row["seed"] == own[0]["seed"]]
            best = max(first, key=lambda row: row["val"])["lr"]
            score, val = (mean(rates[best], key) for key in ("trained", "val"))
            seeds = len(rates[best])
            varied = f" ± {spread(rates[best]):.1f}, {seeds} seeds" if seeds > 1 else ""
            line.append(f"{score:.1f}{varied} (val {val:.1f}, {best:g})")
        lines.append(line)
    header = ["", *("{} x {}, {} px, patch {}, {} steps".format(*target) for target in targets)]
    return f"{table(header, lines)}\n\n{origin(result)}"
