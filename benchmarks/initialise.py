"""`init_from_templates` on whole models, against timm's random init and loading a checkpoint.

    python benchmarks/initialise.py               # CPU, about two minutes

Every round times everything once, one after the other; ratios are of medians over the rounds, so
that other work on the machine falls on all alike. Columns:

    random      building the model as timm initialises it, minus building it on meta, as a multiple
                of init_from_templates on the meta model: above 1, templates are faster
    load        init_from_templates as a multiple of load_state_dict of a safetensors checkpoint of
                the same size, page cache warm, into memory that is allocated: below 1, faster
    touch       the same, as a multiple of allocating the model's memory and filling it with a
                constant: what no initialisation of a meta model can do without
    step        a training step of the constrained model as a multiple of the plain model's
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import schema
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import weightinit as wi

SEED = 0
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-B/16": ("vit_base_patch16_224", {}),
    "ViT-L/16": ("vit_large_patch16_224", {}),
    "9 blocks of 320": ("vit_small_patch16_224", {"depth": 9, "embed_dim": 320, "num_heads": 5}),
}


def initialise(
    name: str, options: dict[str, Any], bundle: wi.TemplateBundle, rounds: int
) -> dict[str, Any]:
    """One row: the ratios for one model."""

    def meta() -> nn.Module:
        with torch.device("meta"):
            return timm.create_model(name, **options)

    def build() -> nn.Module:
        return timm.create_model(name, **options)

    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        allocated = build()
        save_file(allocated.state_dict(), file)

        def measure(key: str, work: Callable[[], Any]) -> None:
            start = time.perf_counter()
            work()
            seconds.setdefault(key, []).append(time.perf_counter() - start)

        for _ in range(rounds + 1):
            target = meta()
            measure("templates", partial(wi.init_from_templates, target, bundle))
            measure("build", build)
            measure("meta", meta)
            measure(
                "touch", lambda: [torch.empty(p.shape).fill_(1) for p in allocated.parameters()]
            )
            measure("load", lambda: allocated.load_state_dict(load_file(file)))
    # The first round is the warm-up.
    median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    return {
        "name": " ".join(["init", name, *(f"{k}={v}" for k, v in options.items())]),
        "templates_seconds": round(median["templates"], 4),
        "random": round((median["build"] - median["meta"]) / median["templates"], 2),
        "load": round(median["templates"] / median["load"], 2),
        "touch": round(median["templates"] / median["touch"], 2),
    }


def step(width: int, depth: int, heads: int, batch: int, rounds: int) -> dict[str, Any]:
    """One row: what the constraint adds to a training step."""
    torch.manual_seed(SEED)
    options: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": width,
        "num_heads": heads,
    }
    plain = timm.create_model("vit_tiny_patch16_224", depth=depth, num_classes=10, **options)
    constrained = wi.constrain(plain, wi.TemplateConfig.wave(width))
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    seconds: dict[str, list[float]] = {"plain": [], "constrained": []}
    optimizers = {
        key: torch.optim.AdamW(model.parameters(), fused=True)
        for key, model in (("plain", plain), ("constrained", constrained))
    }

    for _ in range(rounds + 3):
        for key, model in (("plain", plain), ("constrained", constrained)):
            start = time.perf_counter()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizers[key].step()
            optimizers[key].zero_grad()
            seconds[key].append(time.perf_counter() - start)
    median = {key: statistics.median(values[3:]) for key, values in seconds.items()}
    return {
        "name": f"training step, {depth} blocks of {width}, batch {batch}",
        "step": round(median["constrained"] / median["plain"], 3),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = schema.machine()["load"]
    bundle = wi.TemplateBundle.from_pretrained("cifar10-w64")
    rows = [
        initialise(name, options, bundle, arguments.rounds) for name, options in MODELS.values()
    ]
    rows.append(step(64, 6, 4, 128, 8 * arguments.rounds))
    rows.append(step(192, 12, 3, 32, 2 * arguments.rounds))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(schema.record("initialise", rows, seeds=[SEED], load=load).name)


if __name__ == "__main__":
    main()
