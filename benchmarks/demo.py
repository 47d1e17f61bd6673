"""The demo's table over several seeds: accuracy on held-out digits, random against templates.

    python benchmarks/demo.py                     # CPU, about two minutes a seed

Columns are means over the seeds, in percent on the 360 test images that neither the templates nor
the targets were trained on; ``spread`` is the largest range of the trained columns over the seeds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import schema

from weightinit.demo import TARGETS, demo

COLUMNS = ("random_at_once", "random_trained", "templates_at_once", "templates_trained")


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    load = schema.machine()["load"]
    runs: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            text, values = demo(Path(folder) / "plot.png", steps=arguments.steps, seed=seed)
            print(text)
            runs.append(values["rows"])
    rows: list[dict[str, Any]] = []
    for index, (name, size) in enumerate(TARGETS.items()):
        cells = {column: [run[index][column] for run in runs] for column in COLUMNS}
        means = {column: round(statistics.mean(values), 1) for column, values in cells.items()}
        trained = (cells["random_trained"], cells["templates_trained"])
        spread = max(max(values) - min(values) for values in trained)
        rows.append(
            {"name": name, "bundle": runs[0][index]["bundle"], **size, "steps": arguments.steps}
            | {**means, "spread": round(spread, 1)}
        )
    print(schema.record("demo", rows, seeds=arguments.seeds, load=load).name)


if __name__ == "__main__":
    main()
