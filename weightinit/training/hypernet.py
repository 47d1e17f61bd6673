"""Meta-training: a hypernetwork learns from the loss of the networks whose weights it predicts.

GHN-3, LoGAH, TAL (both stages) and PITH differ in what is passed on and in the terms of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import Sampler, get_sampler, sample
from weightinit.inherit.running import captured
from weightinit.training.checkpoint import History
from weightinit.training.config import MetaConfig
from weightinit.training.contexts import subseed
from weightinit.training.fleet import accelerator
from weightinit.training.loop import batches, follow
from weightinit.training.targets import GUIDE, Target, Targets
from weightinit.training.tasks import Data, check_tasks, image_size, task_embedding

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["guidance", "listed", "meta_loss", "meta_train"]


def meta_train(
    hypernet: GraphHyperNetwork,
    data: Data | Sequence[Data],
    config: MetaConfig,
    *,
    sampler: str | Sampler = "micro",
    ancestor: AncestorLike | Sequence[AncestorLike] | None = None,
    teacher: nn.Module | None = None,
    embeddings: Tensor | None = None,
    watch: Sequence[Mapping[str, Any]] = (),
    workers: int = 0,
    **options: Any,
) -> History:
    """Train ``hypernet`` in place.

    Args:
        hypernet: PITH takes the ancestor's weights, one with a ``task_dim`` the task's embedding.
        data: data to train on, or several tasks of one image shape, or several texts, one a step;
            validation data is scored, test images left alone.
        config: how to train.
        sampler: distribution of the architectures.
        ancestor: fixed; whatever :func:`weightinit.project_from` takes. PITH may learn from
            several, a list or tuple, one drawn for each architecture; the first is scored.
        teacher: gives the ancestor's features, in the shape of the data; None is the ancestor.
        embeddings: embeddings of the tasks ``[tasks, task_dim]``; None computes them from the
            teacher.
        watch: architectures whose zero-shot accuracy (of texts: bits per byte) is measured.
        workers: number of processes that augment images.
        **options: ``out``, ``resume``, ``save_every``, ``eval_every`` and ``progress`` of
            :func:`weightinit.training.loop.follow`.

    Returns:
        The history: losses, and where it was measured the mean score as ``"val"`` beside that of
        each watched architecture, ``"val <width>x<depth>"``.

    Raises:
        ProjectionError: if the ancestor or an architecture does not fit the hypernetwork.
        WeightInitError: if the config needs an ancestor and there is none, the tasks differ in
            shape, the checkpoint is of another config, or the loss is not finite.
    """
    tasks = data if isinstance(data, Sequence) else [data]
    fleet, sampler = accelerator(), get_sampler(sampler)
    check_tasks(tasks, sampler)
    if config.guide and hypernet.config.kind == "pith":
        raise WeightInitError("PITH predicts no projection for a guide: use guide=0")
    hypernet.to(fleet.device)
    size = image_size(tasks)
    sources = [Ancestor.open(one) for one in listed(ancestor)] or [None]
    if teacher is None and (config.guide or (hypernet.config.task_dim and embeddings is None)):
        if sources[0] is None:
            raise WeightInitError(
                "the config's guide and the task embeddings come from an ancestor: pass ancestor="
            )
        teacher = sources[0].module()
    guide = 0
    if teacher is not None:
        teacher.to(fleet.device).eval()
        if config.guide:
            guide = _features(teacher, next(tasks[0].inputs(1)).to(fleet.device)).shape[-1]
        if hypernet.config.task_dim and embeddings is None:
            embeddings = torch.stack([task_embedding(teacher, task) for task in tasks])
    rows = [None] * len(tasks) if embeddings is None else list(embeddings.to(fleet.device))
    several = [Targets(hypernet, source, guide) for source in sources]

    def terms(step: int, task: int, inputs: Tensor, labels: Tensor) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(
            subseed(config.seed, 5, step, fleet.process_index)
        )
        with config.autocast(fleet.device):
            features = _features(teacher, inputs) if config.guide and teacher else None
        for _ in range(config.architectures):
            targets = several[0]
            if len(several) > 1:
                targets = several[int(torch.randint(len(several), (), generator=generator))]
            target = targets(sample(sampler, generator, image_size=size), tasks[task])
            loss = meta_loss(
                targets, target, tasks[task], inputs, labels, rows[task], features, config
            )
            yield loss / config.architectures

    def score() -> dict[str, float]:
        found = {}
        for task, row in zip(tasks, rows, strict=True):
            where = f" {task.name}" if len(tasks) > 1 else ""
            for kwargs in watch:
                value = several[0].score(kwargs, task, task=row)
                found[f"val {task.size_of(kwargs)}{where}"] = round(value, task.digits)
        return {"val": sum(found.values()) / len(found), **found} if found else {}

    with _frozen(hypernet, config.frozen):
        return follow(
            config,
            hypernet,
            lambda steps: (terms(*batch) for batch in batches(config, tasks, steps, workers)),
            score,
            notes={"sampler": sampler.name, "data": [f"{t.name}, {len(t.train)}" for t in tasks]},
            **options,
        )


def listed(ancestor: AncestorLike | Sequence[AncestorLike] | None) -> list[AncestorLike]:
    """Return one ancestor, several (a list or tuple) or none as a list."""
    several: Any = ancestor if isinstance(ancestor, (list, tuple)) else [ancestor]
    return [one for one in several if one is not None]


def guidance(
    student: Tensor, teacher: Tensor, temperature: float = 3.0, *, faithful: bool = False
) -> Tensor:
    """Return TAL's Eq. 4, KL(student || teacher) of softmax(feature / T), averaged over images.

    Features are ``[B, d]``. The released code, ``faithful``, has KL(teacher || student) times
    T^2 / 1000.

    Examples:
        >>> a = torch.tensor([[0.0, 3.0]])
        >>> float(guidance(a, a)), float(guidance(a, -a)) > 0
        (0.0, True)
    """
    p, q = (
        functional.log_softmax(feature.float() / temperature, -1) for feature in (student, teacher)
    )
    if faithful:
        divergence = functional.kl_div(p, q, reduction="batchmean", log_target=True)
        return divergence * temperature**2 / 1000
    return functional.kl_div(q, p, reduction="batchmean", log_target=True)


def meta_loss(
    targets: Targets,
    target: Target,
    data: Data,
    inputs: Tensor,
    labels: Tensor,
    task: Tensor | None,
    teacher: Tensor | None,
    config: MetaConfig,
) -> Tensor:
    """Return the loss of one target: CE, or TAL's mix of it and the guide, and the penalty.

    The teacher's features are ``[B, d]``, of texts ``[B * T, d]``; the task is ``[task_dim]``.
    """
    prediction = targets.predict(target, task)
    weights = prediction.parameters()
    with config.autocast(inputs.device), captured(target.model, target.anatomy) as features:
        out = functional_call(target.model, weights, (inputs,))
    loss = data.loss(out, labels, config.label_smoothing)
    predicted = [weight for weight in weights.values() if weight.requires_grad]
    if teacher is not None:
        guide = prediction.weights[-1, GUIDE]
        predicted.append(guide)
        kl = guidance(
            features[0].float() @ guide.T,
            teacher,
            config.guide_temperature,
            faithful=config.faithful,
        )
        loss = config.guide * kl + (1 - config.guide) * loss
    if config.penalty:
        loss = loss + config.penalty * torch.stack([weight.norm() for weight in predicted]).sum()
    return loss


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
