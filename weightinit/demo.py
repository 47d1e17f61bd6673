"""The demo: one pretrained network in six sizes, beside templates and random weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from weightinit.api import init_from_templates, project_from
from weightinit.errors import WeightInitError

if TYPE_CHECKING:
    from weightinit.training.images import ImageData

__all__ = ["ANCESTOR", "RATES", "TARGETS", "demo", "draw"]

#: Names of the bundles of the pretrained network and of the weight templates.
PRETRAINED, TEMPLATES = "digits-weit", "digits-w32"
#: Size of the pretrained network.
ANCESTOR = {"embed_dim": 64, "depth": 6, "num_heads": 4}
#: Sizes that nobody pretrained.
TARGETS: dict[str, dict[str, int]] = {
    "narrower, shallower": {"embed_dim": 32, "depth": 3, "num_heads": 2},
    "narrower": {"embed_dim": 48, "depth": 6, "num_heads": 3},
    "shallower": {"embed_dim": 64, "depth": 4, "num_heads": 4},
    "deeper": {"embed_dim": 64, "depth": 9, "num_heads": 4},
    "wider": {"embed_dim": 80, "depth": 6, "num_heads": 5},
    "wider, deeper": {"embed_dim": 80, "depth": 8, "num_heads": 5},
}
#: Learning rate of each start, chosen on validation images.
RATES = {"random": 2e-3, "templates": 2e-4, "inherited": 5e-4}
#: Images of a step, and those (without their labels) that calibrate.
BATCH, CALIBRATION = 32, 512
#: Times that a training is scored on its way.
SCORES = 3

#: Colours that colour-blind people tell apart (Okabe and Ito's).
GREY, ORANGE, BLUE = "#767676", "#E69F00", "#0072B2"


def demo(
    output: Path,
    *,
    steps: int = 60,
    seed: int = 0,
    targets: Mapping[str, Mapping[str, int]] = TARGETS,
    say: Callable[[str], None] = print,
) -> tuple[str, dict[str, Any]]:
    """Start ViTs of several sizes in three ways, and compare them on held-out digits.

    Args:
        output: where the picture goes.
        steps: number of optimizer steps of each short training.
        seed: base seed for timm's random init and the order of images.
        targets: sizes of the ViTs by name.
        say: is called with each line as soon as it is known.

    Returns:
        A last line, and plain values: accuracies in percent on the test images.

    Raises:
        WeightInitError: if scikit-learn (the images), accelerate or matplotlib is missing.
    """
    try:
        import accelerate  # noqa: F401
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise WeightInitError(
            f"the demo needs {error.name}: pip install 'weightinit[train,report]'"
        ) from error
    from weightinit.training.data import load_data

    data = load_data("digits")
    with _one_thread():
        pretrained = init_from_templates(_vit(seed, **ANCESTOR), PRETRAINED)
        whole = data.score(pretrained, data.test)
        for line in _opening(whole, len(data.test), steps):
            say(line)
        seconds = _seconds_of_a_step(data, seed)
        work = sum(len(RATES) * steps * _work(size) for size in targets.values())
        say(f"This takes about {math.ceil(seconds * work / 10) * 10} seconds.\n")
        for line in _header(steps):
            say(line)
        rows = []
        for name, size in targets.items():
            rows.append(_row(name, size, data, pretrained, steps, seed))
            say(_line(rows[-1]))
    draw(rows, whole, output)
    values = {"plot": str(output), "ancestor": {**ANCESTOR, "accuracy": whole}, "rows": rows}
    return f"\npicture: {output}", values


def _row(
    name: str,
    size: Mapping[str, int],
    data: ImageData,
    pretrained: nn.Module,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Return the accuracies of one target: at once, and along a short training."""
    images = data.train.images[torch.arange(CALIBRATION)]
    batches = [data.normalise(part) for part in images.split(128)]
    starts: dict[str, Callable[[nn.Module], Any]] = {
        "random": lambda model: model,
        "templates": lambda model: init_from_templates(model, TEMPLATES),
        "inherited": lambda model: project_from(pretrained, model, calibration=batches),
    }
    row: dict[str, Any] = {"target": name, **size}
    row["without_data"] = data.score(project_from(pretrained, _vit(seed, **size)), data.test)
    for start, fill in starts.items():
        model = _vit(seed, **size)
        fill(model)
        row["steps"], row[start] = _trained(model, data, steps, RATES[start], seed)
    return row


def _trained(
    model: nn.Module, data: ImageData, steps: int, lr: float, seed: int
) -> tuple[list[int], list[float]]:
    """Train a model; return the steps at which it was scored on test images, and the scores."""
    from weightinit.training.config import TrainingConfig
    from weightinit.training.loop import train

    recipe = TrainingConfig(
        steps, batch_size=BATCH, lr=lr, warmup_steps=steps // 10, augment="none", seed=seed
    )
    at_once = data.score(model, data.test)
    # The loop scores what is held out for validation; here nothing is chosen by the scores.
    shown = replace(data, val=data.test)
    every = math.ceil(steps / SCORES)
    history = train(model, shown, recipe, eval_every=every, progress=False)
    scored = [row for row in history.rows if "val" in row]
    return (
        [0, *(int(row["step"]) for row in scored)],
        [at_once, *(row["val"] for row in scored)],
    )


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core inside the block: networks as small wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _work(size: Mapping[str, int]) -> float:
    """Return how long a step takes, relative to one of the ancestor's size."""
    return size["depth"] * size["embed_dim"] / (ANCESTOR["depth"] * ANCESTOR["embed_dim"])


