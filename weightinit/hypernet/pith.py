"""PITH as a way to inherit: one ancestor, projected by generated matrices."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.predict import Prediction
from weightinit.inherit.calibration import calls_of
from weightinit.inherit.method import Runnable
from weightinit.inherit.running import captured
from weightinit.recipes import Inheritance

__all__ = ["PITH", "HypernetLike", "embedding", "named_network", "predicted"]

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
        faithful: as the released code: block i from block i, positions one off; None is how the
            hypernetwork was trained.

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
    faithful: bool | None = None

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
        if hypernet.embed.weight.is_meta:
            raise ProjectionError("the hypernetwork is on the meta device: give it weights first")
        return hypernet, "network"
    if not isinstance(hypernet, HyperNetwork):
        hypernet = HyperNetwork.from_pretrained(hypernet)
    return hypernet.module(), hypernet.source


@torch.no_grad()
def predicted(network: GraphHyperNetwork, target: Anatomy, **options: Any) -> Inheritance:
    """Return what one prediction makes of a target, by the options of :class:`Prediction`."""
    return Prediction(network, target, **options).plan()


@torch.no_grad()
def embedding(
    task: Tensor | Mapping[str, Any] | Iterable[Any] | None,
    source: Ancestor | None,
    config: HyperConfig,
) -> Tensor | None:
    """Return a task embedding as it is, or the ancestor's mean feature of images.

    Images are a batch, or an iterable of what :func:`weightinit.project_from` calibrates with.
    """
    if task is None:
        return None
    if not config.task_dim:
        raise ProjectionError(
            f"this hypernetwork of kind {config.kind!r} takes none of a task: leave task= out, or "
            "pass one of kind 'tal'"
        )
    if not isinstance(task, Tensor) or task.dim() != 1:
        task = _mean_feature(task, source)
    plain = task.layout == torch.strided and not (task.is_meta or task.is_complex())
    if not plain or not torch.isfinite(task).all():
        raise ProjectionError(
            "the task embedding holds values that are not finite, or none: check the images, or "
            f"pass task=, {config.task_dim} numbers"
        )
    return task.float()


def _mean_feature(task: Any, source: Ancestor | None) -> Tensor:
    """Return the mean ``[d]`` of what the ancestor's classifier reads, one batch after another."""
    if source is None:
        raise ProjectionError(
            "task= are images, whose embedding an ancestor makes: pass ancestor=, or the embedding"
        )
    batches = [task] if isinstance(task, (Tensor, Mapping)) else task
    if isinstance(task, str) or not isinstance(batches, Iterable):
        raise ProjectionError(
            f"task= is a {type(task).__name__}: pass an embedding, a batch of images, or an "
            "iterable of batches"
        )
    module, total, count = source.module().eval().float(), torch.zeros(()).double(), 0
    device = next(module.parameters()).device
    with captured(module) as found:
        for number, batch in enumerate(batches):
            try:
                ((args, kwargs),) = calls_of([batch], module)
                args = [_on(value, device) for value in args]
                module(*args, **{name: _on(value, device) for name, value in kwargs.items()})
                features = found.pop().double()
            except Exception as error:  # whatever a forward pass makes of the wrong batch
                raise ProjectionError(
                    f"the ancestor does not run on batch {number} of task= "
                    f"({' '.join(str(error).split())[:300]}): pass images as it was trained on"
                ) from error
            total, count = total + features.sum(0).cpu(), count + len(features)
    if not count:
        raise ProjectionError("task= holds no images: pass at least one batch")
    return total / count


def _on(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
