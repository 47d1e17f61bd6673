"""Seconds and peak memory of graphs, predictions and training steps of hypernetworks.

    python benchmarks/hypernet.py                 # CPU, about ten minutes
    python benchmarks/hypernet.py --device cuda   # also in bf16

Ours beside a plain reimplementation of the published code (published.py), with random weights at
the published sizes: LoGAH (hid 128, r 90), and PITH as released with an ancestor of ViT-L/16's
size. Every way is a process of its own. Peak memory is how far the process rises above what it
held with hypernetwork and ancestor, from an architecture to all of its weights.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import published
import schema
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import VisionTransformer
from transform import memory

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.graph import graph_of
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.predict import Prediction

SIZES = {
    "ViT-B/16": (12, 12, 768),
    "ViT-L/16": (24, 16, 1024),
    "ViT-Ti/16, 6 blocks": (6, 3, 192),
}
HYPERNETS = {"LoGAH": HyperConfig(), "PITH": HyperConfig.pith()}
WAYS = ("ours", "published")


def build(size: str, device: str = "cpu") -> VisionTransformer:
    """Build a torchvision ViT of one of the sizes."""
    depth, heads, width = SIZES[size]
    with torch.device(device):
        return VisionTransformer(224, 16, depth, heads, width, 4 * width)


class Case:
    """A hypernetwork and, for PITH, an ancestor; and what is done with them.

    Args:
        kind: of :data:`HYPERNETS`.
        way: of :data:`WAYS`.
        device: where the hypernetwork computes.
        half: whether under autocast to bf16.
    """

    def __init__(self, kind: str, way: str, device: str = "cpu", half: bool = False) -> None:
        torch.manual_seed(0)
        self.ours, self.device = way == "ours", device
        self.net = GraphHyperNetwork(HYPERNETS[kind]).to(device)
        # Its random weights are nobody's: in the memory of both ways alike.
        self.old = build("ViT-L/16").requires_grad_(False).to(device) if kind == "PITH" else None
        self.source = Ancestor.open(self.old) if self.old is not None else None
        self.half = torch.autocast(device, torch.bfloat16) if half else nullcontext()

    def target(self, size: str) -> tuple[nn.Module, Any]:
        """Return a model without weights, or with those that tracing needs, and its graph."""
        if self.ours:
            model = build(size, "meta")
            return model, graph_of(wi.anatomy(model))
        model = build(size)
        return model, published.trace(model)

    def weights(self, model: nn.Module, graph: Any, faithful: bool = False) -> dict[str, Tensor]:
        """Return all predicted weights, differentiable."""
        if self.ours:
            return Prediction(
                self.net, wi.anatomy(model), ancestor=self.source, graph=graph, faithful=faithful
            ).parameters()
        params = dict(model.named_parameters())
        old = None if self.old is None else dict(self.old.named_parameters())
        found = published.predict(self.net, graph, params, ancestor=old)
        row = 0.02 * torch.randn(1, 1, params["class_token"].shape[-1], device=self.device)
        pos = torch.cat([row, found["encoder.pos_embedding"]], 1)
        return found | {"encoder.pos_embedding": pos, "class_token": torch.zeros_like(row)}

    @torch.no_grad()
    def predict(self, size: str) -> Callable[[], Any]:
        """Return a call that predicts."""
        model, graph = self.target(size)

        def written() -> list[Tensor]:
            seen = wi.anatomy(model)
            made = Prediction(self.net, seen, ancestor=self.source, graph=graph).plan()
            values = []
            for recipe in made.recipes(seen):
                values.append(torch.empty(recipe.spec.shape, device=self.device))
                if recipe.fill is not None:
                    recipe.fill(values[-1])
            return values

        def run() -> Any:
            with torch.no_grad(), self.half:
                return written() if self.ours else self.weights(model, graph)

        return run

    def step(self, size: str) -> Callable[[], None]:
        """Return a call that makes gradients of a loss on four images."""
        model, graph = self.target(size)
        images = torch.randn(4, 3, 224, 224, device=self.device)
        labels = torch.arange(4, device=self.device)

        def run() -> None:
            self.net.zero_grad()
            with self.half:
                logits = functional_call(model, self.weights(model, graph), (images,))
                loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()

        return run


def seconds(work: Callable[[], Any], device: str) -> float:
    """Time one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    kept = work()
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    del kept
    return took


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Run one way of one piece of work in this process."""
    if given.work == "graph":
        model = build("ViT-B/16", "meta" if given.way == "ours" else "cpu")
        seen = wi.anatomy(model)
        work = (
            (lambda: graph_of(seen).distances)
            if given.way == "ours"
            else (lambda: published.trace(model))
        )
        took = [seconds(work, "cpu") for _ in range(given.rounds + 1)]
        return {"seconds": min(took)}
    case = Case(given.kind, given.way, given.device, given.half)
    before = memory(reset=True)
    held = torch.cuda.memory_allocated() if given.device == "cuda" else 0
    made = case.predict if given.work == "prediction" else case.step
    work = made(given.size)
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = [seconds(work, given.device) for _ in range(given.rounds)]
    peak = memory() - before
    if given.device == "cuda":
        peak = (torch.cuda.max_memory_allocated() - held) / 2**20
    return {"seconds": min(took), "peak_mib": round(peak)}


@torch.no_grad()
def difference(kind: str, size: str, device: str) -> float:
    """Return the largest difference of a weight between the two ways, as published."""
    one, two = (Case(kind, way, device) for way in WAYS)
    model, graph = two.target(size)
    theirs = two.weights(model, graph)
    ours = one.weights(model, graph_of(wi.anatomy(model)), faithful=True)
    theirs["encoder.pos_embedding"] = theirs["encoder.pos_embedding"][:, 1:]
    ours["encoder.pos_embedding"] = ours["encoder.pos_embedding"][:, 1:]
    del theirs["class_token"]
    return max((ours[name] - value).abs().max().item() for name, value in theirs.items())


def main() -> None:
    """Measure every piece of work both ways, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only rows whose name holds this")
    parser.add_argument("--out", type=Path, default=schema.RESULTS)
    for name in ("work", "way", "kind", "size"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given)))
        return
    quiet = schema.machine()["load"]
    rows: list[dict[str, Any]] = []
    works = [("graph", "", "ViT-B/16")]
    works += [("prediction", kind, "ViT-B/16") for kind in HYPERNETS]
    works += [("training step", kind, "ViT-Ti/16, 6 blocks") for kind in HYPERNETS]
    for work, kind, size in works:
        name = f"{work}, {kind}, {size}" if kind else f"{work}, {size}"
        if given.only in name:
            rows.append(row(given, name, work, kind, size))
            print(rows[-1], flush=True)
    print(schema.record("hypernet", rows, seeds=[0], device=given.device, load=quiet,
                        folder=given.out).name)  # fmt: skip


