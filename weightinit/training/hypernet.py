"""Meta-training: a hypernetwork learns from the loss of the networks whose weights it predicts.

GHN-3, LoGAH, TAL (both stages) and PITH differ in what is passed on and in the terms of the loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import Sampler, get_sampler, sample
from weightinit.inherit.running import captured
from weightinit.training.augment import subseed
from weightinit.training.checkpoint import History, restore, store
from weightinit.training.domains import Data, Domain, domain_of
from weightinit.training.hypernet_loss import MetaRecipe, guidance, meta_loss
from weightinit.training.images import ImageData
from weightinit.training.loop import accelerator, optimizer_of, progress_bar
from weightinit.training.targets import Targets
from weightinit.training.tasks import TaskBatches, task_embedding
from weightinit.training.text import TextData

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["MetaRecipe", "guidance", "listed", "meta_train"]


def meta_train(
    hypernet: GraphHyperNetwork,
    data: Data | Sequence[Data],
    recipe: MetaRecipe,
    *,
    sampler: str | Sampler = "micro",
    ancestor: AncestorLike | Sequence[AncestorLike] | None = None,
    teacher: nn.Module | None = None,
    embeddings: Tensor | None = None,
    out: Path | None = None,
    resume: bool = False,
    save_every: int = 500,
    eval_every: int = 0,
    watch: Sequence[Mapping[str, Any]] = (),
    workers: int = 0,
    progress: bool | None = None,
) -> History:
    """Train ``hypernet`` in place, under accelerate: alone, or in each process of a torchrun.

    Args:
        hypernet: PITH takes the ancestor's weights, one with a ``task_dim`` the task's embedding.
        data: to train on, or several tasks of one image shape, or several texts, one a step;
            validation data is scored, test images left alone.
        recipe: how.
        sampler: of the architectures.
        ancestor: fixed; whatever :func:`weightinit.project_from` takes. PITH may learn from
            several, a list or tuple, one drawn for each architecture; the first is scored.
        teacher: what gives the ancestor's features, in the shape of the data; None is the ancestor.
        embeddings: of the tasks ``[tasks, task_dim]``; None computes them from the teacher.
        out: folder for ``checkpoint.safetensors`` and ``history.json``; None writes nothing.
        resume: go on from the checkpoint in ``out``, if there is one, bit for bit.
        save_every: steps between checkpoints.
        eval_every: steps between validations; 0 validates at the end alone.
        watch: architectures whose zero-shot accuracy (of texts: bits per byte) is measured.
        workers: processes that augment images.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The history: losses, and where it was measured the mean score as ``"val"`` beside that of
        each watched architecture, ``"val <width>x<depth>"``.

    Raises:
        ProjectionError: if the ancestor or an architecture does not fit the hypernetwork.
        WeightInitError: if the recipe needs an ancestor and there is none, the tasks differ in
            shape, the checkpoint is of another recipe, or the loss is not finite.
    """
    tasks = (data,) if isinstance(data, (ImageData, TextData)) else tuple(data)
    fleet, drawn = accelerator(), get_sampler(sampler)
    domain = domain_of(tasks, drawn)
    device = fleet.device
    hypernet.to(device)
    size = domain.image_size(tasks)
    sources = [Ancestor.open(one) for one in listed(ancestor)] or [None]
    needed = recipe.guide or (hypernet.config.task_dim and embeddings is None)
    if needed and teacher is None:
        if sources[0] is None:
            raise WeightInitError(
                "the recipe's guide and the task embeddings come from an ancestor: pass ancestor="
            )
        teacher = sources[0].module()
    if teacher is not None:
        teacher.to(device).eval()
    if hypernet.config.task_dim and embeddings is None and teacher is not None:
        embeddings = torch.stack([task_embedding(teacher, task) for task in tasks])
    embeddings = None if embeddings is None else embeddings.to(device)
    guide = _feature(teacher, tasks[0], domain) if teacher is not None and recipe.guide else 0
    several = [Targets(hypernet, source, guide) for source in sources]

    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    history, start = History(asdict(recipe) | {"sampler": drawn.name}), 0
    report = max(1, min(50, recipe.steps // 20))
    batches = TaskBatches(
        tasks,
        temperature=recipe.task_temperature,
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        seed=recipe.seed,
        label_smoothing=recipe.label_smoothing,
        rank=fleet.process_index,
        world=fleet.num_processes,
        workers=workers,
    )
    with _frozen(hypernet, recipe.frozen):
        optimizer = optimizer_of(hypernet, recipe)
        parameters = [p for p in hypernet.parameters() if p.requires_grad]
        file = out / "checkpoint.safetensors" if out else None
        if file and resume and file.exists():
            history, start = restore(file, hypernet, optimizer, scaler, history)
        _same_start(hypernet, fleet)
        began, mean = time.monotonic() - history.seconds, []
        bar = progress_bar(recipe.steps, start, progress, fleet.is_main_process)
        source_steps = batches.batches(range(start, recipe.steps))
        for step, (which, inputs, labels) in enumerate(source_steps, start):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step)
            inputs, labels = inputs.to(device), labels.to(device)
            task = None if embeddings is None else embeddings[which]
            generator = torch.Generator().manual_seed(
                subseed(recipe.seed, 5, step, fleet.process_index)
            )
            losses = []
            with recipe.autocast(device):
                wanted = _features(teacher, inputs) if recipe.guide and teacher else None
            for _ in range(recipe.architectures):
                targets = several[0]
                if len(several) > 1:
                    targets = several[int(torch.randint(len(several), (), generator=generator))]
                target = targets(sample(drawn, generator, image_size=size), tasks[which])
                loss = meta_loss(targets, target, inputs, labels, task, wanted, recipe)
                if not torch.isfinite(loss):
                    raise WeightInitError(
                        f"the loss is {float(loss.detach())} at step {step}: use a lower lr than "
                        f"{recipe.lr}"
                    )
                scaler.scale(loss / recipe.architectures).backward()
                losses.append(loss.detach())
            _average(parameters, fleet)
            scaler.unscale_(optimizer)
            if recipe.clip_grad:
                nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            mean += losses
            bar.update()
            done = step + 1
            scored = done == recipe.steps or (eval_every and not done % eval_every)
            if scored or not done % report:
                row = {"step": done, "lr": recipe.lr_at(step)}
                row["loss"] = float(torch.stack(mean).mean())
                if scored:
                    row |= _scores(several[0], watch, tasks, embeddings)
                bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if " " not in k})
                history.rows.append(row)
                mean = []
            history.seconds = time.monotonic() - began
            if file and fleet.is_main_process and (done == recipe.steps or not done % save_every):
                store(file, hypernet, optimizer, scaler, history, done)
        bar.close()
    fleet.wait_for_everyone()
    return history


def listed(ancestor: AncestorLike | Sequence[AncestorLike] | None) -> list[AncestorLike]:
    """Return one ancestor, several (a list or tuple) or none as a list."""
    several: Any = ancestor if isinstance(ancestor, (list, tuple)) else [ancestor]
    return [one for one in several if one is not None]


@contextmanager
def _frozen(hypernet: GraphHyperNetwork, frozen: bool) -> Iterator[None]:
    """Take the encoder's layers, but for FiLM, out of the training, and put them back."""
    layers = [
        parameter
        for name, parameter in hypernet.named_parameters()
        if frozen and name.startswith("gnn.") and ".TEN." not in name and parameter.requires_grad
    ]
    try:
        for parameter in layers:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in layers:
            parameter.requires_grad_(True)


