"""Seconds and peak memory of inheriting a large model's weights, in either direction.

    python benchmarks/transform.py                # CPU, about two minutes
    python benchmarks/transform.py --suite fit    # on 512 images
    python benchmarks/transform.py --suite fit --sizes small base large --images 512 128 64

Every row is a process of its own: seconds of the call after the imports, and how far the peak of
its memory rises above what it held before. The ancestor is a file of random weights. The suite
``fit`` halves heads and blocks of a ViT by ``project_from(..., calibration=)``, in CPU seconds
against those of the ancestor's forward over the same images, and in memory against ancestor and
target together. A tiny fit comes before, for what is loaded at the first use.
"""

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import schema

LARGE = ("vit_large_patch16_224", {})
#: Not a published size: narrower and shallower than ViT-B, heads of 64.
SMALL = ("vit_base_patch16_224", {"embed_dim": 704, "depth": 11, "num_heads": 11})


def build(size: tuple[str, dict[str, Any]], *, meta: bool = True) -> Any:
    """Build a model of one of the two sizes."""
    import timm
    import torch

    with torch.device("meta" if meta else "cpu"):
        return timm.create_model(size[0], **size[1])


def project(file: Path, size: tuple[str, dict[str, Any]]) -> None:
    """Inherit by project_from's own choice of method, of the weights alone."""
    import weightinit as wi

    wi.project_from(file, build(size), calibration="none")


def published_selection(file: Path, size: tuple[str, dict[str, Any]]) -> None:
    """Weight Selection as its script does it: the whole checkpoint loaded, indexed dim by dim."""
    import torch
    from safetensors.torch import load_file

    teacher = load_file(file)
    student = build(size, meta=False)
    state = student.state_dict()
    for name, value in state.items():
        if "head" not in name:
            found = teacher[name]
            for dim, (old, new) in enumerate(zip(found.shape, value.shape, strict=True)):
                index = torch.arange(new) * (old // new)
                if old % new:
                    index = torch.linspace(0, old - 1, new).round().long()
                found = found.index_select(dim, index)
            state[name] = found
    student.load_state_dict(state)


def random_init(file: Path, size: tuple[str, dict[str, Any]]) -> None:
    """Build with timm's own random init."""
    build(size, meta=False)


def load(file: Path, size: tuple[str, dict[str, Any]]) -> None:
    """Load the ancestor whole into a model of its own size."""
    from safetensors.torch import load_file

    model = build(LARGE if size is SMALL else SMALL).to_empty(device="cpu")
    model.load_state_dict(load_file(file))


#: Ancestors of the calibrated fit: embed_dim, depth and heads, images of 98 px, patches of 14.
FITTED = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
PIXELS, BATCH = 98, 32


def vit(name: str, *, half: bool) -> tuple[str, dict[str, Any]]:
    """Return an ancestor of the calibrated fit, or the target of half its heads and blocks."""
    sizes = (x // 2 if half else x for x in FITTED[name])
    args = dict(zip(("embed_dim", "depth", "num_heads"), sizes, strict=True))
    return "vit_small_patch14_dinov2", {**args, "img_size": PIXELS}


def warm_up() -> None:
    """Fit a tiny target, so that all is loaded that a fit uses."""
    import timm
    import torch

    import weightinit as wi

    old, new = (
        timm.create_model(
            "vit_small_patch14_dinov2", embed_dim=64 * n, depth=n, num_heads=n, img_size=PIXELS
        )
        for n in (2, 1)
    )
    wi.project_from(old, new, calibration=[torch.randn(8, 3, PIXELS, PIXELS)])


def measure_fit(name: str, images: int, file: Path) -> dict[str, float]:
    """Fit a target to an ancestor on images of noise in this process."""
    import timm
    import torch
    from safetensors.torch import load_file

    import weightinit as wi

    torch.manual_seed(0)
    batches = [torch.randn(n, 3, PIXELS, PIXELS) for n in chunks(images)]
    target = build(vit(name, half=True))
    warm_up()
    with torch.no_grad():
        ancestor = timm.create_model(vit(name, half=False)[0], **vit(name, half=False)[1]).eval()
        ancestor.load_state_dict(load_file(file))
        ancestor(batches[0])
        began = time.process_time()
        for batch in batches:
            ancestor(batch)
        forward = time.process_time() - began
    del ancestor
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not to be used again unseen
    before = memory(reset=True)
    began = time.process_time()
    wi.project_from(file, target, calibration=batches)
    seconds = time.process_time() - began
    return {
        "cpu_seconds": round(seconds, 2),
        "forward_cpu_seconds": round(forward, 2),
        "times_forward": round(seconds / forward, 2),
        "peak_mib": round(memory() - before),
    }


def chunks(images: int) -> list[int]:
    """Return the sizes of the batches."""
    return [min(BATCH, images - start) for start in range(0, images, BATCH)]


def fits(sizes: Mapping[str, int], rounds: int) -> list[dict[str, Any]]:
    """Return a row for every ancestor, given the number of images for each."""
    rows = []
    for name, images in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.safetensors"
            save(vit(name, half=False), file)
            asked = ["--fit", name, "--images", str(images)]
            runs = [run_child([*asked, "--file", str(file)]) for _ in range(rounds)]
        best = min(runs, key=lambda run: run["times_forward"])
        models = mib(vit(name, half=False)) + mib(vit(name, half=True))
        ratio = round(best["peak_mib"] / models, 2)
        row = {"name": f"calibrated project_from, ViT {name}", "images": images, **best}
        rows.append(row | {"models_mib": models, "times_models": ratio})
        print(rows[-1], flush=True)
    return rows


WAYS: dict[str, Callable[[Path, tuple[str, dict[str, Any]]], None]] = {
    "project_from": project,
    "Weight Selection, published": published_selection,
    "timm's random init of the target": random_init,
    "the ancestor's own load_state_dict": load,
}


def measure(way: str, direction: str, file: Path) -> dict[str, float]:
    """Run one way in this process."""
    import timm  # noqa: F401
    import torch  # noqa: F401

    import weightinit as wi

    wi.project_from  # noqa: B018 (imported before the clock starts)
    before = memory(reset=True)
    began = time.perf_counter()
    WAYS[way](file, SMALL if direction == "shrink" else LARGE)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 3), "peak_mib": round(memory() - before)}


