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
from weightinit.hypernet.network import Hypernet
from weightinit.hypernet.samplers import get_sampler
from weightinit.training.contexts import seeded
from weightinit.training.data import load_data
from weightinit.training.distill import get_ancestor
from weightinit.training.hypernet import listed, meta_train
from weightinit.training.hypernet_presets import HyperPreset, get_hypernet_preset
from weightinit.training.images import ImageData
from weightinit.training.loop import accelerator
from weightinit.training.presets import ResizingModel
from weightinit.training.run import Run
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
    start: str | os.PathLike[str] | Hypernet | None = None,
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
        **run: see :class:`weightinit.training.run.Run`; ``out``, the folder, is required. Its
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
    sampler, tasks = get_sampler(preset.sampler), _tasks(preset, data, given)
    check_tasks(tasks, sampler)
    recipe, ancestors = given.recipe(preset.recipe), listed(ancestor)
    teacher = _teacher(preset, ancestors[0] if ancestors else None, tasks, given)
    others = [(name, Ancestor.open(name)) for name in ancestors[1:] if teacher.source]
    config, embeddings = preset.config, None
    if config.task_dim:
        if teacher.module is None:
            raise WeightInitError(f"preset {preset.name!r} has tasks and no ancestor: pass one")
        embeddings = torch.stack([task_embedding(teacher.module, task) for task in teacher.tasks])
        config = replace(config, task_dim=embeddings.shape[1])
    with seeded(given.seed):
        hypernet = Hypernet(config)
    card: dict[str, Any] = {} if start is None else {"start": warm_start(hypernet, start)}
    history = meta_train(
        hypernet,
        teacher.tasks,
        recipe,
        sampler=sampler,
        ancestor=[source for source in (teacher.source, *(other for _, other in others)) if source],
        teacher=teacher.module,
        embeddings=embeddings,
        watch=preset.watch,
        **given.options(recipe.steps // 4),
    )
    hypernet.cpu()
    if others:
        card["others"] = [_name(*pair) for pair in others]
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
            rows = {task.name: row for task, row in zip(tasks, embeddings, strict=True)}
            save_file(rows, given.folder / "training" / "tasks.safetensors")
    return bundle


def warm_start(hypernet: Hypernet, start: str | os.PathLike[str] | Hypernet) -> dict[str, Any]:
    """Copy the weights of equal name and shape into ``hypernet``, in place.

    Args:
        hypernet: network to start.
        start: name or folder of a bundle, or a hypernetwork.

    Returns:
        What was copied and what was not, for the provenance.

    Raises:
        WeightInitError: if there is no such bundle, or nothing fits.
    """
    if isinstance(start, Hypernet):
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


def _tasks(
    preset: HyperPreset, given: Sequence[str | os.PathLike[str] | Data], run: Run
) -> list[Data]:
    """Load the tasks, images in one shape."""
    tasks: list[Data] = []
    for data in given or preset.data:
        if not isinstance(data, (ImageData, TextData)):
            data = (
                load_text(data, context=preset.context)
                if preset.context
                else load_data(
                    data, seed=run.seed, image_size=preset.image_size, cache_dir=run.cache
                )
            )
        if isinstance(data, ImageData) and not preset.context:
            data = data.in_shape(preset.image_size, preset.channels or len(data.mean))
        tasks.append(data)
    names = [task.name for task in tasks]
    if not tasks:
        raise WeightInitError(
            f"preset {preset.name!r} has no data of its own: pass data= (--data), text files or "
            "folders of them"
        )
    if len(set(names)) != len(names):
        raise WeightInitError(f"two tasks have one name ({names}): rename a folder or file")
    return tasks


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
        data = tasks if preset.context else tasks[:1]
        cache = {"cache_dir": run.cache, "seed": run.seed, "progress": run.progress}
        model, card = get_ancestor(network, recipe, data, **cache)
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
    if (
        not vocabulary
        and isinstance(given, (str, os.PathLike))
        and not Path(given).expanduser().exists()
    ):
        # a published ancestor expects images as it was trained on
        config = getattr(module or source.module(), "pretrained_cfg", None) or {}
        mean, std = config.get("mean", ()), config.get("std", ())
        tasks = [
            task.normalised(mean, std)
            if isinstance(task, ImageData) and len(mean) == len(task.mean)
            else task
            for task in tasks
        ]
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


def _name(given: AncestorLike, source: Ancestor) -> str:
    """Return the name of an ancestor, without this machine's paths."""
    path = Path(given).expanduser() if isinstance(given, (str, os.PathLike)) else None
    return path.name if path and path.exists() else source.source
