"""Scalers for one more size, fitted on a little data with the templates frozen (WAVE, Eq. 8)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import fit
from weightinit.plan import Plan
from weightinit.templates.bundle import TemplateBundle, size_key
from weightinit.templates.compose import Composer
from weightinit.templates.constrain import constrain
from weightinit.templates.wave import template_recipes

__all__ = ["fit_scalers"]


def fit_scalers(
    model: nn.Module,
    templates: str | os.PathLike[str] | TemplateBundle,
    train_step: Callable[[nn.Module], Tensor],
    *,
    steps: int = 400,
    lr: float = 2e-2,
    scalers: str = "interpolate",
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
        scalers: to start from: ``"interpolate"`` or ``"linear"`` (Eq. B.1).
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
    if bundle.config.method != "wave":
        raise ProjectionError(
            f"scalers of {bundle.config.method} are a closed form: use a bundle of method 'wave'"
        )
    work = copy.deepcopy(model)
    target = anatomy(work)
    composer = Composer.of(bundle, target)
    recipes = template_recipes(bundle, target, scalers=scalers, seed=0)
    fresh = {r.spec.name for r in recipes if r.action == "fresh" and r.spec.block is None}
    Plan(work, target, recipes, source=bundle.source).commit()
    constrained = constrain(
        work,
        composer.config,
        templates={
            kind: bundle.tensors[f"templates.{kind}"].float() for kind in composer.config.kinds
        },
        scalers=composer.start(bundle, scalers),
        train="scalers",
        head_dim=composer.head_dim,
    )
    for name, parameter in constrained.model.named_parameters():
        parameter.requires_grad_(name in fresh)
    trained = [p for p in constrained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(constrained, train_step, optimizer, schedule, steps=steps, progress=progress)
    return _with_fitted(bundle, size_key(target), constrained.scaler_values())


def _with_fitted(
    bundle: TemplateBundle, key: dict[str, int], scalers: dict[str, Tensor]
) -> TemplateBundle:
    entry = {"depth": key["depth"], "sizes": {k: n for k, n in key.items() if k != "depth"}}
    entries = list(bundle.config.fitted)
    if entry not in entries:
        entries.append(entry)
    index = entries.index(entry)
    dtype = next(iter(bundle.tensors.values())).dtype
    new = {f"fitted.{index}.{k}": v.detach().cpu().to(dtype).clone() for k, v in scalers.items()}
    config = replace(bundle.config, fitted=tuple(entries), sha256="")
    return TemplateBundle(config, {**bundle.tensors, **new}, bundle.source)
