"""What the model-level calls would do, as plans; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Rule, anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.folding import folded
from weightinit.errors import AnatomyError
from weightinit.hypernet.pith import HypernetLike, embedding, named_network, predicted
from weightinit.inherit.fresh import base_seed
from weightinit.inherit.generated import given
from weightinit.inherit.losses import assumed, drawn, left_out, lost, neutral, squared, taken_over
from weightinit.inherit.method import Method
from weightinit.inherit.pairs import check_pair
from weightinit.methods.auto import Auto
from weightinit.methods.mimetic import Mimetic, planned_mimetic
from weightinit.numerics import plain_numerics
from weightinit.plan import Plan
from weightinit.recipes import keeping
from weightinit.registry import MethodName, get_method
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import Scalers
from weightinit.templates.reach import out_of_reach
from weightinit.templates.wave import template_recipes

__all__ = [
    "DEFAULT_TEMPLATES",
    "AncestorLike",
    "Unexplained",
    "plan_hypernet",
    "plan_mimetic",
    "plan_projection",
    "plan_templates",
]

#: What ``templates=None`` takes: it ships in the package.
DEFAULT_TEMPLATES = "mixed-w96"

M = TypeVar("M", bound=nn.Module)
Unexplained = Literal["raise", "keep"]
AncestorLike = str | os.PathLike[str] | nn.Module | Mapping[str, Tensor] | Ancestor


@plain_numerics()
def plan_templates(
    model: M,
    templates: str | os.PathLike[str] | TemplateBundle | None = None,
    *,
    scalers: Scalers | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> Plan[M]:
    """Return what :func:`weightinit.init_from_templates` would do, without doing it.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=7)
        >>> plan = wi.plan_templates(model, keep=["head"])
        >>> plan.report().counts["kept"]
        2
    """
    default = f"no templates were given: the shipped {DEFAULT_TEMPLATES} is used"
    said = [default] if templates is None else []
    bundle = DEFAULT_TEMPLATES if templates is None else templates
    if not isinstance(bundle, TemplateBundle):
        bundle = TemplateBundle.from_pretrained(bundle)
    target = _seen(model, keep, rules, unexplained)
    composed = template_recipes(bundle, target, scalers=scalers, seed=base_seed(generator))
    recipes = keeping(target, composed)
    return Plan(
        model,
        target,
        recipes,
        source=f"templates {bundle.source}",
        seed=_seed(generator),
        doubts=out_of_reach(bundle, target) if templates is None else (),
        notes=lambda: [*said, *drawn(recipes, "bundle"), *_exact_checkpoint(model)],
    )


@plain_numerics()
def plan_mimetic(
    model: M,
    *,
    options: Mimetic | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> Plan[M]:
    """Return what :func:`weightinit.init_mimetic` would do, without doing it.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2)
        >>> wi.plan_mimetic(model, options=wi.Mimetic(positions="fresh")).report().counts
        {'written': 4, 'fresh': 28, 'kept': 0}
    """
    target = _seen(model, keep, rules, unexplained)
    planned = planned_mimetic(target, options, seed=base_seed(generator))
    recipes = keeping(target, planned.recipes(target))
    return Plan(model, target, recipes, source="mimetic initialisation", seed=_seed(generator))


@plain_numerics()
def plan_projection(
    ancestor: AncestorLike,
    target: M,
    *,
    method: MethodName | Method = "auto",
    calibration: Iterable[Any] | Literal["generated", "none"] | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> Plan[M]:
    """Return what :func:`weightinit.project_from` would do, without doing it.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=7)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=7)
        >>> wi.plan_projection(ancestor, model).report().counts["fresh"]
        0
    """
    chosen = get_method(method)
    if isinstance(chosen, Auto) and isinstance(calibration, str) and calibration == "none":
        chosen = replace(chosen, generate=False)
    rules = _checked(rules)
    seen = _seen(target, keep, rules, unexplained)
    opened = Ancestor.open(ancestor, rules=rules)
    source, notes = folded(opened, seen)
    doubts = check_pair(source.anatomy, seen)
    seed = base_seed(generator)
    batches, of_data = given(calibration, source, seed=seed)
    planned = chosen.plan(source, seen, seed=seed, calibration=batches)
    recipes = keeping(seen, planned.recipes(seen))
    doubts += [*lost(source.anatomy, seen), *assumed(source.anatomy, seen), *drawn(recipes)]
    said = [*left_out(source.anatomy, seen), *neutral(source.anatomy, seen)]
    said += squared(source.anatomy, seen)
    said += taken_over(seen, recipes)
    return Plan(
        target,
        seen,
        recipes,
        source=f"ancestor {source.source}, by {chosen}",
        seed=_seed(generator),
        readonly=opened.live,
        doubts=doubts,
        # What a method says of the function as a whole stands last.
        notes=lambda: [*notes, *of_data, *planned.notes[:-1], *said, *planned.notes[-1:]],
    )


@plain_numerics()
def plan_hypernet(
    model: M,
    hypernet: HypernetLike,
    *,
    task: Tensor | Iterable[Tensor] | None = None,
    ancestor: AncestorLike | None = None,
    faithful: bool | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> Plan[M]:
    """Return what :func:`weightinit.init_from_hypernet` would do, without doing it."""
    target = _seen(model, keep, rules, unexplained)
    source = None if ancestor is None else Ancestor.open(ancestor)
    network, where = named_network(hypernet)
    pith = network.config.kind == "pith"
    doubts = check_pair(source.anatomy, target) if pith and source else []
    planned = predicted(
        network,
        target,
        task=embedding(task, source, network.config),
        ancestor=source,
        faithful=faithful,
        std=_initializer_range(model),
        seed=base_seed(generator),
    )
    return Plan(
        model,
        target,
        keeping(target, planned.recipes(target)),
        source=f"{network.config.kind} {where}" + (f", {source.source}" if source else ""),
        seed=_seed(generator),
        readonly=source.live if source else (),
        doubts=doubts,
        notes=lambda: planned.notes,
    )


def _initializer_range(model: nn.Module) -> float:
    """Return the standard deviation that a transformers model begins with; GPT-2's by default."""
    configs = (getattr(module, "config", None) for module in model.modules())
    found = (getattr(config, "initializer_range", None) for config in configs)
    return next((value for value in found if isinstance(value, float)), 0.02)


def _seen(
    model: nn.Module, keep: Iterable[str], rules: Iterable[Rule], unexplained: Unexplained
) -> Anatomy:
    if unexplained not in get_args(Unexplained):
        raise AnatomyError(f"unexplained={unexplained!r}: use one of {get_args(Unexplained)}")
    return anatomy(model, rules=_checked(rules), keep=keep, unexplained=unexplained)


def _checked(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    found = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    if not all(isinstance(rule, Rule) for rule in found):
        raise AnatomyError(f"rules={rules!r}: pass a list of weightinit.Rule")
    return found


def _seed(generator: torch.Generator | None) -> int | None:
    return None if generator is None else generator.initial_seed()


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
        inside = ("blocks.", "stages.")
        return {n: p.shape for n, p in module.named_parameters() if n.startswith(inside)}

    if not blocks(model) or blocks(model) != blocks(published):
        return []
    return [
        f"timm has pretrained weights of exactly this size: timm.create_model({tags[0]!r}, "
        "pretrained=True) is likely better"
    ]
