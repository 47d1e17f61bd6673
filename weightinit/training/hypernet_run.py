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
from weightinit.training.fleet import accelerator
from weightinit.training.hypernet import listed, meta_train
from weightinit.training.hypernet_presets import HyperPreset, get_hypernet_preset
from weightinit.training.images import ImageData
from weightinit.training.run import Run
from weightinit.training.tasks import Data, check_tasks, task_embedding
from weightinit.training.teacher import as_published, get_ancestor, is_path, name_of
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
    if not (data or preset.data):
        raise WeightInitError(
            f"preset {preset.name!r} has no data of its own: pass data= (--data), text files or "
            "folders of them"
        )
    tasks = [_task(preset, one, given) for one in data or preset.data]
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise WeightInitError(f"two tasks have one name ({names}): rename a folder or file")
    sampler, config = get_sampler(preset.sampler), given.config(preset.training)
    check_tasks(tasks, sampler)
    for task in tasks:
        task.check(config.batch_size, config.augment, accelerator().num_processes)
    begun = None if start is None else _weights(start)
    if accelerator().is_main_process:
        given.prepare()
    ancestors = listed(ancestor)
    teacher = _teacher(preset, ancestors[0] if ancestors else None, tasks, given)
    sources = [teacher.source, *map(Ancestor.open, ancestors[1:])] if teacher.source else []
    sizes, embeddings = preset.config, None
    if sizes.task_dim:
        if teacher.module is None:
            raise WeightInitError(f"preset {preset.name!r} has tasks and no ancestor: pass one")
        embeddings = torch.stack([task_embedding(teacher.module, task) for task in teacher.tasks])
        sizes = replace(sizes, task_dim=embeddings.shape[1])
    with seeded(given.seed):
        hypernet = GraphHyperNetwork(sizes)
    card: dict[str, Any] = {} if begun is None else {"start": warm_start(hypernet, *begun)}
    history = meta_train(
        hypernet,
        teacher.tasks,
        config,
        sampler=sampler,
        ancestor=sources,
        teacher=teacher.module,
        embeddings=embeddings,
        watch=preset.watch,
        **given.options("hypernetwork", config.steps // 4),
    )
    hypernet.cpu()
    if sources[1:]:
        card["others"] = [name_of(*pair) for pair in zip(ancestors[1:], sources[1:], strict=True)]
    zero_shot = {k.removeprefix("val "): v for k, v in history.rows[-1].items() if "val " in k}
    provenance = given.provenance(
        preset.name,
        **card,
        data=[task.describe() for task in tasks],
        sampler=sampler.name,
        ancestor=teacher.card,
        recipe=asdict(config),
        seconds=round(history.seconds),
        metric=tasks[0].metric,
        zero_shot=zero_shot,
    )
    bundle = HyperNetwork.of(hypernet, licence="Apache-2.0", provenance=provenance)
    if accelerator().is_main_process:
        bundle.save_pretrained(given.folder)
        if embeddings is not None:
            rows = dict(zip(names, embeddings, strict=True))
            save_file(rows, given.folder / "training" / "tasks.safetensors")
    return bundle


def _weights(
    start: str | os.PathLike[str] | GraphHyperNetwork,
) -> tuple[str, Mapping[str, Tensor]]:
    """Return the name and weights of a hypernetwork to go on from."""
    if isinstance(start, GraphHyperNetwork):
        return "memory", start.state_dict()
    return Path(start).name, HyperNetwork.from_pretrained(start).module().state_dict()


def warm_start(
    hypernet: GraphHyperNetwork, name: str, given: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Copy the weights of equal name and shape into ``hypernet``, in place; return which."""
    own = hypernet.state_dict()
    fits = {k: value for k, value in given.items() if k in own and own[k].shape == value.shape}
    if not fits:
        raise WeightInitError(
            f"{name} shares no weights with this hypernetwork: start from another"
        )
    hypernet.load_state_dict(fits, strict=False)
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
    network = preset.ancestor
    if network is None:
        return Teacher(None, None, None, tasks)
    vocabulary = _vocabulary(tasks) if preset.context else 0
    if given is None and network.training is not None:
        data = tasks if vocabulary else tasks[:1]
        model, card = get_ancestor(network, data, **run.ancestor_options)
        return Teacher(Ancestor.open(model), model, card, tasks)
    own, given = given is None, network.model if given is None else given
    source = Ancestor.open(given)
    needed = preset.training.guide or preset.config.task_dim
    described = Ancestor.open(preset.features.model) if own and preset.features else source
    module = described.module() if needed else None
    table = source.anatomy.word_table
    if vocabulary and (table is None or table.size[0] < vocabulary):
        raise WeightInitError(
            f"{source.source} reads no texts of {vocabulary} tokens: use a GPT-2 of that "
            "vocabulary as ancestor"
        )
    if not vocabulary and isinstance(given, (str, os.PathLike)) and not is_path(given):
        published, tasks = as_published(module or source.module(), tasks)
        module = published if needed else None
    return Teacher(source, module, {"source": name_of(given, source)}, tasks)


def _vocabulary(tasks: Sequence[Data]) -> int:
    """Return the size of the vocabulary of all tasks."""
    sizes = {task.vocab for task in tasks if isinstance(task, TextData)}
    if len(sizes) != 1:
        raise WeightInitError(
            f"the tasks have vocabularies of {sorted(sizes)} tokens: load them with one tokenizer, "
            "or as bytes"
        )
    return sizes.pop()
