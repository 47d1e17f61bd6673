"""The training of LiGO's operator: a few steps on the target's own loss, the ancestor frozen."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.folding import folded
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import base_seed
from weightinit.inherit.pairs import check_pair
from weightinit.methods.ligo.method import LiGO, Mixed
from weightinit.plan import Plan, Recipe

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
    """Train LiGO's operator from an ancestor to a model's size, and return it within its options.

    The target's weights follow from the frozen ancestor and the operator at every forward. A head
    that the ancestor has nothing for (other classes) is trained along and not kept. Neither the
    ancestor nor ``target`` changes: fill it afterwards::

        operator = wi.fit_ligo(ancestor, model, step)
        wi.project_from(ancestor, model, method=operator)

    As in the published code: AdamW with an epsilon of 1e-6, gradients clipped to a norm of 1, and a
    rate that falls linearly to zero. What composes biases and norms has no weight decay, as the
    published code intends (its name patterns match no operator, so it decays them).

    Args:
        ancestor: whatever :func:`weightinit.project_from` takes.
        target: the larger model, on the device to train on; a meta model is trained on the CPU.
        train_step: maps the module to a scalar loss on a batch of its own choosing.
        steps: of the optimizer; the paper takes 100.
        lr: its rate at the start.
        weight_decay: of the expansion matrices and the depth weights of matrices.
        options: how the operator starts, and how it is tied; or one to train further.
        generator: of what is drawn; None is a fixed seed.
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
    from tqdm import tqdm

    work = copy.deepcopy(target)
    seed = base_seed(generator)
    seen = anatomy(work)
    source, _ = folded(Ancestor.open(ancestor), seen)
    check_pair(source.anatomy, seen)
    started = options.start(source.anatomy, seen, seed=seed)
    recipes = started.plan(source, seen, seed=seed).recipes(seen)
    plan = Plan(work, seen, recipes, source="LiGO")
    fresh = {name for name, recipe in plan.recipes.items() if recipe.action == "fresh"}
    grown = _Grown(plan.commit(), source, started, fresh)
    for name, parameter in grown.model.named_parameters():
        parameter.requires_grad_(name in fresh)
    decayed = {name for name in grown.operator if _decays(name)}
    groups = [
        {"params": [v for k, v in grown.operator.items() if k in decayed]},
        {
            "params": [
                *(v for k, v in grown.operator.items() if k not in decayed),
                *(p for p in grown.model.parameters() if p.requires_grad),
            ],
            "weight_decay": 0.0,
        },
    ]
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=lr, eps=1e-6, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    grown.train()
    shown = sys.stderr.isatty() if progress is None else progress
    for step in tqdm(range(steps), disable=not shown, unit="step"):
        loss = train_step(grown)
        if not torch.isfinite(loss):
            raise ProjectionError(
                f"the loss is {float(loss.detach())} at step {step}: use a lower lr than {lr}"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    operator = {k: v.detach().cpu().clone() for k, v in grown.operator.items()}
    return replace(started, operator=operator)


class _Grown(nn.Module):
    """A model whose weights follow from an ancestor and an operator at every forward.

    Attributes:
        model: the inner model; of its own parameters only the fresh ones are used.
        operator: by name, leaves with gradients.
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
        mixed = Mixed(source, seen, self.operator, device=device, hold=True)
        self._recipes: list[Recipe] = [
            recipe for recipe in options.grown(source, seen, held=mixed).recipes(seen)
            if recipe.spec.name not in fresh
        ]  # fmt: skip
        self._like = dict(model.named_parameters())

    def weights(self) -> Mapping[str, Tensor]:
        """Return the parameters that the operator makes, as the plan of a projection would."""
        made = {}
        for recipe in self._recipes:
            like = self._like[recipe.spec.name]
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            value = torch.empty(like.shape, dtype=dtype, device=like.device)
            assert recipe.fill is not None
            recipe.fill(value)
            made[recipe.spec.name] = value.to(like.dtype)
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Make the weights, then call the inner model with them."""
        return functional_call(self.model, dict(self.weights()), args, kwargs)


def _decays(name: str) -> bool:
    """Whether weight decay acts on a part of the operator: not on what makes biases and norms."""
    return name.startswith("width.") or not (name.endswith("bias") or "norm" in name)