def row(given: argparse.Namespace, name: str, work: str, kind: str, size: str) -> dict[str, Any]:
    """Measure one piece of work both ways."""
    runs = {way: child(given, work, kind, size, way) for way in WAYS}
    found: dict[str, Any] = {"name": name}
    for way, run in runs.items():
        found |= {f"{way}_{key}": value for key, value in run.items()}
    found["times_faster"] = round(runs["published"]["seconds"] / runs["ours"]["seconds"], 1)
    if "peak_mib" in runs["ours"]:
        memory = runs["published"]["peak_mib"] / max(runs["ours"]["peak_mib"], 1)
        found["times_less_memory"] = round(memory, 1)
    if work == "prediction":
        found["largest_difference"] = difference(kind, size, given.device)
    if given.device == "cuda" and work != "graph":
        half = child(given, work, kind, size, "ours", "--half")
        found |= {f"ours_bf16_{key}": value for key, value in half.items()}
    return found


def child(
    given: argparse.Namespace, work: str, kind: str, size: str, way: str, *more: str
) -> dict[str, float]:
    """Measure one way in a process of its own."""
    command = [sys.executable, __file__, "--work", work, "--way", way, "--kind", kind]
    command += ["--size", size, "--device", given.device, "--rounds", str(given.rounds), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
