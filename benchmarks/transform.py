"""Seconds and peak memory of inheriting a large model's weights, in either direction.

    python benchmarks/transform.py                # CPU, about two minutes

Every row is a process of its own: seconds of the call after the imports, and how far the peak of
its memory rises above what it held before. The ancestor is a file of random weights.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--direction", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.direction, given.file)))
        return
    quiet = schema.machine()["load"]
    rows: list[dict[str, Any]] = []
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
    command = [sys.executable, __file__, "--way", way, "--direction", direction]
    done = subprocess.run(
        [*command, "--file", str(file)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
