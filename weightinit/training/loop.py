"""Training by a recipe: of ancestors, templates and targets; hypernetworks follow one too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.inherit.fitting import run
from weightinit.training.checkpoint import History, load_checkpoint, save_checkpoint
from weightinit.training.contexts import seeded, subseed
from weightinit.training.recipe import Recipe
from weightinit.training.tasks import Data, task_batches

__all__ = ["accelerator", "distillation_loss", "follow", "train"]


def train(
    module: nn.Module,
    data: Data | Sequence[Data],
    recipe: Recipe,
    *,
    ancestor: nn.Module | None = None,
    **options: Any,
) -> History:
    """Train ``module`` in place, under accelerate: alone, or in each process of a torchrun.

    Args:
        module: maps images to logits, or tokens to an object with ``logits``; a plain model or a
            ConstrainedModel.
        data: data to train on, or several tasks of one kind, one a step; validation data is scored,
            test data is left alone.
        recipe: how to train.
        ancestor: frozen model whose logits are the soft targets, unless ``loss`` is ``"ce"``.
        **options: ``workers``, ``out``, ``resume``, ``save_every``, ``eval_every`` and ``progress``
            of :func:`follow`.

    Returns:
        The history, with losses and validation scores.

    Raises:
        WeightInitError: if the loss needs an ancestor and there is none, the checkpoint is of
            another recipe, or the loss is not finite.
    """
    if recipe.loss != "ce" and ancestor is None:
        raise WeightInitError(
            f"loss {recipe.loss!r} needs an ancestor: pass ancestor=, or use loss='ce'"
        )
    tasks = data if isinstance(data, Sequence) else [data]
    fleet = accelerator()
    module.to(fleet.device).train()
    if ancestor is not None:
        ancestor.to(fleet.device).eval()
    cuda = (fleet.device.index or 0,) if fleet.device.type == "cuda" else ()

    def losses(step: int, task: int, inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        with seeded(subseed(recipe.seed, 4, step, fleet.process_index), cuda):
            with recipe.autocast(fleet.device):
                with torch.no_grad():
                    teacher = None if ancestor is None or recipe.loss == "ce" else ancestor(inputs)
                out = module(inputs)
            if teacher is None:
                loss = tasks[task].loss(out, targets, recipe.label_smoothing)
            else:
                loss = distillation_loss(recipe.loss, out, targets, teacher)
        yield loss

    def score() -> dict[str, float]:
        return {"val": sum(task.score(module) for task in tasks) / len(tasks)}

    return follow(recipe, module, tasks, losses, score, **options)


def distillation_loss(kind: str, logits: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
    """Return WAVE's Eq. 7, KL(ancestor || module) + CE, or of kind ``"soft"`` the KL alone.

    Logits of the module are ``[B, n]``, or ``[B, poolings, n]``, whose losses are averaged; logits
    of the ancestor and targets, distributions over the classes, are ``[B, n]``.
    """
    heads = (-1,) + (1,) * (logits.dim() - 2) + (logits.shape[-1],)
    log = functional.log_softmax(logits.float(), -1)
    wanted = functional.log_softmax(teacher.float(), -1).view(heads).expand_as(log)
    kl = functional.kl_div(log, wanted, log_target=True, reduction="none").sum(-1).mean()
    return kl if kind == "soft" else kl - (targets.view(heads) * log).sum(-1).mean()


def follow(
    recipe: Recipe,
    module: nn.Module,
    tasks: Sequence[Data],
    losses: Callable[[int, int, Tensor, Tensor], Iterable[Tensor]],
    score: Callable[[], Mapping[str, float]],
    *,
    workers: int = 0,
    notes: Mapping[str, Any] | None = None,
    out: Path | None = None,
    resume: bool = False,
    save_every: int = 500,
    eval_every: int = 0,
    progress: bool | None = None,
) -> History:
    """Follow a recipe: batches, the steps of the optimizer, checkpoints and the history.

    Args:
        recipe: how to train.
        module: network whose parameters are trained where they require gradients.
        tasks: data sets to draw batches from.
        losses: from step, task, inputs and targets to the terms of the loss; the gradients of one
            are computed before the next is asked for.
        score: measures the module, on validation data, as ``"val"`` and more.
        workers: number of processes that augment images.
        notes: what the history says beside the recipe; a resumed run must say the same.
        out: folder for ``checkpoint.safetensors`` and ``history.json``; None writes nothing.
        resume: go on from the checkpoint in ``out``, if there is one, bit for bit.
        save_every: steps between checkpoints.
        eval_every: steps between validations; 0 validates at the end alone.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The history, whose last row has the scores.

    Raises:
        WeightInitError: if the checkpoint is of another recipe or model, or the loss is not finite.
    """
    fleet = accelerator()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = recipe.optimizer(module)
    schedule = recipe.schedule(optimizer)
    scaler = torch.amp.GradScaler(fleet.device.type, enabled=recipe.precision == "fp16")
    history, start = History(asdict(recipe) | dict(notes or {})), 0
    file = out / "checkpoint.safetensors" if out else None
    if file and resume and file.exists():
        state = load_checkpoint(file, module, optimizer)
        if state["history"]["recipe"] != history.recipe:
            raise WeightInitError(
                f"{file} was trained by another recipe ({state['history']['recipe']}): resume with "
                "the same options, or start in another folder"
            )
        scaler.load_state_dict(state["scaler"])
        history, start = History(**state["history"]), state["step"]
        schedule.step_update(start)
    _share(module, fleet)
    steps = range(start, recipe.steps)
    batches = task_batches(
        tasks,
        steps,
        seed=recipe.seed,
        temperature=recipe.task_temperature,
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        label_smoothing=recipe.label_smoothing,
        rank=fleet.process_index,
        world=fleet.num_processes,
        workers=workers,
    )
    report = max(1, min(50, recipe.steps // 20))
    began, recent = time.monotonic() - history.seconds, []

    def step(index: int) -> Tensor:
        task, inputs, targets = next(batches)
        total = torch.zeros((), device=fleet.device)
        for loss in losses(index, task, inputs.to(fleet.device), targets.to(fleet.device)):
            scaler.scale(loss).backward()
            total += loss.detach()
        _average(parameters, fleet)
        if recipe.clip_grad:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
        return total

    def after(done: int, loss: Tensor) -> dict[str, float]:
        recent.append(loss)
        row: dict[str, float] = {}
        scored = done == recipe.steps or (eval_every and not done % eval_every)
        if scored or not done % report:
            row = {"step": done, "lr": optimizer.param_groups[0]["lr"]}
            row["loss"] = float(torch.stack(recent).mean())
            row |= score() if scored else {}
            history.rows.append(row)
            recent.clear()
        schedule.step_update(done)
        history.seconds = time.monotonic() - began
        if file and fleet.is_main_process and (done == recipe.steps or not done % save_every):
            record = {"step": done, "history": asdict(history), "scaler": scaler.state_dict()}
            save_checkpoint(file, module, optimizer, record)
            history.save(file.with_name("history.json"))
        return {name: value for name, value in row.items() if name in ("lr", "loss", "val")}

    progress = progress if fleet.is_main_process else False
    run(steps, step, optimizer, scaler=scaler, after=after, progress=progress)
    fleet.wait_for_everyone()
    return history


def accelerator() -> Any:
    """Return accelerate's view of processes and devices, as torchrun or its launcher set it."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise WeightInitError(
            "training needs accelerate: install it with pip install 'weightinit[train]'"
        ) from error
    # accelerate overlooks torchrun on a machine without accelerators unless it is told
    return Accelerator(cpu=not torch.accelerator.is_available())


@torch.no_grad()
def _share(module: nn.Module, fleet: Any) -> None:
    """Give every process the weights of the first."""
    if fleet.num_processes > 1:
        from accelerate.utils import broadcast

        for value in module.state_dict().values():
            value.copy_(broadcast(value.clone()))


def _average(parameters: Sequence[nn.Parameter], fleet: Any) -> None:
    """Average gradients over processes; a hypernetwork's architectures differ among them."""
    if fleet.num_processes == 1:
        return
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = fleet.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
