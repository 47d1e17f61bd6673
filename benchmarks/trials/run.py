"""One case after the other, or several at once: each leaves one file, and is not run again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trials.methods import METHODS, Target
from trials.sources import Lab, Source, sized
from trials.suites import Case
from weightinit.training.fleet import accelerator
from weightinit.training.images import ImageData, Split
from weightinit.training.loop import train


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, data: ImageData) -> tuple[float, float]:
    """Return the accuracy and the mean accuracy of the classes, both in percent."""
    device = next(model.parameters()).device
    model.eval()
    guesses = torch.cat(
        [
            model(data.normalise(split.images[rows], device)).argmax(1).cpu()
            for rows in torch.arange(len(split)).split(500)
        ]
    )
    right = (guesses == split.labels).double()
    means = [right[split.labels == label].mean() for label in split.labels.unique()]
    return 100 * float(right.mean()), 100 * float(torch.stack(means).mean())


def run_case(case: Case, lab: Lab, *, workers: int = 0) -> dict[str, Any]:
    """Start a target, score it, train it, and score it again."""
    scale, method, data = lab.scale, METHODS[case.method], lab.data(case.data)
    network = sized(scale.preset(case.templates).auxiliary_at(case.depth), case.width)
    model = network.build(data, case.seed)
    ancestor = case.inherited if case.ancestor[0] else None
    fit_steps = case.fit or scale.fit_steps
    began = time.perf_counter()
    started = method.start(Target(model, case.templates, data, case.seed, fit_steps, ancestor), lab)
    start_seconds = time.perf_counter() - began - started.fit_seconds
    row: dict[str, Any] = {
        **asdict(case),
        "name": case.method,
        "data": case.data or Path(lab.name).stem,
        "data_sha256": lab.data_hash(case.data),
        "heads": network.kwargs["num_heads"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "transferred": started.transferred,
        "scalers": started.scalers,
        "fit_steps": fit_steps if started.scalers else 0,
        "start_seconds": round(start_seconds, 3),
        "fit_seconds": round(started.fit_seconds, 2),
        "at_once": round(accuracy(model, data.val, data)[0], 2),
    }
    if method.trains:
        steps = round(scale.short.steps * case.budget)
        config = replace(
            scale.short,
            steps=steps,
            warmup_steps=round(scale.short.warmup_steps * case.budget),
            lr=case.lr or (scale.lr if method.learned else scale.short.lr),
            seed=case.seed,
        )
        every = max(1, math.ceil(steps / case.points))
        history = train(model, data, config, eval_every=every, workers=workers)
        points = [line for line in history.rows if "val" in line]
        row |= {"steps": steps, "lr": config.lr, "seconds": round(history.seconds, 1)}
    else:
        described = lab.described(case.sources(scale)[0])
        points = [{"step": described["recipe"]["steps"], "val": described["val"]}]
        row |= {"steps": points[0]["step"], "lr": described["recipe"]["lr"]}
        row |= {"seconds": described["seconds"]}
    if lab.quick and method.learned:
        row["quick_ancestor"] = list(lab.quick)
    row |= {"at": [p["step"] for p in points], "val": [round(p["val"], 2) for p in points]}
    score, balanced = accuracy(model, data.test if case.test else data.val, data)
    return row | {"trained": round(score, 2), "balanced": round(balanced, 2)}


_LAB: list[Lab] = []


def _begin(threads: int, options: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    _LAB[:] = [Lab(**options)]


def _source(source: Source) -> None:
    _LAB[0].train(source)


def _case(case: Case, file: Path) -> None:
    write(run_case(case, _LAB[0]), file)


def write(row: dict[str, Any], file: Path) -> None:
    """Write a row whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(row) + "\n")
    part.replace(file)


def run(
    cases: Sequence[Case], options: dict[str, Any], *, jobs: int = 1, workers: int = 0
) -> list[dict[str, Any]]:
    """Run what is not there yet, sources first, and return the rows in order.

    Args:
        cases: to run.
        options: arguments of :class:`Lab`.
        jobs: processes, each with a share of the threads.
        workers: processes that augment images, for each.
    """
    lab = Lab(**options)
    folder = lab.folder / "runs"
    files = [folder / case.suite / f"{case.name}.json" for case in cases]
    left = [(case, file) for case, file in zip(cases, files, strict=True) if not file.exists()]
    sources = dict.fromkeys(source for case, _ in left for source in case.sources(lab.scale))
    missing = [s for s in sources if not (lab.path(s) / "source.json").exists()]
    # the longest first, so that no process is left with one at the end
    missing.sort(key=lambda source: -(source.depth or 6) - (source.kind != "vit"))
    left.sort(key=lambda pair: -pair[0].depth * pair[0].width ** 2 * pair[0].budget)
    if missing:
        lab.ancestor(missing[0].width)
    if jobs == 1:
        for number, source in enumerate(missing, 1):
            print(f"source {number}/{len(missing)}: {source.name}", flush=True)
            lab.train(source, workers=workers)
        for number, (case, file) in enumerate(left, 1):
            row = run_case(case, lab, workers=workers)
            if accelerator().is_main_process:
                write(row, file)
                print(f"{number}/{len(left)} {_line(row)}", flush=True)
    else:
        threads = max(1, torch.get_num_threads() // jobs)
        with ProcessPoolExecutor(
            jobs, get_context("spawn"), initializer=_begin, initargs=(threads, options)
        ) as pool:
            _wait([pool.submit(_source, source) for source in missing], "sources")
            _wait([pool.submit(_case, *pair) for pair in left], "runs")
    return [json.loads(file.read_text()) for file in files if file.exists()]


def _wait(futures: list[Any], what: str) -> None:
    for number, future in enumerate(as_completed(futures), 1):
        future.result()
        print(f"{what}: {number} of {len(futures)}", flush=True)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['suite']} {row['width']}x{row['depth']} {row['name']}: "
        f"{row['at_once']} -> {row['trained']}"
    )
