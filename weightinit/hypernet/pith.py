"""PITH as a way to inherit: one ancestor, projected by generated matrices."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.predict import Prediction
from weightinit.inherit.running import Runnable, captured
from weightinit.plan import Inheritance

__all__ = ["DEFAULT_PITH", "PITH", "HypernetLike", "embedding", "named_network", "predicted"]

#: What PITH takes where no hypernetwork is named: it ships in the package.
DEFAULT_PITH = "pith-cifar10"

HypernetLike = str | os.PathLike[str] | HyperNetwork | GraphHyperNetwork


@dataclass(frozen=True)
class PITH:
    """Project one ancestor by generated matrices: W = a P W_P Q + (1 - a) W_pred.

    Xu et al., "PITH". The default is ours: P and Q begin at those of a closed-form projection, and
    training adds to them.

    Args:
        hypernet: a built-in name, a folder, ``"org/name@revision"``, or an object; None is the one
            that ships with weightinit.
        faithful: as the released code: block i from block i, positions one off.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.hypernet.config import HyperConfig
        >>> from weightinit.hypernet.network import GraphHyperNetwork
        >>> small = HyperConfig("pith", hid=16, layers=1, heads=2, rank=4, max_ck=8192)
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=96, num_heads=3)
        ...     for n in (3, 2))
        >>> wi.project_from(old, new, method=wi.PITH(GraphHyperNetwork(small))) is new
        True
    """

    hypernet: HypernetLike | None = None
    faithful: bool = False

    def plan(
        self, source: Runnable, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target of any size."""
        network, _ = named_network(self.hypernet if self.hypernet is not None else DEFAULT_PITH)
        if network.config.kind != "pith":
            raise ProjectionError(
                f"the hypernetwork is of kind {network.config.kind!r}, which inherits from no "
                "ancestor: use wi.init_from_hypernet(model, hypernet)"
            )
        return predicted(network, target, ancestor=source, faithful=self.faithful, seed=seed)


def named_network(hypernet: HypernetLike) -> tuple[GraphHyperNetwork, str]:
    """Return the network, and where it is from in words."""
    if isinstance(hypernet, GraphHyperNetwork):
        return hypernet, "network"
    if not isinstance(hypernet, HyperNetwork):
        hypernet = HyperNetwork.from_pretrained(hypernet)
    return hypernet.module(), hypernet.source


@torch.no_grad()
def predicted(network: GraphHyperNetwork, target: Anatomy, **options: Any) -> Inheritance:
    """Return what one prediction makes of a target, by the options of :class:`Prediction`."""
    return Prediction(network, target, **options).plan()


@torch.no_grad()
def embedding(task: Tensor | Iterable[Tensor], source: Ancestor | None) -> Tensor:
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
