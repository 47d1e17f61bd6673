"""The demo over several seeds: accuracy on held-out digits by how a ViT was started.

    python benchmarks/demo.py                     # CPU, about a minute a seed

Lists are accuracies at the ``steps`` of the short training, the first at once: means over the
seeds, in percent, on the 359 test images on which nothing was trained. ``without_data`` is the
inheritance that saw generated images alone, at once; ``spread`` the largest range of the last
accuracies over the seeds. The file is written after each seed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import schema

from weightinit.demo import ANCESTOR, RATES, TARGETS, demo


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    load = schema.machine()["load"]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            _, values = demo(Path(folder) / "plot.png", steps=arguments.steps, seed=seed)
            runs.append(values)
            seeds = arguments.seeds[: len(runs)]
            print(schema.record("demo", _rows(runs), seeds=seeds, load=load).name)


def _rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the ancestor and the targets, as means over the runs."""
    whole = _mean([run["ancestor"]["accuracy"] for run in runs])
    rows: list[dict[str, Any]] = [{"name": "ancestor", **ANCESTOR, "accuracy": whole}]
    for index, (name, size) in enumerate(TARGETS.items()):
        cells = [run["rows"][index] for run in runs]
        scores = {
            start: [_mean(values) for values in zip(*(cell[start] for cell in cells), strict=True)]
            for start in RATES
        }
        last = [[cell[start][-1] for cell in cells] for start in RATES]
        rows.append(
            {"name": name, **size, "steps": cells[0]["steps"], **scores}
            | {"without_data": _mean([cell["without_data"] for cell in cells])}
            | {"spread": round(max(max(values) - min(values) for values in last), 1)}
        )
    return rows


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 1)


if __name__ == "__main__":
    main()
