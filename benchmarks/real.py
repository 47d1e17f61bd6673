"""What a start is worth when the ancestor is one that people really trained.

    python benchmarks/real.py --suite probe                       # features at once, no training
    python benchmarks/real.py --targets 192x6 320x12 --part val --only "default with data"
    python benchmarks/real.py --suite finetune                    # short trainings; hours of CPU
    python benchmarks/real.py --suite text names
    python benchmarks/real.py --ancestor vit_small_patch16_224.augreg_in21k     # downloaded

Ancestors are files of ``$WEIGHTINIT_ANCESTORS`` (default ``../shared/ancestors``) or models of timm
and the Hub by name; data are those of ``$WEIGHTINIT_DATA``. Every row leaves a file under
``--work``, so a command that was stopped goes on there. Choices are made on ``--part val``, other
training images; ``--part test`` is for reports.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import schema
import torch
from trials import real_finetune, real_names, real_probe
from trials.pretrained import Target
from trials.real_suite import Options, Piece
from trials.run import write

from weightinit.errors import WeightInitError

SUITES = {"probe": real_probe, "finetune": real_finetune, "names": real_names}
ANCESTOR = "dinov2_small_focus"
TEXT_ANCESTOR = "minilm_l6"


def text_rows(options: Options) -> list[dict[str, Any]]:
    """Return the rows of the suite of sentences."""
    try:
        module = import_module("trials.real_text")
    except ModuleNotFoundError as error:
        raise WeightInitError(
            f"suite 'text' needs {error.name}, which is not installed: install it, or use "
            f"{', '.join(SUITES)}"
        ) from error
    return [{"name": row["start"], **row} for row in module.rows(options)]


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)


def _perform(piece: Piece, options: Options) -> str:
    row = piece.row(options)
    write(row, piece.file(options))
    shown = ("refused", "linear", "knn", "lr", "accuracy", "result", "start_seconds")
    return f"{piece.title}: { {key: row[key] for key in shown if key in row} }"


def perform(left: Sequence[Piece], options: Options, jobs: int, threads: int) -> None:
    """Do pieces in this process, or in several at once, and print a line for each."""
    if jobs == 1:
        _begin(threads)
        for number, piece in enumerate(left, 1):
            print(f"{number}/{len(left)} {_perform(piece, options)}", flush=True)
        return
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_begin, initargs=(threads,)
    ) as pool:
        futures = [pool.submit(_perform, piece, options) for piece in left]
        for number, future in enumerate(as_completed(futures), 1):
            print(f"{number}/{len(left)} {future.result()}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run, and record one result file a suite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=[*SUITES, "text"], nargs="+", default=["probe"])
    parser.add_argument("--ancestor", help=f"default: {ANCESTOR}, of texts {TEXT_ANCESTOR}")
    parser.add_argument("--targets", nargs="+", default=[], help="as 192x6 or 192x6p16@112")
    parser.add_argument("--data", default="", help="a pack, in place of the suite's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--only", nargs="+", default=[], help="only these starts")
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--device", default="cpu", help="of the suites probe and finetune")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, help="of each; default: a share of the cores")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "weightinit")
    parser.add_argument("--work", type=Path, help="default: <cache-dir>/real")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results")
    parser.add_argument("--record", action="store_true", help="only record what is there")
    parser.add_argument("--smoke", action="store_true", help="tiny, and not recorded by default")
    given = parser.parse_args(arguments)
    load = schema.machine()["load"]
    threads = given.threads or max(1, (os.cpu_count() or 1) // given.jobs)
    for suite in given.suite:
        name = given.ancestor or (TEXT_ANCESTOR if suite == "text" else ANCESTOR)
        work = given.work or given.cache_dir / ("real" + "-smoke" * given.smoke)
        options = Options(
            ancestor=name,
            cache=given.cache_dir,
            work=work / suite / "".join(c if c.isalnum() else "-" for c in name),
            targets=tuple(str(Target.parse(text)) for text in given.targets),
            data=given.data,
            seeds=tuple(given.seeds),
            only=tuple(given.only),
            part=given.part,
            device=given.device,
            smoke=given.smoke,
        )
        if suite == "text":
            rows = text_rows(options)
        else:
            wanted = list(SUITES[suite].pieces(options))
            for stage in sorted({piece.stage for piece in wanted}) if not given.record else ():
                left = [p for p in wanted if p.stage == stage and not p.file(options).exists()]
                perform(left, options, given.jobs, threads)
            files = [piece.file(options) for piece in wanted]
            rows = [json.loads(file.read_text()) for file in files if file.exists()]
        if given.results or not given.smoke:
            seeds = sorted({row["seed"] for row in rows if "seed" in row}) or [0]
            folder = given.results or schema.RESULTS
            where = {"device": given.device, "load": load, "folder": folder}
            print(schema.record(f"real-{suite}", rows, seeds=seeds, **where).name)


if __name__ == "__main__":
    main()
