"""WAVE's tables on real data: accuracy of targets of many sizes, by how they were started.

    python benchmarks/learngene.py --preset micro                   # every suite, CPU
    python benchmarks/learngene.py --preset micro --suite depth     # Table 1 alone
    torchrun --nproc_per_node 8 benchmarks/learngene.py --preset paper --data imagenet
    python benchmarks/learngene.py --preset small --smoke           # does everything start?

Sources (template sets, plain models) are trained once and kept under ``--work``; so is every run,
in a file of its own: a command that was stopped goes on where it stopped.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import schema
from trials.run import run
from trials.scales import SCALES, smoke
from trials.suites import SUITES, Case

from weightinit.training.fleet import accelerator


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(SCALES), default="micro")
    parser.add_argument(
        "--suite", choices=list(SUITES), nargs="+", help="default: all but tune and choices"
    )
    parser.add_argument("--method", nargs="+", help="only these")
    parser.add_argument("--seed", type=int, nargs="+", help="only these")
    parser.add_argument(
        "--quick-ancestor",
        type=int,
        nargs=2,
        metavar=("SIDE", "STEPS"),
        help="side of its images and steps of its training; such rows get a file of their own",
    )
    parser.add_argument("--data", default="", help="of the sources; default: the preset's")
    parser.add_argument("--jobs", type=int, help="runs at once; default: one a core, or GPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that augment images")
    parser.add_argument("--work", type=Path, help="default: <cache-dir>/learngene/<preset>")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "weightinit")
    parser.add_argument("--width", type=int, nargs="+", help="only templates of these widths")
    parser.add_argument("--smoke", action="store_true", help="two steps of all, not recorded")
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    return parser.parse_args()


def main() -> None:
    """Run, and record one result file a suite."""
    given = arguments()
    scale = SCALES[given.preset]
    if given.width:
        presets = tuple(preset for preset in scale.presets if preset.width in given.width)
        scale = replace(scale, presets=presets)
    if given.smoke:
        scale = smoke(scale)
    name = scale.name + "-smoke" * given.smoke
    folder = given.work or given.cache_dir / "learngene" / name
    options = {
        "scale": scale,
        "folder": folder,
        "cache_dir": given.cache_dir,
        "data": given.data,
        "recall": scale.presets[0].training.augment == "light",
    }
    if given.smoke:
        options["limit"] = 16
    options["quick"] = given.quick_ancestor
    load = schema.machine()["load"]
    suites = given.suite or [name for name in SUITES if name not in ("tune", "choices")]
    cases = [case for suite in suites for case in SUITES[suite](scale) if wanted(case, given)]
    device = accelerator().device.type
    alone = device == "cpu" and accelerator().num_processes == 1
    jobs = given.jobs or (os.cpu_count() or 1 if alone else 1)
    rows = run(cases, options, jobs=jobs, workers=given.workers)
    if given.smoke or not accelerator().is_main_process:
        return
    for suite in suites:
        found = [row for row in rows if row["suite"] == suite]
        seeds = sorted({row["seed"] for row in found})
        name = f"learngene-{suite}-{scale.name}" + "-quick" * bool(given.quick_ancestor)
        path = schema.record(
            name, found, seeds=seeds, device=device, load=load, folder=given.results
        )
        print(path.name)


def wanted(case: Case, given: argparse.Namespace) -> bool:
    """Whether a case is of the methods and seeds that were asked for."""
    return (given.method is None or case.method in given.method) and (
        given.seed is None or case.seed in given.seed
    )


if __name__ == "__main__":
    main()
