"""Hypernetworks to compare, and what their predictions are worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import weightinit as wi
from trials.run import accuracy
from trials.sources import Lab, Source
from weightinit.hypernet.samplers import micro
from weightinit.training.hypernet_presets import HyperPreset, get_hypernet_preset
from weightinit.training.hypernet_run import train_hypernet
from weightinit.training.images import ImageData
from weightinit.training.loop import train
from weightinit.training.tasks import task_embedding

#: Width and depth of the ancestor.
ANCESTOR = (64, 6)
#: Targets as (width, depth); training draws no width of 80 or 112 and no depth of 5 or 8.
SEEN = ((64, 6), (128, 7))
HELD = ((80, 5), (112, 8), (48, 5))
#: Those that are trained on for the short budget.
TRAINED = ((80, 5),)


@dataclass(frozen=True)
class Budget:
    """What every hypernetwork gets.

    Args:
        steps: of its training.
        larger: what is larger than in the presets of two cores.
    """

    steps: int
    larger: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One hypernetwork of the comparison.

    Args:
        preset: that it is trained by.
        changes: of its config.
    """

    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def made(self, budget: Budget) -> HyperPreset:
        """Return the preset with a budget."""
        preset = get_hypernet_preset(self.preset)
        larger = {k: v for k, v in budget.larger.items() if k != "rank" or preset.config.rank}
        return replace(
            preset,
            config=replace(preset.config, **larger, **self.changes),
            training=preset.training.planned(steps=budget.steps),
            watch=tuple(micro(*size) for size in (ANCESTOR, (128, 8), (80, 4))),
        )


#: By the name that tables show.
VARIANTS: Mapping[str, Variant] = {
    "GHN-3": Variant("micro-ghn3"),
    "LoGAH": Variant("micro-logah"),
    "TAL": Variant("micro-tal"),
    "PITH, shared pathway": Variant("micro-pith-shared"),
    "PITH, dual pathway": Variant("micro-pith-dual"),
    "PITH, as released": Variant("micro-pith-dual", {"expansion": "original"}),
    "PITH, as released, first blocks": Variant(
        "micro-pith-dual", {"expansion": "original", "alignment": "first"}
    ),
    "PITH, both expanded, separate P and Q": Variant("micro-pith-full"),
    "PITH from the rule (ours)": Variant("micro-pith-rule"),
}
#: Starts without a hypernetwork.
BASELINES = ("timm default", "rule alone", "project_from, calibrated")
#: TAL's tasks, and the one that it never sees.
TASKS = ("cifar10_compact", "gtsrb", "clothing", "omniglot_small", "spoken_digits")
UNSEEN = "pneumonia"


def slug(name: str) -> str:
    """Return a name of a folder."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def ancestor(lab: Lab) -> nn.Module:
    """Return the ancestor, trained like the learngene benchmark's sources."""
    return lab.model(Source("vit", *ANCESTOR))


def hypernet(name: str, lab: Lab, budget: Budget, seed: int) -> wi.HyperNetwork:
    """Return a trained variant; it is trained once."""
    variant = VARIANTS[name]
    return _trained(variant.made(budget), name, lab, [lab.data()], seed)


def _trained(
    preset: HyperPreset, name: str, lab: Lab, data: list[ImageData], seed: int, start: Any = None
) -> wi.HyperNetwork:
    folder = _folder(lab, name, preset.training.steps, seed)
    if not (folder / "config.json").exists():
        train_hypernet(
            preset,
            data,
            out=folder,
            ancestor=ancestor(lab) if preset.ancestor else None,
            start=start,
            seed=seed,
            resume=True,
            cache_dir=lab.cache_dir,
            progress=False,
        )
    return wi.HyperNetwork.from_pretrained(folder)


def _folder(lab: Lab, name: str, steps: int, seed: int) -> Path:
    return lab.folder / "hypernets" / f"{slug(name)}-{steps}-{seed}"


def build(size: tuple[int, int], data: ImageData) -> nn.Module:
    """Return a target with timm's own random weights."""
    kwargs = {**micro(*size), "num_classes": data.classes, "in_chans": len(data.mean)}
    return timm.create_model("vit_tiny_patch16_224", **kwargs)


