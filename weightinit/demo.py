"""The demo: shipped bundles fill ViTs of many sizes, beside timm's own random init."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from weightinit.api import init_from_templates
from weightinit.errors import WeightInitError

__all__ = ["NESTED", "TARGETS", "demo"]

#: Sizes that nobody pretrained, from templates of a model 32 wide, 6 deep, with 2 heads.
TARGETS: dict[str, dict[str, int]] = {
    "as trained": {"embed_dim": 32, "depth": 6, "num_heads": 2},
    "shallower": {"embed_dim": 32, "depth": 4, "num_heads": 2},
    "deeper": {"embed_dim": 32, "depth": 9, "num_heads": 2},
    "wider": {"embed_dim": 64, "depth": 6, "num_heads": 4},
    "does not divide": {"embed_dim": 80, "depth": 6, "num_heads": 5},
    "other heads": {"embed_dim": 96, "depth": 6, "num_heads": 3},
    "wider, deeper": {"embed_dim": 64, "depth": 8, "num_heads": 4},
    "narrower, shallower": {"embed_dim": 16, "depth": 3, "num_heads": 1},
}
#: The target below all that those templates were trained at; WeiT's bundle has it inside.
NESTED = "narrower, shallower"


def demo(
    output: Path,
    *,
    steps: int = 150,
    templates: str = "digits-w32",
    nested: str = "digits-weit",
    seed: int = 0,
) -> tuple[str, Any]:
    """Initialise :data:`TARGETS` from bundles and compare with random, on held-out digits.

    Args:
        output: where the plot goes.
        steps: number of optimizer steps of the short training, 64 images each.
        templates: name of the bundle of all targets but one.
        nested: name of the bundle of the target :data:`NESTED`.
        seed: base seed for timm's random init and the order of images.

    Returns:
        The table, and the same as plain values: accuracies in percent on the test images.

    Raises:
        WeightInitError: if scikit-learn (the images) or matplotlib (the plot) is missing.
    """
    try:
        import accelerate  # noqa: F401
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise WeightInitError(
            f"the demo needs {error.name}: pip install 'weightinit[train,report]'"
        ) from error
    from weightinit.training.config import TrainingConfig
    from weightinit.training.data import load_data
    from weightinit.training.loop import train

    data = load_data("digits")
    # What serves the random initialisation best, on validation data.
    recipe = TrainingConfig(
        steps, batch_size=64, lr=3e-3, warmup_steps=steps // 10, augment="none", seed=seed
    )
    rows = []
    for name, size in TARGETS.items():
        bundle = nested if name == NESTED else templates
        row: dict[str, Any] = {"target": name, "bundle": bundle, **size}
        for how in ("random", "templates"):
            model = _vit(seed, **size)
            if how == "templates":
                init_from_templates(model, bundle)
            row[f"{how}_at_once"] = data.score(model, data.test)
            train(model, data, recipe, progress=False)
            row[f"{how}_trained"] = data.score(model, data.test)
        rows.append(row)
    _plot(rows, output, steps)
    return _table(rows, steps, output), {"plot": str(output), "rows": rows}


def _vit(seed: int, **size: Any) -> nn.Module:
    """Build a ViT for 8x8 digits, as timm initialises it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(
            "vit_tiny_patch16_224",
            img_size=8,
            patch_size=2,
            in_chans=1,
            num_classes=10,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            **size,
        )


def _table(rows: list[dict[str, Any]], steps: int, output: Path) -> str:
    lines = [
        "Accuracy in percent on held-out handwritten digits.",
        "",
        f"{'':<21}{'width':>6}{'depth':>6}{'heads':>6}   "
        f"{'timm random init':^20}   {'init_from_templates':^20}",
        f"{'target':<21}{'':>18}   {'at once':>9}{f'{steps} steps':>11}"
        f"   {'at once':>9}{f'{steps} steps':>11}   bundle",
    ]
    lines += [
        f"{row['target']:<21}{row['embed_dim']:>6}{row['depth']:>6}{row['num_heads']:>6}   "
        f"{row['random_at_once']:>9.1f}{row['random_trained']:>11.1f}   "
        f"{row['templates_at_once']:>9.1f}{row['templates_trained']:>11.1f}   {row['bundle']}"
        for row in rows
    ]
    return "\n".join([*lines, "", f"plot: {output}"])


def _plot(rows: list[dict[str, Any]], output: Path, steps: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    series = (
        ("random_at_once", "random, at once", "0.8"),
        ("random_trained", f"random, {steps} steps", "0.55"),
        ("templates_at_once", "templates, at once", "tab:green"),
        ("templates_trained", f"templates, {steps} steps", "tab:blue"),
    )
    for index, (key, label, colour) in enumerate(series):
        axes.bar(
            [i + 0.2 * (index - 1.5) for i in range(len(rows))],
            [row[key] for row in rows],
            width=0.2,
            label=label,
            color=colour,
        )
    axes.set_xticks(
        range(len(rows)),
        [f"{r['target']}\n{r['embed_dim']}x{r['depth']}, {r['num_heads']} heads" for r in rows],
        fontsize="x-small",
    )
    axes.set(ylabel="test accuracy, %", ylim=(0, 100), title="Digits: many sizes from two bundles")
    figure.legend(fontsize="small", loc="outside lower center", ncols=len(series))
    figure.savefig(output, dpi=120)