def _seconds_of_a_step(data: ImageData, seed: int) -> float:
    """Return how long a step of training takes at the ancestor's size, on this machine."""
    model, steps = _vit(seed, **ANCESTOR), 8
    _trained(model, data, 1, RATES["random"], seed)  # what is done but once
    began = time.monotonic()
    _trained(model, data, steps, RATES["random"], seed)
    return (time.monotonic() - began) / steps


def _opening(whole: float, images: int, steps: int) -> list[str]:
    wide, deep, heads = ANCESTOR.values()
    return [
        f"A pretrained ViT, {wide} wide, {deep} blocks, {heads} heads, reads {whole:.1f} % of "
        f"{images} held-out digits.",
        "You need it in other sizes. Each is started in three ways and trained for "
        f"{steps} steps of {BATCH} images:",
        "  random     timm's own initialisation",
        f"  templates  wi.init_from_templates(model, {TEMPLATES!r})",
        f"  inherited  wi.project_from(pretrained, model, calibration=...) on {CALIBRATION} images",
        "  no images  wi.project_from(pretrained, model), which generates images",
    ]


def _header(steps: int) -> list[str]:
    spans = "".join(f"   {name:^17}" for name in RATES)
    columns = f"   {'at once':>7} {f'{steps} steps':>9}" * len(RATES)
    return [
        f"{'accuracy in percent':<29}{spans}   no images",
        f"{'target':<20}{'size':<9}{columns}   {'at once':>9}",
    ]


def _line(row: Mapping[str, Any]) -> str:
    size = f"{row['embed_dim']} x {row['depth']}"
    scores = "".join(f"   {row[start][0]:>7.1f} {row[start][-1]:>9.1f}" for start in RATES)
    return f"{row['target']:<20}{size:<9}{scores}   {row['without_data']:>9.1f}"


def draw(rows: Sequence[Mapping[str, Any]], whole: float, output: Path) -> None:
    """Draw the accuracy of each target along its training, a panel a target.

    Args:
        rows: those of :func:`demo`, or means of several of its runs.
        whole: accuracy of the pretrained network in percent.
        output: a png, svg or pdf file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(3, len(rows))
    height = math.ceil(len(rows) / columns)
    style: dict[Any, Any] = {"svg.hashsalt": "weightinit", "font.size": 9}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.1 * columns, 2.2 * height + 1.2), facecolor="white")
        grid = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        for axes, row in zip(grid.flat, rows, strict=False):
            _panel(axes, row, whole)
        for axes in list(grid.flat)[len(rows) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy, %")
        for axes in grid[-1]:
            axes.set_xlabel("training steps")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / figure.get_figheight()))
        wide, deep, _ = ANCESTOR.values()
        figure.suptitle(
            f"One pretrained ViT ({wide} wide, {deep} blocks) in sizes that nobody pretrained",
            x=0.02, y=0.985, ha="left", va="top", fontsize=12, fontweight="bold",
        )  # fmt: skip
        figure.legend(
            handles, labels, loc="upper left", ncols=len(labels), frameon=False,
            bbox_to_anchor=(0.01, 1 - 0.3 / figure.get_figheight()), fontsize=8.5,
            handlelength=1.6, columnspacing=1.3, handletextpad=0.5,
        )  # fmt: skip
        plain = {"Date": None} if output.suffix == ".svg" else {}
        figure.savefig(output, dpi=150, metadata=plain)


def _panel(axes: Any, row: Mapping[str, Any], whole: float) -> None:
    steps = row["steps"]
    axes.axhline(whole, color="0.35", lw=1, ls=":", zorder=0, label="the pretrained ViT")
    # The broad line stays visible under the narrow one where both run along the top.
    axes.plot(steps, row["inherited"], color=BLUE, lw=5, solid_capstyle="round",
              label="inherited: project_from")  # fmt: skip
    axes.plot(0, row["without_data"], color=BLUE, ls="", marker="D", ms=6, mfc="white", zorder=4,
              label="... without your images")  # fmt: skip
    axes.plot(steps, row["templates"], color=ORANGE, lw=2, marker="o", ms=4,
              label="init_from_templates")  # fmt: skip
    axes.plot(steps, row["random"], color=GREY, lw=2, marker="s", ms=4, label="timm's random init")
    axes.set_title(row["target"], loc="left", fontweight="bold", fontsize=10)
    axes.set_title(f"{row['embed_dim']} x {row['depth']}", loc="right", color="0.35", fontsize=9)
    axes.set_ylim(0, 105)
    axes.set_yticks([0, 50, 100])
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.annotate(
        f"{row['random'][-1]:.0f} %", (steps[-1], row["random"][-1]), (0, 7), ha="right",
        textcoords="offset points", color=GREY, fontsize=9,
    )  # fmt: skip
    axes.annotate(
        f"at once {row['inherited'][0]:.0f} %", (0, row["inherited"][0]), (7, -9), va="top",
        textcoords="offset points", color=BLUE, fontsize=9,
    )  # fmt: skip