def score(name: str, size: tuple[int, int], lab: Lab, budget: Budget, seed: int) -> dict[str, Any]:
    """Return the row of one start of one target: at once, and of some after the short budget."""
    data = lab.data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(size, data)
    row: dict[str, Any] = {"name": name, "width": size[0], "depth": size[1], "seed": seed}
    row["held_out"] = size in HELD
    if name in VARIANTS:
        bundle = hypernet(name, lab, budget, seed=0)
        config = bundle.hyper_config
        inherits = config.kind == "pith"
        began = time.perf_counter()
        wi.init_from_hypernet(model, bundle, ancestor=ancestor(lab) if inherits else None)
        row["start_seconds"] = round(time.perf_counter() - began, 3)
        row["parameters"] = sum(tensor.numel() for tensor in bundle.tensors.values())
        row["meta_steps"], row["meta_seconds"] = budget.steps, bundle.config.provenance["seconds"]
    elif name == "rule alone":
        wi.project_from(ancestor(lab), model)
    elif name == "project_from, calibrated":
        stream = data.batches(range(10), batch_size=64, seed=seed)
        wi.project_from(ancestor(lab), model, calibration=[images for images, _ in stream])
    if size == ANCESTOR:
        row["cosine"] = round(cosine(model, ancestor(lab)), 3)
    row["at_once"] = round(accuracy(model, data.test, data)[0], 2)
    if size not in TRAINED:
        return row
    return row | _short(model, data, lab, seed, learned=name != "timm default")


def _short(
    model: nn.Module, data: ImageData, lab: Lab, seed: int, *, learned: bool
) -> dict[str, Any]:
    """Train for the short budget; return what it took and gave."""
    short = lab.scale.short
    lr = lab.scale.lr if learned else short.lr
    config = replace(short, lr=lr, seed=seed)
    history = train(model, data, config, eval_every=config.steps)
    trained, balanced = accuracy(model, data.test, data)
    return {
        "steps": config.steps,
        "seconds": round(history.seconds, 1),
        "trained": round(trained, 2),
        "balanced": round(balanced, 2),
    }


def cosine(model: nn.Module, other: nn.Module) -> float:
    """Return the mean cosine of two models' qkv weights, block by block."""
    ours, theirs = (
        torch.stack([value.flatten() for key, value in one.state_dict().items() if "qkv.w" in key])
        for one in (model, other)
    )
    return float(functional.cosine_similarity(ours, theirs).mean())


def task_data(name: str, lab: Lab) -> ImageData:
    """Return a task in the shape that all of them have: 32 pixels, three channels."""
    return lab.data("" if name == TASKS[0] else name).in_shape(32, 3)


def multi_task(lab: Lab, budget: Budget, seed: int) -> list[dict[str, Any]]:
    """Return rows of TAL, trained on all tasks but one, and of LoGAH, trained on each alone."""
    tasks = [task_data(name, lab) for name in TASKS]
    first = hypernet("TAL", lab, budget, seed=0)
    preset = get_hypernet_preset("micro-tal-tasks")
    config = replace(preset.config, **budget.larger)
    training = preset.training.planned(steps=budget.steps)
    preset = replace(preset, config=config, training=training, watch=())
    tal = _trained(preset, "tal tasks", lab, tasks, seed, start=first.module())
    each = replace(budget, steps=budget.steps // len(tasks))
    rows = []
    for task in (*tasks, task_data(UNSEEN, lab)):
        unseen = task.name == task_data(UNSEEN, lab).name
        embedding = task_embedding(ancestor(lab), task)
        rows.append(_task_row("TAL, all tasks", tal, task, lab, seed, embedding, unseen=unseen))
        if not unseen:
            alone = replace(VARIANTS["LoGAH"].made(each), watch=(), channels=3)
            own = _trained(alone, f"logah {task.name}", lab, [task], seed)
            rows.append(_task_row("LoGAH, each task", own, task, lab, seed))
        rows.append(_task_row("timm default", None, task, lab, seed, unseen=unseen))
    return rows


def _task_row(
    name: str,
    bundle: wi.HyperNetwork | None,
    task: ImageData,
    lab: Lab,
    seed: int,
    embedding: Tensor | None = None,
    *,
    unseen: bool = False,
) -> dict[str, Any]:
    """Return a row of one task, on the ancestor's own size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(ANCESTOR, task)
    row = {"name": name, "task": task.name, "unseen": unseen, "seed": seed}
    row |= {"width": ANCESTOR[0], "depth": ANCESTOR[1], "classes": task.classes}
    if bundle is not None:
        wi.init_from_hypernet(model, bundle, task=embedding)
        row["meta_steps"] = bundle.config.provenance["recipe"]["steps"]
    row["at_once"] = round(accuracy(model, task.test, task)[0], 2)
    return row | _short(model, task, lab, seed, learned=bundle is not None)
