"""Weights that a hypernetwork predicts for an architecture, and a task."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Rule, anatomy
from weightinit.ancestor import Ancestor
from weightinit.api import keeping
from weightinit.errors import ProjectionError
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import Hypernet
from weightinit.hypernet.predict import Prediction
from weightinit.methods.activations import Runnable
from weightinit.methods.fresh import base_seed
from weightinit.methods.pairs import check_pair
from weightinit.plan import Plan, Recipe
from weightinit.project import AncestorLike
from weightinit.training.tasks import captured

__all__ = ["DEFAULT_PITH", "PITH", "init_from_hypernet", "plan_hypernet"]

#: What PITH takes where no hypernetwork is named: it ships in the package.
DEFAULT_PITH = "pith-cifar10"

HypernetLike = str | os.PathLike[str] | HyperNetwork | Hypernet


def init_from_hypernet(
    model: nn.Module,
    hypernet: HypernetLike,
    *,
    task: Tensor | Iterable[Tensor] | None = None,
    ancestor: AncestorLike | None = None,
    faithful: bool = False,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> nn.Module:
    """Fill a model in place with weights that a hypernetwork predicts for it, and return it.

    GHN-3 (Knyazev et al., ICML 2023), LoGAH (Zhou et al., 2024), TAL and PITH (Xu et al.). The
    prediction is deterministic, and runs no forward pass of the model. Layers that the published
    graphs have no node for (tokens, layer scales) are set by the rule that the report names.

    Args:
        model: a ViT or GPT-2 of any size, on any device. A meta model is materialised on the CPU.
        hypernet: a built-in name, a folder, ``"org/name@revision"`` on the Hugging Face Hub, a
            :class:`weightinit.HyperNetwork`, or a network.
        task: TAL: an embedding ``[task_dim]``, or images of the task, a batch ``[B, C, H, W]`` or
            an iterable of batches as the ancestor takes them, whose mean feature it is.
        ancestor: that PITH inherits from, or that makes the task's embedding.
        faithful: to the released code: tensors beyond the decoder's size are clipped and tiled, the
            positions of tokens are random, PITH's positions are one off.
        generator: of every random draw; None is a fixed seed. The global one is never touched.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains; see :func:`weightinit.anatomy`.

    Returns:
        ``model``.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if the hypernetwork or the ancestor cannot be had or is not sound.
        ProjectionError: if the model has layers outside the vocabulary, or is larger than the
            hypernetwork predicts, or task or ancestor do not fit. The model is left as it was.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.hypernet.config import HyperConfig
        >>> from weightinit.hypernet.network import Hypernet
        >>> logah = Hypernet(HyperConfig("logah", hid=16, layers=1, heads=2, rank=4, max_ck=8192))
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=96, num_heads=3)
        >>> wi.init_from_hypernet(model, logah) is model
        True
    """
    return plan_hypernet(
        model,
        hypernet,
        task=task,
        ancestor=ancestor,
        faithful=faithful,
        generator=generator,
        keep=keep,
        rules=rules,
    ).commit()


def plan_hypernet(
    model: nn.Module,
    hypernet: HypernetLike,
    *,
    task: Tensor | Iterable[Tensor] | None = None,
    ancestor: AncestorLike | None = None,
    faithful: bool = False,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> Plan:
    """Return what :func:`init_from_hypernet` would do, without doing it.

    Takes the same arguments and raises the same errors, but for values that are not finite, which
    :meth:`Plan.validate` finds.
    """
    target = anatomy(model, rules=tuple(rules))
    source = None if ancestor is None else Ancestor.open(ancestor)
    network, where = _network(hypernet)
    pith = network.config.kind == "pith"
    doubts = check_pair(source.anatomy, target) if pith and source else []
    recipes = _recipes(
        network,
        target,
        task=None if task is None else _embedding(task, source),
        ancestor=source,
        faithful=faithful,
        seed=base_seed(generator),
    )
    return Plan(
        model,
        target,
        keeping(target, recipes, keep),
        source=f"{network.config.kind} {where}" + (f", {source.source}" if source else ""),
        notes=lambda: doubts,
    )


@dataclass(frozen=True)
class PITH:
    """Project one ancestor by generated matrices: W = a P W_P Q + (1 - a) W_pred.

    Xu et al., "PITH". The default is ours: P and Q begin at those of a closed-form projection, and
    training adds to them.

    Args:
        hypernet: a built-in name, a folder, ``"org/name@revision"``, or an object; None is the one
            that ships with weightinit.
        faithful: to the released code: block i from block i, positions one off.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.hypernet.config import HyperConfig
        >>> from weightinit.hypernet.network import Hypernet
        >>> small = HyperConfig("pith", hid=16, layers=1, heads=2, rank=4, max_ck=8192)
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=96, num_heads=3)
        ...     for n in (3, 2))
        >>> wi.project_from(old, new, method=wi.PITH(Hypernet(small))) is new
        True
    """

    hypernet: HypernetLike | None = None
    faithful: bool = False

    def recipes(
        self, source: Runnable, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> list[Recipe]:
        """Return a recipe for every parameter of a target of any size."""
        network, _ = _network(self.hypernet if self.hypernet is not None else DEFAULT_PITH)
        if network.config.kind != "pith":
            raise ProjectionError(
                f"the hypernetwork is of kind {network.config.kind!r}, which inherits from no "
                "ancestor: use wi.init_from_hypernet(model, hypernet)"
            )
        return _recipes(
            network, target, task=None, ancestor=source, faithful=self.faithful, seed=seed
        )


def _network(hypernet: HypernetLike) -> tuple[Hypernet, str]:
    """Return the network, and where it is from in words."""
    if isinstance(hypernet, Hypernet):
        return hypernet, "network"
    if not isinstance(hypernet, HyperNetwork):
        hypernet = HyperNetwork.from_pretrained(hypernet)
    return hypernet.module(), hypernet.source


@torch.no_grad()
def _recipes(
    network: Hypernet,
    target: Anatomy,
    *,
    task: Tensor | None,
    ancestor: Runnable | None,
    faithful: bool,
    seed: int,
) -> list[Recipe]:
    device = next(network.parameters()).device
    return Prediction(
        network,
        target,
        task=None if task is None else task.detach().to(device, torch.float32),
        ancestor=ancestor,
        faithful=faithful,
        seed=seed,
    ).recipes()


@torch.no_grad()
def _embedding(task: Tensor | Iterable[Tensor], source: Ancestor | None) -> Tensor:
    """Return a task embedding as it is, or the ancestor's mean feature of images."""
    if isinstance(task, Tensor) and task.dim() == 1:
        return task
    if source is None:
        raise ProjectionError(
            "task= are images, whose embedding an ancestor makes: pass ancestor=, or the embedding"
        )
    module, total, count = source.module(), torch.zeros((), dtype=torch.float64), 0
    device = next(module.parameters()).device
    with captured(module) as found:
        for images in [task] if isinstance(task, Tensor) else task:
            module(images.to(device))
            total, count = total + found.pop().double().sum(0).cpu(), count + len(images)
    if not count:
        raise ProjectionError("task= holds no images: pass at least one batch")
    return (total / count).float()