def memory(*, reset: bool = False) -> float:
    """Return the most memory that this process has held, MiB; with ``reset``, what it holds now.

    getrusage's figure will not do: a new process starts with its parent's.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # pyright: ignore


def main() -> None:
    """Measure every way in both directions, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=schema.RESULTS)
    parser.add_argument("--suite", choices=["files", "fit"], default="files")
    parser.add_argument("--sizes", nargs="+", choices=[*FITTED], default=["small"])
    parser.add_argument(
        "--images", type=int, nargs="+", default=[512], help="one number, or one a size"
    )
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    parser.add_argument("--direction", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.direction, given.file)))
        return
    if given.fit:
        print(json.dumps(measure_fit(given.fit, given.images[0], given.file)))
        return
    quiet = schema.machine()["load"]
    if given.suite == "fit":
        images = given.images * (len(given.sizes) if len(given.images) == 1 else 1)
        if len(images) != len(given.sizes):
            parser.error("--images: give one number, or one for each of --sizes")
        rows = fits(dict(zip(given.sizes, images, strict=True)), given.rounds)
        print(schema.record("transform-fit", rows, seeds=[0], load=quiet, folder=given.out).name)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for direction, size in (("shrink", LARGE), ("grow", SMALL)):
            file = Path(folder) / f"{direction}.safetensors"
            save(size, file)
            ways = [w for w in WAYS if direction == "shrink" or "Selection" not in w]
            runs = {way: [child(way, direction, file) for _ in range(given.rounds)] for way in ways}
            target = mib(SMALL if direction == "shrink" else LARGE)
            for way, found in runs.items():
                best = {key: min(run[key] for run in found) for key in ("seconds", "peak_mib")}
                base = min(run["seconds"] for run in runs["project_from"])
                row = {"name": way, "direction": direction, **best, "target_mib": target}
                rows.append(row | {"times_project_from": round(best["seconds"] / base, 2)})
                print(rows[-1])
    print(schema.record("transform", rows, seeds=[0], load=quiet, folder=given.out).name)


def save(size: tuple[str, dict[str, Any]], file: Path) -> None:
    """Write a checkpoint of random weights that says what model it is of."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = build(size, meta=False)
    metadata = {"architecture": size[0], "model_args": json.dumps(size[1])}
    save_file(dict(model.state_dict()), file, metadata=metadata)


def mib(size: tuple[str, dict[str, Any]]) -> int:
    """Return how large a model is in fp32."""
    return round(sum(p.numel() for p in build(size).parameters()) * 4 / 2**20)


def child(way: str, direction: str, file: Path) -> dict[str, float]:
    """Measure one way in a process of its own."""
    return run_child(["--way", way, "--direction", direction, "--file", str(file)])


def run_child(options: Sequence[str]) -> dict[str, float]:
    """Return what this script measures in a process of its own."""
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
