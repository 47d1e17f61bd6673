"""What the default templates are worth to a user's own photos, beside others and random weights.

    python benchmarks/default_bundle.py                                    # CPU; resumes
    python benchmarks/default_bundle.py --bundle cifar10-w64 my-bundle     # candidates
    python benchmarks/default_bundle.py --targets 192x6x64x16 --steps 300 --seeds 1 2 3

Product photos that no shipped bundle was trained on. Each target, a plain ViT of timm with heads of
64 and a class token, is started from random weights and from each bundle, and trained for a short
budget at each rate. A quarter of the training photos is held out; it picks the rate, and decides
between bundles. Test photos are read once a row. Every run leaves a file under ``--work``; what is
recorded are the runs that the options name and that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import schema
import torch
from trials.data import load
from trials.run import write

import weightinit as wi
from weightinit.api import DEFAULT_TEMPLATES
from weightinit.training.config import TrainingConfig
from weightinit.training.contexts import seeded
from weightinit.training.data import split_off
from weightinit.training.fleet import plain_attention
from weightinit.training.images import ImageData
from weightinit.training.loop import train

PACK = "clothing_128"
#: Width, depth, side of the photos and of a patch in pixels.
TARGETS = ((192, 6, 64, 16), (192, 12, 64, 16), (320, 9, 64, 16), (192, 6, 112, 14))
RANDOM = "random"


@dataclass(frozen=True)
class Run:
    """One target, started one way and trained at one rate."""

    start: str
    width: int
    depth: int
    image: int
    patch: int
    lr: float
    seed: int
    steps: int
    batch_size: int

    @property
    def file(self) -> str:
        """Name its result file."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16] + ".json"


def photos(size: int, cache: Path, pack: str = PACK) -> ImageData:
    """Return the photos in squares of a size, a quarter of the training photos held out."""
    data = load(pack, cache_dir=cache).in_shape(size)
    kept, held = split_off(data.train.labels, 1 / 6, torch.Generator().manual_seed(0))
    images = torch.cat([torch.as_tensor(data.val.images), data.train.images[held]])
    labels = torch.cat([data.val.labels, data.train.labels[held]])
    val = replace(data.val, images=images, labels=labels)
    return replace(data, train=data.train.rows(kept), val=val)


def perform(run: Run, data: ImageData) -> dict[str, Any]:
    """Start a target, train it, and score it."""
    size = {"img_size": run.image, "patch_size": run.patch, "depth": run.depth}
    arguments = {**size, "embed_dim": run.width, "num_heads": run.width // 64}
    with seeded(run.seed):
        model = data.build(data.arguments(arguments))
    if run.start != RANDOM:
        generator = torch.Generator().manual_seed(run.seed)
        wi.init_from_templates(model, run.start, generator=generator)
    if not torch.cuda.is_available():
        plain_attention(model)
    config = TrainingConfig(
        run.steps, run.batch_size, run.lr, run.steps // 10, seed=run.seed, precision="bf16"
    )
    began = time.process_time()
    history = train(model, data, config, progress=False)
    return {
        "name": Path(run.start).name,
        **{name: value for name, value in asdict(run).items() if name != "start"},
        "heads": run.width // 64,
        "tokens": (run.image // run.patch) ** 2,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_images": len(data.val),
        "test_images": len(data.test),
        "val": round(history.val, 2),
        "trained": round(data.score(model, data.test), 2),
        "seconds": round(time.process_time() - began, 1),
    }


def target(text: str) -> tuple[int, ...]:
    """Return the target that a command line names."""
    sizes = tuple(map(int, text.split("x")))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxDEPTHxIMAGExPATCH")
    return sizes


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path.home() / ".cache" / "weightinit"
    parser.add_argument("--bundle", nargs="*", default=[DEFAULT_TEMPLATES])
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-4, 3e-4, 1.2e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, nargs="+", default=[150])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pack", default=PACK)
    parser.add_argument(
        "--targets", type=target, nargs="+", default=TARGETS, metavar="WIDTHxDEPTHxIMAGExPATCH"
    )
    parser.add_argument("--record", action="store_true", help="run nothing, record what is there")
    parser.add_argument("--cache-dir", type=Path, default=cache)
    parser.add_argument("--work", type=Path, help="default: <cache-dir>/default_bundle")
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    return parser.parse_args()


def main() -> None:
    """Run what is not there yet, and record."""
    given = arguments()
    work = (given.work or given.cache_dir / "default_bundle") / given.pack
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load_before = schema.machine(device)["load"]
    targets: Sequence[tuple[int, int, int, int]] = given.targets
    starts = (RANDOM, *given.bundle)
    order = itertools.product(given.steps, given.rates, given.seeds, targets, starts)
    runs = [
        Run(start, *size, lr, seed, steps, given.batch_size)
        for steps, lr, seed, size, start in order
    ]
    data: dict[int, ImageData] = {}
    for run in runs:
        if (work / run.file).exists() or given.record:
            continue
        if run.image not in data:
            data = {run.image: photos(run.image, given.cache_dir, given.pack)}
        row = perform(run, data[run.image])
        write(row, work / run.file)
        said = f"{row['width']}x{row['depth']} {row['tokens']} tokens {run.steps} steps"
        said += f" lr {run.lr:g} {row['name']}: {row['val']} ({row['seconds']} s)"
        print(said, flush=True)
    rows = [json.loads(f.read_text()) for run in runs if (f := work / run.file).exists()]
    name = "default-bundle" + f"-{given.pack}" * (given.pack != PACK)
    print(schema.record(name, rows, seeds=given.seeds, device=device, load=load_before,
                        folder=given.results).name)  # fmt: skip


if __name__ == "__main__":
    main()
