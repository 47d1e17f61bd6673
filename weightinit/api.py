"""The model-level calls: one line fills a model in place, and a plan shows it first."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import nn

from weightinit.anatomy import Anatomy, Rule, anatomy
from weightinit.bundle import TemplateBundle
from weightinit.errors import ProjectionError
from weightinit.methods.fresh import base_seed
from weightinit.methods.mimetic import Mimetic, mimetic_recipes
from weightinit.methods.wave import template_recipes
from weightinit.plan import Plan, Recipe

__all__ = [
    "DEFAULT_TEMPLATES",
    "init_from_templates",
    "init_mimetic",
    "plan_mimetic",
    "plan_templates",
]

#: What ``templates=None`` takes: it ships in the package.
DEFAULT_TEMPLATES = "cifar10-w64"


def init_from_templates(
    model: nn.Module,
    templates: str | os.PathLike[str] | TemplateBundle | None = None,
    *,
    scalers: str = "interpolate",
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> nn.Module:
    r"""Fill a model in place with weights composed from templates, and return it.

    Every block weight becomes :math:`W = \sum_t T_t \otimes S_t` (WAVE, Feng et al., CVPR 2025,
    Eq. 4) at the model's own depth and width; the tensors outside the blocks are resampled and
    widened; a head with other classes is fresh. Call it before building the optimizer.

    Args:
        model: any ViT that :func:`weightinit.anatomy` explains, of any size, on any device. A meta
            model is materialised on the CPU.
        templates: a built-in name, a folder, ``"org/name@revision"`` on the Hugging Face Hub, or a
            bundle; None takes the shipped ``cifar10-w64``.
        scalers: ``"interpolate"`` (no data needed), ``"linear"`` (WAVE's Eq. B.1) or ``"fitted"``.
        generator: of every random draw; None is a fixed seed. The global one is never touched.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains; see :func:`weightinit.anatomy`.

    Returns:
        ``model``.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if the templates cannot be had or are not sound.
        ProjectionError: if they do not fit the model. The model is left as it was.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=96, num_heads=3)
        >>> wi.init_from_templates(model) is model
        True
    """
    return plan_templates(
        model, templates, scalers=scalers, generator=generator, keep=keep, rules=rules
    ).commit()


def plan_templates(
    model: nn.Module,
    templates: str | os.PathLike[str] | TemplateBundle | None = None,
    *,
    scalers: str = "interpolate",
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> Plan:
    """Return what :func:`init_from_templates` would do, without doing it.

    Takes the same arguments and raises the same errors, but for values that are not finite, which
    :meth:`Plan.validate` finds.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=7)
        >>> plan = wi.plan_templates(model, keep=["head"])
        >>> plan.report().counts["kept"]
        2
    """
    default = templates is None
    if templates is None:
        templates = DEFAULT_TEMPLATES
    bundle = (
        templates
        if isinstance(templates, TemplateBundle)
        else TemplateBundle.from_pretrained(templates)
    )
    target = anatomy(model, rules=tuple(rules))
    recipes = template_recipes(bundle, target, scalers=scalers, seed=base_seed(generator))

    def notes() -> list[str]:
        used = f"no templates were given: the shipped {DEFAULT_TEMPLATES} is used"
        return [*([used] if default else []), *_exact_checkpoint(model)]

    return Plan(
        model,
        target,
        keeping(target, recipes, keep),
        source=f"templates {bundle.source}",
        notes=notes,
    )


def init_mimetic(
    model: nn.Module,
    *,
    options: Mimetic | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> nn.Module:
    r"""Fill a model in place so that its attention resembles a trained one's, and return it.

    No source is needed: in every layer :math:`W_Q W_K^\top \approx 0.7 Z + 0.7 I` for each head and
    :math:`W_V W_{proj} \approx 0.4 Z - 0.4 I` (Trockman & Kolter, ICML 2023, arXiv 2305.09828),
    positions are sinusoidal, and everything else is fresh by rule. It is meant for small data; the
    paper does not train the positions, which stay trainable here.

    Args:
        model: any ViT that :func:`weightinit.anatomy` explains, of any size, on any device. A meta
            model is materialised on the CPU.
        options: a :class:`weightinit.Mimetic`; None is the paper's.
        generator: of every random draw; None is a fixed seed. The global one is never touched.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains; see :func:`weightinit.anatomy`.

    Returns:
        ``model``.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        ProjectionError: if it is no vision transformer. The model is left as it was.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=3)
        >>> wi.init_mimetic(model, generator=torch.Generator().manual_seed(0)) is model
        True
        >>> attn = model.blocks[0].attn
        >>> value_to_output = attn.proj.weight @ attn.qkv.weight[-96:]
        >>> -0.5 < value_to_output.diag().mean().item() < -0.3
        True
    """
    return plan_mimetic(
        model, options=options, generator=generator, keep=keep, rules=rules
    ).commit()


def plan_mimetic(
    model: nn.Module,
    *,
    options: Mimetic | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> Plan:
    """Return what :func:`init_mimetic` would do, without doing it.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2)
        >>> wi.plan_mimetic(model, options=wi.Mimetic(positions="fresh")).report().counts
        {'written': 4, 'fresh': 28, 'kept': 0}
    """
    target = anatomy(model, rules=tuple(rules))
    recipes = mimetic_recipes(target, options, seed=base_seed(generator))
    return Plan(model, target, keeping(target, recipes, keep), source="mimetic initialisation")


def _exact_checkpoint(model: nn.Module) -> list[str]:
    """Return a note if timm has pretrained weights for blocks of exactly this model's size."""
    import timm

    published_as = getattr(model, "pretrained_cfg", None) or {}
    architecture = published_as.get("architecture")
    if architecture is None or not timm.is_model(architecture):
        return []
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if not tags:
        return []
    with torch.device("meta"):
        published = timm.create_model(architecture)

    def blocks(module: nn.Module) -> dict[str, torch.Size]:
        return {n: p.shape for n, p in module.named_parameters() if n.startswith("blocks.")}

    if blocks(model) != blocks(published):
        return []
    return [
        f"timm has pretrained weights of exactly this size: timm.create_model({tags[0]!r}, "
        "pretrained=True) is likely better"
    ]


def keeping(target: Anatomy, recipes: list[Recipe], keep: Iterable[str]) -> list[Recipe]:
    """Replace the recipes of kept parameters; a name that keeps nothing is an error."""
    keep = [keep] if isinstance(keep, str) else list(keep)
    kept: set[str] = set()
    for entry in keep:
        found = {
            spec.name
            for spec in target.specs
            if any(
                name == entry or name.startswith(f"{entry}.")
                for name in (spec.name, spec.role, *spec.parts)
            )
        }
        if not found:
            roles = sorted({spec.role for spec in target.specs})
            raise ProjectionError(
                f"keep={entry!r} names no parameter: use a parameter's name, the start of one, or "
                f"a role of {roles}"
            )
        kept |= found
    return [
        Recipe(r.spec, "kept", "kept by request") if r.spec.name in kept else r for r in recipes
    ]
