"""What hypernetworks predict, on real data: targets that were never trained, by method.

    python benchmarks/hypernet_quality.py --preset micro                    # two cores, CIFAR-10
    python benchmarks/hypernet_quality.py --preset small                    # a GPU
    python benchmarks/hypernet_quality.py --preset micro --suite tasks      # TAL's tasks alone

Every hypernetwork gets the same training budget, and is kept under ``--work``; so is every row: a
command that was stopped goes on where it stopped.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import schema
import torch
from trials import texts
from trials.hypernets import (
    BASELINES,
    HELD,
    SEEN,
    VARIANTS,
    Budget,
    hypernet,
    multi_task,
    score,
    slug,
)
from trials.run import write
from trials.scales import SCALES
from trials.sources import Lab

#: Steps of every meta-training, by preset; seeds of the short trainings after it.
STEPS = {"micro": 1200, "small": 40_000}
SEEDS = (0, 1)
SUITES = ("sizes", "tasks", "texts")
#: What is larger than in the presets of two cores; targets and ancestor are the same.
LARGER: dict[str, dict[str, Any]] = {
    "micro": {},
    "small": {"hid": 128, "layers": 5, "heads": 16, "rank": 32, "max_ck": 8192},
}


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(STEPS), default="micro")
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES))
    parser.add_argument("--method", nargs="+", help="only these")
    parser.add_argument("--steps", type=int, help="of every meta-training")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the short trainings")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, help="default: <cache-dir>/learngene/micro")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "weightinit")
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    return parser.parse_args()


_LAB: list[Lab] = []


def _begin(threads: int, options: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    _LAB[:] = [Lab(**options)]


def _train(name: str, budget: Budget) -> None:
    hypernet(name, _LAB[0], budget, seed=0)


def _score(name: str, size: tuple[int, int], budget: Budget, seed: int, file: Path) -> None:
    if not file.exists():
        write(score(name, size, _LAB[0], budget, seed), file)


def _tasks(budget: Budget, seed: int, file: Path) -> None:
    if not file.exists():
        write({"rows": multi_task(_LAB[0], budget, seed)}, file)


def _texts(folder: Path, steps: int, seed: int, file: Path) -> None:
    if not file.exists():
        write({"rows": texts.rows(folder, steps, seed)}, file)


def main() -> None:
    """Train, score, and record one result file a suite."""
    given = arguments()
    scale = SCALES["micro"]
    folder = given.work or given.cache_dir / "learngene" / scale.name
    if given.preset != "micro":
        folder = folder / given.preset
    options = {"scale": scale, "folder": folder, "cache_dir": given.cache_dir}
    budget = Budget(given.steps or STEPS[given.preset], LARGER[given.preset])
    seeds = given.seeds or SEEDS
    load = schema.machine()["load"]
    names = [name for name in (*BASELINES, *VARIANTS) if not given.method or name in given.method]
    runs = folder / "runs" / f"hypernets-{budget.steps}"
    cases = [
        (name, size, budget, seed, runs / f"{slug(name)}-{size[0]}x{size[1]}-{seed}.json")
        for name in names
        for size in (*SEEN, *HELD)
        for seed in seeds
    ]
    task_files = [runs / f"tasks-{seed}.json" for seed in seeds[:1]]
    text_files = [runs / f"texts-{seed}.json" for seed in seeds[:1]]
    threads = max(1, torch.get_num_threads() // given.jobs)
    with ProcessPoolExecutor(
        given.jobs, get_context("spawn"), initializer=_begin, initargs=(threads, options)
    ) as pool:
        needed = [name for name in names if name in VARIANTS and "sizes" in given.suite]
        if "tasks" in given.suite:
            needed = list(dict.fromkeys([*needed, "TAL"]))
        _wait([pool.submit(_train, name, budget) for name in needed], "hypernetworks")
        later = []
        if "sizes" in given.suite:
            later += [pool.submit(_score, *case) for case in cases]
        if "tasks" in given.suite:
            pairs = zip(seeds, task_files, strict=False)
            later += [pool.submit(_tasks, budget, seed, file) for seed, file in pairs]
        if "texts" in given.suite:
            kept = folder / "hypernets"
            pairs = zip(seeds, text_files, strict=False)
            later += [pool.submit(_texts, kept, budget.steps, seed, file) for seed, file in pairs]
        _wait(later, "runs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, list[Any]] = {
        "sizes": [json.loads(case[-1].read_text()) for case in cases if case[-1].exists()],
        "tasks": _rows(task_files),
        "texts": _rows(text_files),
    }
    for suite in given.suite:
        path = schema.record(
            f"hypernets-{suite}-{given.preset}",
            found[suite],
            seeds=sorted({row["seed"] for row in found[suite]}),
            device=device,
            load=load,
            folder=given.results,
        )
        print(path.name)


def _rows(files: list[Path]) -> list[Any]:
    return [row for f in files if f.exists() for row in json.loads(f.read_text())["rows"]]


def _wait(futures: list[Any], what: str) -> None:
    for number, future in enumerate(as_completed(futures), 1):
        future.result()
        print(f"{what}: {number} of {len(futures)}", flush=True)


if __name__ == "__main__":
    main()
