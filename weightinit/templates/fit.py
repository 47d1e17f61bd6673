"""Scalers for one more size, fitted on a little data with the templates frozen (WAVE, Eq. 8)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Rule, anatomy
from weightinit.errors import ProjectionError
from weightinit.files.bundle import copies
from weightinit.inherit.fitting import fit
from weightinit.plan import Plan
from weightinit.templates.bundle import TemplateBundle, size_entry
from weightinit.templates.compose import Composer, Scalers
from weightinit.templates.constrain import constrain
from weightinit.templates.narrow import narrowed
from weightinit.templates.wave import template_recipes

__all__ = ["fit_scalers"]


def fit_scalers(
    model: nn.Module,
    templates: str | os.PathLike[str] | TemplateBundle,
    train_step: Callable[[nn.Module], Tensor],
    *,
    steps: int = 400,
    lr: float = 2e-2,
    scalers: Scalers | None = None,
    rules: Iterable[Rule] = (),
    progress: bool | None = None,
) -> TemplateBundle:
    """Fit weight scalers for a model's size with AdamW, and return a bundle that has them.

    A copy of ``model`` is composed from the templates, which are frozen, and so is everything that
    goes along outside the blocks; only scalers are trained, and a head that the bundle has nothing
    for (other classes), which is not kept. :func:`weightinit.init_from_templates` then takes the
    fitted scalers for every model of this size. Neither ``model`` nor the bundle changes.

    Args:
        model: of the size to fit for, as ``init_from_templates`` takes it.
        templates: a bundle, or its name.
        train_step: maps the module to a scalar loss on a batch of its own choosing.
        steps: of the optimizer; WAVE takes a few hundred.
        lr: its rate, which falls to zero along half a cosine.
        scalers: to start from, as ``init_from_templates`` takes them; None is what the bundle was
            trained for.
        rules: for parameters of yours that no rule explains; see :func:`weightinit.anatomy`.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        A bundle with one more entry in ``config.fitted``, or a newer one for this size.

    Raises:
        ProjectionError: if the bundle does not fit the model, its scalers are closed forms, or the
            loss is not finite.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> vit = timm.create_model(
        ...     "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=64,
        ...     num_heads=4, depth=2, num_classes=10)
        >>> images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
        >>> step = lambda m: torch.nn.functional.cross_entropy(m(images), labels)
        >>> bundle = wi.fit_scalers(vit, "digits-w32", step, steps=2)
        >>> bundle.config.fitted[0]["depth"]
        2
    """
    bundle = (
        templates
        if isinstance(templates, TemplateBundle)
        else TemplateBundle.from_pretrained(templates)
    )
    if not bundle.template_config.trained:
        raise ProjectionError(
            f"scalers of {bundle.config.method} are a closed form: use a bundle of method 'wave' "
            "or 'weit'"
        )
    work, rules = copy.deepcopy(model), tuple(rules)
    target = anatomy(work, rules=rules)
    fitting = narrowed(bundle, target)
    composer = Composer.of(fitting, target)
    recipes = template_recipes(bundle, target, scalers=scalers, seed=0)
    fresh = {r.spec.name for r in recipes if r.action == "fresh" and r.spec.block is None}
    Plan(work, target, recipes, source=bundle.source).commit()
    constrained = constrain(
        work,
        composer.config,
        templates={k: fitting.tensors[f"templates.{k}"].float() for k in composer.pieces},
        scalers=composer.start(fitting, scalers),
        train="scalers",
        head_dim=composer.head_dim,
        rules=rules,
        uncovered="keep",
    )
    for name, parameter in constrained.model.named_parameters():
        parameter.requires_grad_(name in fresh)
    trained = [p for p in constrained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(constrained, train_step, optimizer, schedule, steps=steps, progress=progress)
    return _with_fitted(bundle, size_entry(target), constrained.scaler_values())


def _with_fitted(
    bundle: TemplateBundle, entry: dict[str, Any], scalers: Mapping[str, Tensor]
) -> TemplateBundle:
    """Return a bundle with the scalers of one more size, or newer ones for one that it has."""
    entries = [*bundle.config.fitted, *([] if entry in bundle.config.fitted else [entry])]
    named = {f"fitted.{entries.index(entry)}.{kind}": value for kind, value in scalers.items()}
    dtype = next(iter(bundle.tensors.values())).dtype
    config = replace(bundle.config, fitted=tuple(entries), sha256="")
    return TemplateBundle(config, {**bundle.tensors, **copies(named, dtype)}, bundle.source)
