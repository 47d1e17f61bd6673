"""Ways to start a target of a real ancestor's architecture: each is one line of `STARTS`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from torch.nn import functional

import weightinit as wi
from trials.peers import pruned
from trials.pretrained import words
from weightinit.errors import WeightInitError
from weightinit.inherit.method import Method
from weightinit.registry import MethodName

__all__ = ["STARTS", "Given", "ridge", "started"]


@dataclass(frozen=True)
class Given:
    """What a start may use.

    Args:
        ancestor: with its weights.
        images: normalised batches of training images, as the ancestor takes them.
        labels: theirs, which Torch-Pruning alone sees.
        classes: number of classes.
        seed: of all random draws.
    """

    ancestor: nn.Module
    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    classes: int
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A new generator of the seed."""
        return torch.Generator().manual_seed(self.seed)


#: Fills a model in place, and returns what is to be noted of how.
Start = Callable[[nn.Module, Given], str]


def random(model: nn.Module, given: Given, *, layer_scale: float | None = None) -> str:
    """Keep timm's own random weights, or all but the layer scales."""
    for module in model.modules() if layer_scale is not None else ():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, layer_scale or 0.0)
    return ""


def mimetic(model: nn.Module, given: Given) -> str:
    """Draw attention in closed form (Trockman and Kolter)."""
    wi.init_mimetic(model, generator=given.generator)
    return ""


def inherited(
    model: nn.Module, given: Given, *, method: MethodName | Method = "auto", batches: int | None = 0
) -> str:
    """Inherit by a method that sees so many batches, None being all; note what it says."""
    plan = wi.plan_projection(
        given.ancestor,
        model,
        method=method,
        calibration=given.images[:batches] or None,
        generator=given.generator,
    )
    plan.validate().commit()
    return words("; ".join(plan.report().notes))


def templates(model: nn.Module, given: Given, *, extracted: bool) -> str:
    """Compose from templates of the ancestor, or from those that ship in the package."""
    bundle = wi.extract_templates(given.ancestor) if extracted else None
    wi.init_from_templates(model, bundle, generator=given.generator)
    return ""


def torch_pruning(model: nn.Module, given: Given) -> str:
    """Take what Torch-Pruning leaves, by the labels and a head that regression fits to them."""
    ancestor: Any = given.ancestor
    small: Any = model
    if len(small.blocks) != len(ancestor.blocks) or small.embed_dim >= ancestor.embed_dim:
        raise wi.ProjectionError(
            "Torch-Pruning narrows a network and keeps its blocks: use another start"
        )
    with torch.inference_mode():
        features = torch.cat([ancestor(images) for images in given.images])
    labels = torch.cat(given.labels)
    weight, bias = ridge(features, functional.one_hot(labels, given.classes).double(), 1.0)
    head, plain = nn.Linear(features.shape[1], given.classes), ancestor.head
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(bias)
    ancestor.head = head
    try:
        state = pruned(ancestor, model, list(zip(given.images, given.labels, strict=True)))
    except RuntimeError as error:
        raise wi.ProjectionError(f"Torch-Pruning: {error}: use another start") from error
    finally:
        ancestor.head = plain
    own = model.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("head.")}
    wrong = [name for name in kept if name not in own or own[name].shape != kept[name].shape]
    if wrong:
        raise wi.ProjectionError(f"Torch-Pruning leaves {wrong[0]} at another size: use another")
    model.load_state_dict(kept, strict=False)
    return "sees the images' labels, through a head fitted by ridge regression"


def ridge(inputs: Tensor, outputs: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return weight ``[d, n]`` and bias ``[n]`` of ridge regression on standardised inputs.

    Args:
        inputs: ``[N, d]``.
        outputs: ``[N, n]``.
        strength: of the penalty, in units of N.
    """
    inputs, mean, middle = inputs.double(), inputs.double().mean(0), outputs.mean(0)
    scale = inputs.std(0).clamp_min(1e-6)
    x = (inputs - mean) / scale
    gram = x.T @ x + strength * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ (outputs - middle)) / scale[:, None]
    return weight, middle - mean @ weight


#: By the name that tables show.
STARTS: dict[str, Start] = {
    "random": random,
    "random, layer scales 1": partial(random, layer_scale=1.0),
    "mimetic": mimetic,
    "shipped templates": partial(templates, extracted=False),
    "templates of the ancestor": partial(templates, extracted=True),
    "Weight Selection": partial(inherited, method=wi.WeightSelection(faithful=True)),
    "weights alone": partial(
        inherited, method=wi.WeightSelection(depth="first_last", rescale=True)
    ),
    "BoT": partial(inherited, method="bot"),
    "subcloning": partial(inherited, method="subcloning", batches=None),
    "Torch-Pruning": torch_pruning,
    "default without data": inherited,
    "default with 128 images": partial(inherited, batches=2),
    "default with data": partial(inherited, batches=None),
    "with data, ridge 0.01": partial(
        inherited, method=wi.ActivationAware(ridge=0.01), batches=None
    ),
    "with data, ridge 1": partial(inherited, method=wi.ActivationAware(ridge=1.0), batches=None),
}


def started(name: str, model: nn.Module, given: Given) -> dict[str, Any]:
    """Fill a model by a start; return what it says and costs in CPU seconds, or the refusal."""
    began = time.process_time()
    try:
        note = STARTS[name](model, given)
    except WeightInitError as error:
        return {"refused": words(error)}
    return {"note": note, "start_seconds": round(time.process_time() - began, 2)}
