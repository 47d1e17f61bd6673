"""The one loop of training, under accelerate: alone, or in each process of a torchrun."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from weightinit.training.contexts import postponed_interrupt, seeded, subseed
from weightinit.training.fleet import accelerator, average_gradients, share
from weightinit.training.tasks import Data, task_batches

__all__ = ["batches", "distillation_loss", "follow", "train"]

#: Seconds between two lines of a log.
LINE_SECONDS = 30.0


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

    notes = {"data": [f"{task.name}, {len(task.train)}" for task in tasks]}
    return follow(config, module, losses, score, notes=notes, **options)


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
    title: str = "training",
) -> History:
    """Follow a config: the steps of the optimizer, checkpoints and the history.

    The first Ctrl-C finishes the step and saves it, if there is a folder to save to.

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
        progress: True shows a bar, False nothing, None a bar on a terminal and elsewhere a line now
            and then.
        title: what is trained, in words.

    Returns:
        The history, whose last row has the scores.

    Raises:
        WeightInitError: if the checkpoint is of another config or model, or the loss is not finite.
        KeyboardInterrupt: after Ctrl-C; it says how to go on.
    """
    fleet = accelerator()
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    averages = {name: p.detach().clone() for name, p in named.items()} if config.ema else {}
    optimizer = config.optimizer(module)
    schedule = config.schedule(optimizer)
    scaler = torch.amp.GradScaler(fleet.device.type, enabled=config.precision == "fp16")
    history, start = History(asdict(config) | dict(notes or {})), 0
    recent: list[Tensor] = []
    file = out / "checkpoint.safetensors" if out else None
    if file and resume and file.exists():
        state = load_checkpoint(file, module, optimizer, averages)
        start = history.resume(file, state)
        scaler.load_state_dict(state["scaler"])
        recent += torch.tensor(state["recent"], device=fleet.device).unbind()
        schedule.step_update(start)
    share(module, fleet)
    steps = range(start, config.steps)
    terms = losses(steps)
    report = max(1, min(50, config.steps // 20))
    began = time.monotonic() - history.seconds
    log = _Log(title, steps, progress is None and fleet.is_main_process)

    def step(_: int) -> Tensor:
        total = torch.zeros((), device=fleet.device)
        for loss in next(terms):
            scaler.scale(loss).backward()
            total += loss.detach()
        average_gradients(parameters, fleet)
        if config.clip_grad:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, config.clip_grad)
        return total

    def after(done: int, loss: Tensor) -> dict[str, float]:
        recent.append(loss)
        row: dict[str, float] = {}
        for name, value in averages.items():
            value.lerp_(named[name].detach(), 1 - config.ema)
        scored = done == config.steps or (eval_every and not done % eval_every)
        if scored or not done % report:
            row = {"step": done, "lr": optimizer.param_groups[0]["lr"]}
            row["loss"] = float(torch.stack(recent).mean())
            if scored:
                with _averaged(named, averages):
                    row |= score()
            history.rows.append(row)
            recent.clear()
        schedule.step_update(done)
        history.seconds = time.monotonic() - began
        note = ""
        due = asked.is_set() or done == config.steps or not done % save_every
        if file and due and fleet.is_main_process:
            note = f"checkpoint in {file}"
            record = {"step": done, "history": asdict(history), "scaler": scaler.state_dict()}
            record["recent"] = [float(loss) for loss in recent]
            save_checkpoint(file, module, optimizer, record, averages)
            history.save(file.with_name("history.json"))
        shown = {name: value for name, value in row.items() if name in ("lr", "loss", "val")}
        log(done, shown, note)
        if asked.is_set():
            raise KeyboardInterrupt(
                f"{title} stopped after step {done} of {config.steps}, which {file} holds: the "
                "same command with --resume (resume=True) goes on"
            )
        return shown

    with postponed_interrupt(file is not None and fleet.num_processes == 1) as asked:
        shown = progress if fleet.is_main_process else False
        run(steps, step, optimizer, scaler=scaler, after=after, progress=shown, title=title)
    _swap(named, averages)
    fleet.wait_for_everyone()
    return history


class _Log:
    """Lines on stderr, where no bar is seen: at checkpoints, and now and then."""

    def __init__(self, title: str, steps: range, wanted: bool) -> None:
        self.title, self.steps, self.wanted = title, steps, wanted and not sys.stderr.isatty()
        self.began = self.last = time.monotonic()

    def __call__(self, done: int, row: Mapping[str, float], note: str) -> None:
        """Print what is known after a step, unless a line was printed a moment ago."""
        now = time.monotonic()
        if not self.wanted or not (note or (row and now - self.last > LINE_SECONDS)):
            return
        self.last, whole = now, self.steps.stop
        left = (now - self.began) / (done - self.steps.start) * (whole - done)
        values = [f"{name} {value:.4g}" for name, value in row.items()]
        parts = [f"{self.title}: step {done} of {whole}", *values, f"{left:.0f} s left", note]
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)


@torch.no_grad()
def _swap(parameters: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
    """Exchange parameters and their averages, where there are any."""
    for name, value in averages.items():
        held = parameters[name].clone()
        parameters[name].copy_(value)
        value.copy_(held)


@contextmanager
def _averaged(parameters: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> Iterator[None]:
    """Put the averages in the place of the parameters inside the block."""
    _swap(parameters, averages)
    try:
        yield
    finally:
        _swap(parameters, averages)
