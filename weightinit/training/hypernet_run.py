"""Hypernetworks from scratch: an ancestor, its tasks, the meta-training, and a bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import get_sampler
from weightinit.training.augment import seeded
from weightinit.training.data import load_data
from weightinit.training.distill import get_ancestor, versions
from weightinit.training.domains import Data, domain_of
from weightinit.training.hypernet import listed, meta_train
from weightinit.training.hypernet_presets import HyperPreset, get_hypernet_preset
from weightinit.training.images import ImageData
from weightinit.training.language import called, language_ancestor
from weightinit.training.loop import Recipe, accelerator
from weightinit.training.presets import Fed, Network
from weightinit.training.tasks import in_shape, task_embedding
from weightinit.training.text import TextData, load_text

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["train_hypernet", "warm_start"]


def train_hypernet(
    preset: str | HyperPreset,
    data: Sequence[str | os.PathLike[str] | Data] = (),
    *,
    out: str | os.PathLike[str],
    ancestor: AncestorLike | Sequence[AncestorLike] | None = None,
    start: str | os.PathLike[str] | GraphHyperNetwork | None = None,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    precision: str | None = None,
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    command: str = "",
    progress: bool | None = None,
) -> HyperNetwork:
    """Train a hypernetwork and save it.

    Args:
        preset: by name, or one of your own.
        data: of each task, what :func:`weightinit.training.data.load_data` takes, or of a preset on
            texts :func:`weightinit.training.text.load_text`; none is the preset's own.
        out: folder of the bundle; ``training/`` in it holds the checkpoint, the history, and the
            embeddings of the tasks where there are any.
        ancestor: whatever :func:`weightinit.project_from` takes; None trains or downloads the
            preset's own, if it has one. Several, a list or tuple, are all learned from.
        start: the hypernetwork to go on from: TAL's first stage for its second.
        steps: of the meta-training, the warm-up scaled along; None is the preset's.
        seed: of everything.
        resume: go on from the checkpoint in ``out``.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None is the preset's.
        workers: processes that augment images.
        cache_dir: of decoded data and ancestors (default ``~/.cache/weightinit``).
        command: for the provenance.
        progress: None shows bars on a terminal.

    Returns:
        The bundle, with its zero-shot validation scores in ``config.provenance``.

    Raises:
        WeightInitError: if the data is not found, the preset goes on from another and there is no
            ``start``, or the training fails.
    """
    preset = get_hypernet_preset(preset) if isinstance(preset, str) else preset
    if preset.stage1 and start is None:
        raise WeightInitError(
            f"preset {preset.name!r} goes on from {preset.stage1!r}: train that one first and pass "
            "start= (--start), its folder"
        )
    folder = Path(out).expanduser()
    cache = Path(cache_dir or Path.home() / ".cache" / "weightinit").expanduser()
    tasks = [_task(preset, one, seed, cache) for one in data or preset.data]
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise WeightInitError(f"two tasks have one name ({names}): rename a folder or file")
    domain = domain_of(tasks, get_sampler(preset.sampler))
    recipe = preset.recipe.planned(steps=steps, seed=seed, precision=precision)
    given = listed(ancestor)
    found = _ancestor(preset, given[0] if given else None, tasks, cache, seed, progress)
    others = given[1:]
    more = [Ancestor.open(other) for other in others] if found.source else []
    config, embeddings = preset.config, None
    if config.task_dim:
        if found.teacher is None:
            raise WeightInitError(f"preset {preset.name!r} has tasks and no ancestor: pass one")
        embeddings = torch.stack([task_embedding(found.teacher, task) for task in found.tasks])
        config = replace(config, task_dim=embeddings.shape[1])
    with seeded(seed):
        hypernet = GraphHyperNetwork(config)
    card: dict[str, Any] = {"preset": preset.name}
    if start is not None:
        card["start"] = warm_start(hypernet, start)
    history = meta_train(
        hypernet,
        found.tasks,
        recipe,
        sampler=preset.sampler,
        ancestor=[found.source, *more] if found.source and more else found.source,
        teacher=found.teacher,
        embeddings=embeddings,
        out=folder / "training",
        resume=resume,
        eval_every=max(1, recipe.steps // 4),
        watch=preset.watch,
        workers=workers,
        progress=progress,
    )
    hypernet.cpu()
    scores = {name: value for name, value in history.rows[-1].items() if name.startswith("val ")}
    card |= {
        "command": command,
        "data": [task.describe() for task in found.tasks],
        "sampler": get_sampler(preset.sampler).name,
        "ancestor": found.card,
        **({"others": [called(*pair) for pair in zip(others, more, strict=True)]} if more else {}),
        "recipe": asdict(recipe),
        "seconds": round(history.seconds),
        "metric": domain.metric,
        "zero_shot": {name.removeprefix("val "): value for name, value in scores.items()},
        "versions": versions(),
    }
    bundle = HyperNetwork.of(
        hypernet, licence="Apache-2.0", provenance=json.loads(json.dumps(card))
    )
    if accelerator().is_main_process:
        bundle.save_pretrained(folder)
        if embeddings is not None:
            rows = dict(zip(names, embeddings, strict=True))
            save_file(rows, folder / "training" / "tasks.safetensors")
    return bundle


def warm_start(
    hypernet: GraphHyperNetwork, start: str | os.PathLike[str] | GraphHyperNetwork
) -> dict[str, Any]:
    """Copy the weights of equal name and shape into ``hypernet``, in place.

    Args:
        hypernet: to start.
        start: a bundle's name or folder, or a hypernetwork.

    Returns:
        What was copied and what was not, for the provenance.

    Raises:
        WeightInitError: if there is no such bundle, or nothing fits.
    """
    if isinstance(start, GraphHyperNetwork):
        name, given = "memory", start.state_dict()
    else:
        name = Path(start).name
        given: Mapping[str, Tensor] = HyperNetwork.from_pretrained(start).module().state_dict()
    own = hypernet.state_dict()
    fits = [key for key, value in given.items() if key in own and own[key].shape == value.shape]
    if not fits:
        raise WeightInitError(
            f"{name} shares no weights with this hypernetwork: start from another"
        )
    with torch.no_grad():
        for key in fits:
            own[key].copy_(given[key])
    return {"name": name, "copied": len(fits), "fresh": sorted(set(own) - set(fits))}


def _task(preset: HyperPreset, data: str | os.PathLike[str] | Data, seed: int, cache: Path) -> Data:
    if isinstance(data, TextData):
        return data
    if preset.context:
        return data if isinstance(data, ImageData) else load_text(data, context=preset.context)
    if not isinstance(data, ImageData):
        data = load_data(data, seed=seed, image_size=preset.image_size, cache_dir=cache)
    return in_shape(data, preset.image_size, preset.channels or len(data.mean))


@dataclass(frozen=True)
class _Found:
    """An ancestor, what gives its features, its provenance, and the data as it expects them."""

    source: Ancestor | None
    teacher: nn.Module | None
    card: dict[str, Any] | None
    tasks: Sequence[Data]


@dataclass(frozen=True)
class _Own:
    """The preset's own ancestor, of which :func:`get_ancestor` wants to know."""

    ancestor: Network
    ancestor_recipe: Recipe


