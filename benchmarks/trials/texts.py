"""Hypernetworks of GPT-2s: what their predictions are worth on texts, in bits per byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import weightinit as wi
from trials.corpora import NAMES, corpus
from weightinit.training.config import TrainingConfig
from weightinit.training.contexts import seeded
from weightinit.training.hypernet_presets import get_hypernet_preset
from weightinit.training.hypernet_run import train_hypernet
from weightinit.training.loop import train
from weightinit.training.text import TextData

#: Of every target after its prediction; the rate of predicted and of random weights.
SHORT = TrainingConfig(steps=240, batch_size=32, lr=1e-3, warmup_steps=24)
RANDOM_LR = 3e-3
#: By the name that tables show: the preset, which has seen one of its two targets in training, and
#: its texts.
PRESETS = {
    "LoGAH": ("micro-logah-gpt", ("docstrings",)),
    "TAL, three texts": ("micro-tal-text", NAMES),
}


def rows(folder: Path, steps: int, seed: int) -> list[dict[str, Any]]:
    """Return a row for each hypernetwork, text and target, and of random weights.

    Args:
        folder: of the hypernetworks, which are trained once.
        steps: of each.
        seed: of all.
    """
    found = []
    for name, (preset, texts) in PRESETS.items():
        chosen = get_hypernet_preset(preset)
        chosen = replace(chosen, training=chosen.training.planned(steps=steps))
        out = folder / f"{preset}-{steps}-{seed}"
        tasks = [corpus(text, chosen.context) for text in texts]
        if not (out / "config.json").exists():
            train_hypernet(chosen, tasks, out=out, seed=seed, resume=True, progress=False)
        bundle = wi.HyperNetwork.from_pretrained(out)
        given = _embeddings(out)
        for data in tasks:
            for at, kwargs in enumerate(chosen.watch):
                model = _fresh(kwargs, data, seed)
                wi.init_from_hypernet(model, bundle, task=given.get(data.name))
                found.append(_row(name, model, kwargs, data, SHORT, seed, unseen=at > 0))
    for data in (corpus(name, 64) for name in NAMES):
        for at, kwargs in enumerate(get_hypernet_preset("micro-logah-gpt").watch):
            config = replace(SHORT, lr=RANDOM_LR)
            model = _fresh(kwargs, data, seed)
            found.append(_row("transformers default", model, kwargs, data, config, seed, at > 0))
    return found


def _embeddings(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    file = folder / "training" / "tasks.safetensors"
    return load_file(file) if file.exists() else {}


def _fresh(kwargs: Mapping[str, Any], data: TextData, seed: int) -> nn.Module:
    with seeded(seed):
        return data.build(data.arguments(kwargs))


def _row(
    name: str,
    model: nn.Module,
    kwargs: Mapping[str, Any],
    data: TextData,
    config: TrainingConfig,
    seed: int,
    unseen: bool,
) -> dict[str, Any]:
    row = {
        "name": name,
        "text": data.name,
        "width": kwargs["n_embd"],
        "depth": kwargs["n_layer"],
        "unseen": unseen,
        "seed": seed,
        "at_once": round(data.score(model), 3),
    }
    train(model, data, replace(config, seed=seed), progress=False)
    return row | {"steps": config.steps, "trained": round(data.score(model), 3)}
