"""Hypernetworks from scratch: an ancestor, its tasks, the meta-training, and a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import get_sampler
from weightinit.training.contexts import seeded
from weightinit.training.data import load_data
from weightinit.training.distill import get_ancestor
from weightinit.training.hypernet import listed, meta_train
from weightinit.training.hypernet_presets import HyperPreset, get_hypernet_preset
from weightinit.training.images import ImageData
from weightinit.training.loop import accelerator
from weightinit.training.presets import ResizingModel
from weightinit.training.recipe import Run
from weightinit.training.tasks import Data, check_tasks, task_embedding
from weightinit.training.text import TextData, load_text

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["train_hypernet", "warm_start"]


def train_hypernet(
    preset: str | HyperPreset,
    data: Sequence[str | os.PathLike[str] | Data] = (),
    *,
    ancestor: AncestorLike | Sequence[AncestorLike] | None = None,
    start: str | os.PathLike[str] | GraphHyperNetwork | None = None,
    **run: Any,
) -> HyperNetwork:
    """Train a hypernetwork and save it.

    Args:
        preset: name of a preset, or one of your own.
        data: for each task what :func:`weightinit.training.data.load_data` takes, or for a preset
            on texts :func:`weightinit.training.text.load_text`; none is the preset's own.
        ancestor: whatever :func:`weightinit.project_from` takes; None trains or downloads the
            preset's own, if it has one. Several, a list or tuple, are all learned from.
        start: the hypernetwork to go on from: TAL's first stage for its second.
        **run: see :class:`weightinit.training.recipe.Run`; ``out``, the folder, is required. Its
            ``training/`` also holds the embeddings of the tasks where there are any.

    Returns:
        The bundle, with its zero-shot validation scores in ``config.provenance``.

    Raises:
        WeightInitError: if the data is not found, the preset goes on from another and there is no
            ``start``, or the training fails.
    """
    given = Run(**run)
    preset = get_hypernet_preset(preset) if isinstance(preset, str) else preset
    if preset.stage1 and start is None:
        raise WeightInitError(
            f"preset {preset.name!r} goes on from {preset.stage1!r}: train that one first and pass "
            "start= (--start), its folder"
        )
    if not (data or preset.data):
        raise WeightInitError(
            f"preset {preset.name!r} has no data of its own: pass data= (--data), text files or "
            "folders of them"
        )
    tasks = [_task(preset, one, given) for one in data or preset.data]
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise WeightInitError(f"two tasks have one name ({names}): rename a folder or file")
    sampler, recipe = get_sampler(preset.sampler), given.recipe(preset.recipe)
    check_tasks(tasks, sampler)
    ancestors = listed(ancestor)
    teacher = _teacher(preset, ancestors[0] if ancestors else None, tasks, given)
    sources = [teacher.source, *map(Ancestor.open, ancestors[1:])] if teacher.source else []
    config, embeddings = preset.config, None
    if config.task_dim:
        if teacher.module is None:
            raise WeightInitError(f"preset {preset.name!r} has tasks and no ancestor: pass one")
        embeddings = torch.stack([task_embedding(teacher.module, task) for task in teacher.tasks])
        config = replace(config, task_dim=embeddings.shape[1])
    with seeded(given.seed):
        hypernet = GraphHyperNetwork(config)
    card: dict[str, Any] = {} if start is None else {"start": warm_start(hypernet, start)}
    history = meta_train(
        hypernet,
        teacher.tasks,
        recipe,
        sampler=sampler,
        ancestor=sources,
        teacher=teacher.module,
        embeddings=embeddings,
        watch=preset.watch,
        **given.options(recipe.steps // 4),
    )
    hypernet.cpu()
    if sources[1:]:
        card["others"] = [_name(*pair) for pair in zip(ancestors[1:], sources[1:], strict=True)]
    scores = {name: value for name, value in history.rows[-1].items() if name.startswith("val ")}
    provenance = given.provenance(
        preset.name,
        **card,
        data=[task.describe() for task in tasks],
        sampler=sampler.name,
        ancestor=teacher.card,
        recipe=asdict(recipe),
        seconds=round(history.seconds),
        metric=tasks[0].metric,
        zero_shot={name.removeprefix("val "): value for name, value in scores.items()},
    )
    bundle = HyperNetwork.of(hypernet, licence="Apache-2.0", provenance=provenance)
    if accelerator().is_main_process:
        bundle.save_pretrained(given.folder)
        if embeddings is not None:
            rows = dict(zip(names, embeddings, strict=True))
            save_file(rows, given.folder / "training" / "tasks.safetensors")
    return bundle


def warm_start(
    hypernet: GraphHyperNetwork, start: str | os.PathLike[str] | GraphHyperNetwork
) -> dict[str, Any]:
    """Copy the weights of equal name and shape into ``hypernet``, in place.

    Args:
        hypernet: network to start.
        start: name or folder of a bundle, or a hypernetwork.

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


