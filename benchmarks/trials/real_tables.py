"""The tables of `real.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trials.tables import mean, origin, results, spread, table

__all__ = ["real_finetune", "real_names", "real_probe", "real_text"]

Rows = Sequence[Mapping[str, Any]]
#: Longest words of a check in a table.
LONGEST = 200


def real_probe() -> str:
    """Linear regression and k-NN on features of targets that were not trained."""
    result = results("real-probe")
    rows = [row for row in result["rows"] if "refused" not in row]
    ancestor, rows = _split(rows, "name", "ancestor")
    columns = list(dict.fromkeys(row["target"] for row in result["rows"] if row not in ancestor))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [[r for r in rows if (r["name"], r["target"]) == (name, c)] for c in columns]
        lines.append([name, *(_both(cell) for cell in own)])
    shown = [row for row in result["rows"] if "linear" in row]
    error = max(100 * math.sqrt(0.25 / row["scored"]) for row in shown)
    said = f"The ancestor: {_both(ancestor)}. " if ancestor else ""
    said += f"{shown[0]['scored']} {shown[0]['part']} images, standard error {error:.1f} at most; "
    said += "a cell is linear regression / k-NN, and empty where the method refuses the target."
    return f"{said}\n\n{table(['', *columns], lines)}\n\n{origin(result)}"


def real_finetune() -> str:
    """Accuracy after short trainings, and what each learning rate gives."""
    result = results("real-finetune")
    rows = [row for row in result["rows"] if "refused" not in row]
    columns = list(dict.fromkeys((row["pack"], row["target"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    cells = [[_of(rows, name, column) for column in columns] for name in names]
    lines = [[name, *map(_trained, row)] for name, row in zip(names, cells, strict=True)]
    balanced = [[name, *map(_balanced, row)] for name, row in zip(names, cells, strict=True)]
    header = ["", *(f"{pack}, {target}" for pack, target in columns)]
    rates = rows[0]["rates"]
    tried = [
        [f"{row['name']}, {row['pack']}, {row['target']}", *row["val"]]
        for row in rows
        if len(row["rates"]) > 1
    ]
    return "\n\n".join(
        [
            table(header, lines),
            "Balanced accuracy of the same models:",
            table(header, balanced),
            "Validation accuracy by learning rate, first seed:",
            table(["", *(f"{rate:g}" for rate in rates)], tried),
            origin(result),
        ]
    )


def real_names() -> str:
    """What opens by name, is refused, and loses nothing."""
    result = results("real-names")
    lines = []
    for row in result["rows"]:
        words = row["words"].replace("|", "/")
        short = words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."
        equal = f", differs by {row['difference']:.0e}" if "difference" in row else ""
        name = f"{row['name']} {row['target']}".strip()
        lines.append([name, f"{row['result']}{equal}", short])
    text = table(["what is done", "result", "words"], lines)
    return f"{text}\n\n{origin(result)}"


def real_text() -> str:
    """How far the embeddings of sentences agree with the ancestor's."""
    result = results("real-text")
    rows = [row for row in result["rows"] if "refused" not in row]
    columns = list(dict.fromkeys(row["target"] for row in result["rows"]))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [[r for r in rows if (r["name"], r["target"]) == (name, c)] for c in columns]
        lines.append([name, *(_agreed(cell) for cell in own)])
    error = max(row["cosine_error"] for row in rows)
    said = f"{rows[0]['n']} {rows[0]['part']} sentences, standard error {error:.3f} at most; a "
    said += "cell is the mean cosine / the rank correlation of pairs, and empty where refused."
    return f"{said}\n\n{table(['', *columns], lines)}\n\n{origin(result)}"


def _agreed(rows: Rows) -> str:
    if not rows:
        return ""
    return f"{mean(rows, 'cosine'):.3f} / {mean(rows, 'rank_correlation'):.3f}"


def _split(rows: Rows, key: str, value: str) -> tuple[Rows, Rows]:
    return [r for r in rows if r[key] == value], [r for r in rows if r[key] != value]


def _of(rows: Rows, name: str, column: tuple[str, str]) -> Rows:
    return [r for r in rows if (r["name"], (r["pack"], r["target"])) == (name, column)]


def _both(rows: Rows) -> str:
    return f"{mean(rows, 'linear'):.1f} / {mean(rows, 'knn'):.1f}" if rows else ""


def _trained(rows: Rows) -> str:
    """``accuracy ± half the range (learning rate)``."""
    if not rows:
        return ""
    scores = [{"trained": row["accuracy"]} for row in rows]
    varied = f" ± {spread(scores):.1f}" if len(rows) > 1 else ""
    return f"{mean(rows, 'accuracy'):.1f}{varied} ({rows[0]['lr']:g})"


def _balanced(rows: Rows) -> str:
    return f"{mean(rows, 'balanced'):.1f}" if rows else ""
