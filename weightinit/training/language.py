"""Ancestors of texts: small language models that tell tasks apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.training.augment import seeded
from weightinit.training.domains import TEXTS, bits_per_byte
from weightinit.training.loop import Recipe, accelerator, optimizer_of, progress_bar
from weightinit.training.presets import Network
from weightinit.training.tasks import TaskBatches
from weightinit.training.text import TextData

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["called", "language_ancestor", "train_language"]


def language_ancestor(
    given: AncestorLike | None,
    network: Network,
    recipe: Recipe | None,
    tasks: Sequence[TextData],
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a language model of all tasks, in eval mode, and its provenance.

    Args:
        given: whatever :func:`weightinit.project_from` takes; None trains ``network`` on all tasks
            together, a task a step.
        network: whose kwargs are those of ``transformers.GPT2Config``.
        recipe: of its training.
        tasks: of one vocabulary.
        seed: of weights and batches.
        progress: None shows a bar on a terminal.

    Raises:
        WeightInitError: if the tasks differ in vocabulary, or an ancestor's is smaller.
    """
    vocab = {task.vocab for task in tasks}
    if len(vocab) != 1:
        raise WeightInitError(
            f"the tasks have vocabularies of {sorted(vocab)} tokens: load them with one tokenizer, "
            "or as bytes"
        )
    if given is not None:
        source = Ancestor.open(given)
        table = source.anatomy.outside.get("embed.token.weight")
        if table is None or table.size[0] < max(vocab):
            raise WeightInitError(
                f"{source.source} reads no texts of {max(vocab)} tokens: use a GPT-2 of that "
                "vocabulary as ancestor"
            )
        return source.module().eval(), {"source": called(given, source)}
    assert recipe is not None
    with seeded(seed):
        model = TEXTS.build(TEXTS.arguments(network.kwargs, tasks[0]))
    train_language(model, tasks, recipe, seed=seed, progress=progress)
    val = {task.name: round(bits_per_byte(model, task), 4) for task in tasks}
    card = {"model": network.model, "kwargs": dict(network.kwargs), "recipe": asdict(recipe)}
    return model.eval(), card | {"bits_per_byte": val}


def called(given: AncestorLike, source: Ancestor) -> str:
    """Return what an ancestor is called, without this machine's paths.

    Args:
        given: as it was named.
        source: what that is.
    """
    path = Path(given).expanduser() if isinstance(given, (str, os.PathLike)) else None
    return path.name if path and path.exists() else source.source


def train_language(
    model: nn.Module,
    tasks: Sequence[TextData],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """Train a language model in place on texts, one a step, and return it.

    Args:
        model: maps tokens ``[B, T]`` to an object with ``logits [B, T, vocab]``.
        tasks: of its vocabulary.
        recipe: of the training.
        seed: of the batches.
        progress: None shows a bar on a terminal.
    """
    fleet = accelerator()
    model.to(fleet.device).train()
    optimizer = optimizer_of(model, recipe)
    batches = TaskBatches(tasks, batch_size=recipe.batch_size, seed=seed)
    bar = progress_bar(recipe.steps, 0, progress, fleet.is_main_process)
    for step, (_, inputs, wanted) in enumerate(batches.batches(range(recipe.steps))):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        out = model(inputs.to(fleet.device))
        TEXTS.loss(out, wanted.to(fleet.device), recipe.label_smoothing).backward()
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
    bar.close()
    return model
