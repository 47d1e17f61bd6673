"""The table of what template bundles are worth on photos."""

from __future__ import annotations

from typing import Any

from trials.tables import mean, origin, results, table


def photos() -> str:
    """Starts by targets: test accuracy at the rate that validation picks; both stand behind it."""
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
            best = max(rates, key=lambda lr: mean(rates[lr], "val"))
            score, val = (mean(rates[best], key) for key in ("trained", "val"))
            line.append(f"{score:.1f} (val {val:.1f}, {best:g})")
        lines.append(line)
    header = ["", *("{} x {}, {} px, patch {}, {} steps".format(*target) for target in targets)]
    return f"{table(header, lines)}\n\n{origin(result)}"
