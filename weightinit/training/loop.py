"""The one loop of training, under accelerate: alone, or in each process of a torchrun."""

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
from weightinit.training.config import TrainingConfig
from weightinit.training.contexts import seeded, subseed
from weightinit.training.tasks import Data, task_batches

__all__ = ["accelerator", "batches", "distillation_loss", "follow", "train"]


def train(
    module: nn.Module,
    data: Data | Sequence[Data],
    config: TrainingConfig,
    *,
    ancestor: nn.Module | None = None,
    workers: int = 0,
    **options: Any,
) -> History:
    """Train ``module`` in place on images or texts, from labels or an ancestor's logits.

    Args:
        module: maps images to logits, or tokens to an object with ``logits``; a plain model or a
            ConstrainedModel.
        data: data to train on, or several tasks of one kind, one a step; validation data is scored,
            test data is left alone.
        config: how to train.
        ancestor: frozen model whose logits are the soft targets, unless ``loss`` is ``"ce"``.
        workers: number of processes that augment images.
        **options: ``out``, ``resume``, ``save_every``, ``eval_every`` and ``progress`` of
            :func:`follow`.

    Returns:
        The history, with losses and validation scores.

    Raises:
        WeightInitError: if the loss needs an ancestor and there is none, the checkpoint is of
            another config, or the loss is not finite.
    """
    if config.loss != "ce" and ancestor is None:
        raise WeightInitError(
            f"loss {config.loss!r} needs an ancestor: pass ancestor=, or use loss='ce'"
        )
    tasks = data if isinstance(data, Sequence) else [data]
    fleet = accelerator()
    module.to(fleet.device).train()
    if ancestor is not None:
        ancestor.to(fleet.device).eval()
    cuda = (fleet.device.index or 0,) if fleet.device.type == "cuda" else ()

    def losses(steps: range) -> Iterator[list[Tensor]]:
        for step, task, inputs, targets in batches(config, tasks, steps, workers):
            with seeded(subseed(config.seed, 4, step, fleet.process_index), cuda):
                with config.autocast(fleet.device):
                    with torch.no_grad():
                        soft = None if config.loss == "ce" else ancestor
                        teacher = soft(inputs) if soft is not None else None
                    out = module(inputs)
                if teacher is None:
                    loss = tasks[task].loss(out, targets, config.label_smoothing)
                else:
                    loss = distillation_loss(config.loss, out, targets, teacher)
            yield [loss]

    def score() -> dict[str, float]:
        return {"val": sum(task.score(module) for task in tasks) / len(tasks)}

    return follow(config, module, losses, score, **options)


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


def batches(
    config: TrainingConfig, tasks: Sequence[Data], steps: range, workers: int = 0
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield step, task, and this process's inputs and targets, on its device."""
    fleet = accelerator()
    found = task_batches(
        tasks,
        steps,
        seed=config.seed,
        temperature=config.task_temperature,
        batch_size=config.batch_size,
        augment=config.augment,
        label_smoothing=config.label_smoothing,
        rank=fleet.process_index,
        world=fleet.num_processes,
        workers=workers,
    )
    for step, (task, inputs, targets) in zip(steps, found, strict=True):
        yield step, task, inputs.to(fleet.device), targets.to(fleet.device)


def follow(
    config: TrainingConfig,
    module: nn.Module,
    losses: Callable[[range], Iterator[Iterable[Tensor]]],
    score: Callable[[], Mapping[str, float]],
    *,
    notes: Mapping[str, Any] | None = None,
    out: Path | None = None,
    resume: bool = False,
    save_every: int = 500,
    eval_every: int = 0,
    progress: bool | None = None,
) -> History:
    """Follow a config: the steps of the optimizer, checkpoints and the history.

    Args:
        config: how to train.
        module: network whose parameters are trained where they require gradients.
        losses: yields for each of the steps the terms of its loss; the gradients of one term are
            computed before the next is asked for.
        score: measures the module, on validation data, as ``"val"`` and more.
        notes: what the history says beside the config; a resumed run must say the same.
        out: folder for ``checkpoint.safetensors`` and ``history.json``; None writes nothing.
        resume: go on from the checkpoint in ``out``, if there is one, bit for bit.
        save_every: steps between checkpoints.
        eval_every: steps between validations; 0 validates at the end alone.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The history, whose last row has the scores.

    Raises:
        WeightInitError: if the checkpoint is of another config or model, or the loss is not finite.
    """
    fleet = accelerator()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = config.optimizer(module)
    schedule = config.schedule(optimizer)
    scaler = torch.amp.GradScaler(fleet.device.type, enabled=config.precision == "fp16")
    history, start = History(asdict(config) | dict(notes or {})), 0
    file = out / "checkpoint.safetensors" if out else None
    if file and resume and file.exists():
        state = load_checkpoint(file, module, optimizer)
        if state["history"]["config"] != history.config:
            raise WeightInitError(
                f"{file} was trained by another config ({state['history']['config']}): resume with "
                "the same options, or start in another folder"
            )
        scaler.load_state_dict(state["scaler"])
        history, start = History(**state["history"]), state["step"]
        schedule.step_update(start)
    _share(module, fleet)
    steps = range(start, config.steps)
    terms = losses(steps)
    report = max(1, min(50, config.steps // 20))
    began, recent = time.monotonic() - history.seconds, []

    def step(_: int) -> Tensor:
        total = torch.zeros((), device=fleet.device)
        for loss in next(terms):
            scaler.scale(loss).backward()
            total += loss.detach()
        _average(parameters, fleet)
        if config.clip_grad:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, config.clip_grad)
        return total

    def after(done: int, loss: Tensor) -> dict[str, float]:
        recent.append(loss)
        row: dict[str, float] = {}
        scored = done == config.steps or (eval_every and not done % eval_every)
        if scored or not done % report:
            row = {"step": done, "lr": optimizer.param_groups[0]["lr"]}
            row["loss"] = float(torch.stack(recent).mean())
            row |= score() if scored else {}
            history.rows.append(row)
            recent.clear()
        schedule.step_update(done)
        history.seconds = time.monotonic() - began
        if file and fleet.is_main_process and (done == config.steps or not done % save_every):
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