def _task(preset: HyperPreset, data: str | os.PathLike[str] | Data, run: Run) -> Data:
    """Load a task, images in the preset's shape."""
    if isinstance(data, TextData):
        return data
    if preset.context:
        return data if isinstance(data, ImageData) else load_text(data, context=preset.context)
    if not isinstance(data, ImageData):
        size = preset.image_size
        data = load_data(data, seed=run.seed, image_size=size, cache_dir=run.cache)
    return data.in_shape(preset.image_size, preset.channels or len(data.mean))


class Teacher(NamedTuple):
    """An ancestor, what gives its features, its provenance, and the data as it expects them."""

    source: Ancestor | None
    module: nn.Module | None
    card: dict[str, Any] | None
    tasks: Sequence[Data]


def _teacher(
    preset: HyperPreset, given: AncestorLike | None, tasks: Sequence[Data], run: Run
) -> Teacher:
    """Open, train or download the ancestor, if the preset needs one."""
    network, recipe = preset.ancestor, preset.ancestor_recipe
    if network is None:
        return Teacher(None, None, None, tasks)
    vocabulary = _vocabulary(tasks) if preset.context else 0
    if given is None and recipe is not None:
        data = tasks if vocabulary else tasks[:1]
        options = {"cache_dir": run.cache, "seed": run.seed, "progress": run.progress}
        model, card = get_ancestor(network, recipe, data, **options)
        return Teacher(Ancestor.open(model), model, card, tasks)
    given = network.model if given is None else given
    source = Ancestor.open(given)
    module = source.module() if preset.recipe.guide or preset.config.task_dim else None
    table = source.anatomy.outside.get("embed.token.weight")
    if vocabulary and (table is None or table.size[0] < vocabulary):
        raise WeightInitError(
            f"{source.source} reads no texts of {vocabulary} tokens: use a GPT-2 of that "
            "vocabulary as ancestor"
        )
    if not vocabulary and isinstance(given, (str, os.PathLike)) and not _path(given):
        # a published ancestor expects images as it was trained on
        config = getattr(module or source.module(), "pretrained_cfg", None) or {}
        images = [task for task in tasks if isinstance(task, ImageData)]
        if images and len(config.get("mean", ())) == len(images[0].mean):
            tasks = [task.normalised(config["mean"], config["std"]) for task in images]
        size = config.get("input_size", (3, preset.image_size))[1]
        if module is not None and size != preset.image_size:
            module = ResizingModel(module, size, bf16=False)
    return Teacher(source, module, {"source": _name(given, source)}, tasks)


def _vocabulary(tasks: Sequence[Data]) -> int:
    """Return the size of the vocabulary of all tasks."""
    sizes = {task.vocab for task in tasks if isinstance(task, TextData)}
    if len(sizes) != 1:
        raise WeightInitError(
            f"the tasks have vocabularies of {sorted(sizes)} tokens: load them with one tokenizer, "
            "or as bytes"
        )
    return sizes.pop()


def _path(given: AncestorLike) -> Path | None:
    """Return the path that an ancestor was named by, if there is such a file or folder."""
    path = Path(given).expanduser() if isinstance(given, (str, os.PathLike)) else None
    return path if path and path.exists() else None


def _name(given: AncestorLike, source: Ancestor) -> str:
    """Return the name of an ancestor, without this machine's paths."""
    path = _path(given)
    return path.name if path else source.source
