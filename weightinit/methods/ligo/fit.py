"""The training of LiGO's operator: a few steps on the target's own loss, the ancestor frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.folding import folded
from weightinit.inherit.fitting import fit
from weightinit.inherit.fresh import base_seed
from weightinit.inherit.pairs import check_pair
from weightinit.methods.ligo.method import LiGO, Mixture
from weightinit.plan import Plan

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["fit_ligo"]

_DEFAULT = LiGO()


def fit_ligo(
    ancestor: AncestorLike,
    target: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    *,
    steps: int = 100,
    lr: float = 2e-4,
    weight_decay: float = 0.1,
    options: LiGO = _DEFAULT,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> LiGO:
    """Train LiGO's operator between two models, and return its options with the trained operator.

    The target's weights follow from the frozen ancestor and the operator at every forward. A head
    that the ancestor lacks (other classes) is trained along and not kept. Neither the ancestor nor
    ``target`` changes; fill the target afterwards::

        operator = wi.fit_ligo(ancestor, model, step)
        wi.project_from(ancestor, model, method=operator)

    As in the published code, AdamW has an epsilon of 1e-6, gradients are clipped to a norm of 1,
    and the learning rate falls linearly to zero. Depth weights of biases and norms have no weight
    decay, as the published code intends (its name patterns match no operator, so it decays them).

    Args:
        ancestor: anything that :func:`weightinit.project_from` takes.
        target: the larger model, on the device to train on; a meta model is trained on the CPU.
        train_step: maps the module to a scalar loss on a batch of its own choosing.
        steps: number of optimizer steps; the paper takes 100.
        lr: learning rate at the start.
        weight_decay: weight decay of the expansion matrices and the depth weights of matrices.
        options: start and tying of the operator; or options with an operator to train further.
        generator: source of all random draws; None is a fixed seed.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The options with the trained operator, fp32 on the CPU.

    Raises:
        AnatomyError: if a parameter of the target or the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if the two do not fit, the target is smaller in any way, or the loss is not
            finite.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5,
        ...                       depth=n, embed_dim=32 * n, num_heads=n) for n in (1, 2))
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> step = lambda m: torch.nn.functional.cross_entropy(m(images), labels)
        >>> operator = wi.fit_ligo(old, new, step, steps=2)
        >>> wi.project_from(old, new, method=operator) is new
        True
    """
    model, seed = copy.deepcopy(target), base_seed(generator)
    seen = anatomy(model)
    source, _ = folded(Ancestor.open(ancestor), seen)
    check_pair(source.anatomy, seen)
    started = options.start(source.anatomy, seen, seed=seed)
    recipes = started.plan(source, seen, seed=seed).recipes(seen)
    plan = Plan(model, seen, recipes, source="LiGO")
    fresh = {name for name, recipe in plan.recipes.items() if recipe.action == "fresh"}
    grown = GrownModel(plan.commit(), source, started, fresh)
    head = []
    for name, parameter in grown.model.named_parameters():
        if name in fresh:
            head.append(parameter)
        else:
            parameter.requires_grad_(False)
    decayed = [value for name, value in grown.operator.items() if _decays(name)]
    others = [value for name, value in grown.operator.items() if not _decays(name)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": [*others, *head], "weight_decay": 0.0}],
        lr=lr, eps=1e-6, weight_decay=weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    fit(grown, train_step, optimizer, schedule, steps=steps, max_norm=1.0, progress=progress)
    operator = {name: value.detach().cpu().clone() for name, value in grown.operator.items()}
    return replace(started, operator=operator)


class GrownModel(nn.Module):
    """A model whose weights follow from an ancestor and an operator at every forward.

    Attributes:
        model: the inner model; of its own parameters only the fresh ones are used.
        operator: LiGO's operator by name, leaves with gradients.
    """

    def __init__(self, model: nn.Module, source: Ancestor, options: LiGO, fresh: set[str]) -> None:
        super().__init__()
        self.model = model
        seen = anatomy(model)
        device = next(model.parameters()).device
        self.operator = {
            name: value.detach().to(device, torch.float32).clone().requires_grad_()
            for name, value in (options.operator or {}).items()
        }
        options = replace(options, operator=self.operator)
        mixture = Mixture(source, seen, self.operator, device=device, hold=True)
        recipes = options.grown(mixture, seen).recipes(seen)
        self._recipes = [recipe for recipe in recipes if recipe.spec.name not in fresh]

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters that the operator makes, as the plan of a projection would."""
        made = {}
        for recipe in self._recipes:
            name = recipe.spec.name
            like = self.model.get_parameter(name)
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            value = torch.empty(like.shape, dtype=dtype, device=like.device)
            assert recipe.fill is not None
            recipe.fill(value)
            made[name] = value.to(like.dtype)
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Make the weights, then call the inner model with them."""
        return functional_call(self.model, self.weights(), args, kwargs)


def _decays(name: str) -> bool:
    """Return whether weight decay acts on a tensor of the operator."""
    return name.startswith("width.") or not (name.endswith("bias") or "norm" in name)