@torch.no_grad()
def _features(teacher: nn.Module, inputs: Tensor) -> Tensor:
    with captured(teacher) as found:
        teacher(inputs)
    return found[0]


def _feature(teacher: nn.Module, data: Data, domain: Domain) -> int:
    """Return the width of the teacher's feature."""
    device = next(teacher.parameters()).device
    return _features(teacher, next(domain.inputs(data, 1)).to(device)).shape[-1]


def _scores(
    targets: Targets,
    watch: Sequence[Mapping[str, Any]],
    tasks: Sequence[Data],
    embeddings: Tensor | None,
) -> dict[str, float]:
    """Return the zero-shot validation score of each watched architecture and task, and the mean."""
    found, domain = {}, domain_of(tasks)
    for which, task in enumerate(tasks):
        where = f" {task.name}" if len(tasks) > 1 else ""
        given = None if embeddings is None else embeddings[which]
        for kwargs in watch:
            score = targets.score(kwargs, task, task=given)
            found[f"val {domain.size(kwargs)}{where}"] = round(score, domain.digits)
    return {"val": sum(found.values()) / len(found), **found} if found else {}


@torch.no_grad()
def _same_start(hypernet: GraphHyperNetwork, fleet: Any) -> None:
    """Give every process the weights of the first."""
    if fleet.num_processes > 1:
        from accelerate.utils import broadcast

        for value in hypernet.state_dict().values():
            value.copy_(broadcast(value.clone()))


def _average(parameters: Sequence[nn.Parameter], fleet: Any) -> None:
    """Average gradients over processes, whose architectures differ."""
    if fleet.num_processes == 1:
        return
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = fleet.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