def _ancestor(
    preset: HyperPreset,
    given: AncestorLike | None,
    tasks: Sequence[Data],
    cache: Path,
    seed: int,
    progress: bool | None,
) -> _Found:
    """Open, train or download the ancestor, if the preset needs one."""
    network = preset.ancestor
    if network is None:
        return _Found(None, None, None, tasks)
    images = [task for task in tasks if isinstance(task, ImageData)]
    texts = [task for task in tasks if isinstance(task, TextData)]
    if texts:
        model, card = language_ancestor(
            given, network, preset.ancestor_recipe, texts, seed=seed, progress=progress
        )
        return _Found(Ancestor.open(model), model, card, tasks)
    if given is None and preset.ancestor_recipe is not None:
        own = _Own(network, preset.ancestor_recipe)
        model, card = get_ancestor(own, images[0], cache_dir=cache, seed=seed, progress=progress)
        return _Found(Ancestor.open(model), model, card, tasks)
    given = network.model if given is None else given
    source = Ancestor.open(given)
    needed = preset.recipe.guide or preset.config.task_dim
    teacher = source.module() if needed else None
    path = Path(given).expanduser() if isinstance(given, (str, os.PathLike)) else None
    card = {"source": called(given, source)}
    if path and not path.exists():
        config = getattr(teacher or source.module(), "pretrained_cfg", None) or {}
        tasks = [_as_pretrained(task, config) for task in images]
        size = config.get("input_size", (3, preset.image_size))[1]
        if teacher is not None and size != preset.image_size:
            teacher = Fed(teacher, size, bf16=False)
    return _Found(source, teacher, card, tasks)


def _as_pretrained(data: ImageData, config: Mapping[str, Any]) -> ImageData:
    """Normalise images as a published ancestor expects them."""
    if len(config.get("mean", ())) != len(data.mean):
        return data
    return replace(data, mean=tuple(config["mean"]), std=tuple(config["std"]))
