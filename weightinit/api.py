"""The model-level calls: one line fills a model in place, and a plan shows it first.

All of them take these arguments:

- ``generator``: source of all random draws, from which one number is drawn; the global generator is
  never touched.
- ``keep``: parameters that stay as they are, by name, by the start of one, or by role (``"head"``,
  ``"pos"``); what is named needs no explanation.
- ``rules``: a list of :class:`weightinit.Rule`, for parameters that no built-in one explains; see
  :func:`weightinit.anatomy`.
- ``unexplained``: what becomes of parameters that no rule explains and ``keep`` does not name:
  ``"raise"``, or ``"keep"`` them as they are.

The model may be on any device; a meta model is materialised on the CPU. Fill it before the
optimizer is built. After an error it is as it was.

Each ``plan_*`` takes the arguments of its verb and raises its errors, but for values that are not
finite, which :meth:`Plan.validate` finds.
"""

from __future__ import annotations

import os
import warnings
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
from weightinit.methods.auto import Auto, unpaced
from weightinit.methods.mimetic import Mimetic, planned_mimetic
from weightinit.numerics import plain_numerics
from weightinit.plan import Plan
from weightinit.recipes import keeping, kept_by, names_of
from weightinit.registry import MethodName, get_method
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import Scalers
from weightinit.templates.reach import out_of_reach
from weightinit.templates.wave import template_recipes

__all__ = [
    "DEFAULT_TEMPLATES",
    "init_from_hypernet",
    "init_from_templates",
    "init_mimetic",
    "plan_hypernet",
    "plan_mimetic",
    "plan_projection",
    "plan_templates",
    "project_from",
]

#: What ``templates=None`` takes: it ships in the package.
DEFAULT_TEMPLATES = "mixed-w96"

M = TypeVar("M", bound=nn.Module)
Unexplained = Literal["raise", "keep"]
AncestorLike = str | os.PathLike[str] | nn.Module | Mapping[str, Tensor] | Ancestor


def init_from_templates(
    model: M,
    templates: str | os.PathLike[str] | TemplateBundle | None = None,
    *,
    scalers: Scalers | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    r"""Fill a model in place with weights composed from templates, and return it.

    Every block weight becomes :math:`W = \sum_t T_t \otimes S_t` (WAVE, Feng et al., CVPR 2025,
    Eq. 4) at the model's own depth and width; the tensors outside the blocks are resampled and
    widened; a head with other classes is fresh.

    Args:
        model: of the family that the templates were trained in, and of any size.
        templates: a built-in name, a folder, ``"org/name@revision"`` on the Hugging Face Hub, or a
            bundle; None takes the shipped ``mixed-w96``.
        scalers: ``"nested"`` (WeiT), ``"interpolate"``, ``"linear"`` (WAVE's Eq. B.1) or
            ``"fitted"``; None is what the templates were trained for.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if the templates cannot be had or are not sound.
        ProjectionError: if they do not fit the model.

    Warns:
        UserWarning: if no templates are named and the model has many more patches, or is much
            wider, than where the shipped ones were measured to help.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=3)
        >>> wi.init_from_templates(model) is model
        True
    """
    plan = plan_templates(
        model,
        templates,
        scalers=scalers,
        generator=generator,
        keep=keep,
        rules=rules,
        unexplained=unexplained,
    ).validate()
    for doubt in plan.doubts:  # before the first write, because a warning may be an error
        warnings.warn(f"init_from_templates: {doubt}", stacklevel=2)
    plan.commit()
    return model


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
    """Return what :func:`init_from_templates` would do, without doing it.

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
    recipes = keeping(target, composed, keep)
    return Plan(
        model,
        target,
        recipes,
        source=f"templates {bundle.source}",
        seed=_seed(generator),
        doubts=out_of_reach(bundle, target) if templates is None else (),
        notes=lambda: [*said, *drawn(recipes, "bundle"), *_exact_checkpoint(model)],
    )


def init_mimetic(
    model: M,
    *,
    options: Mimetic | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    r"""Fill a model in place so that its attention resembles a trained one's, and return it.

    No source is needed: in every layer :math:`W_Q W_K^\top \approx 0.7 Z + 0.7 I` for each head and
    :math:`W_V W_{proj} \approx 0.4 Z - 0.4 I` (Trockman & Kolter, ICML 2023, arXiv 2305.09828),
    positions are sinusoidal, and everything else is fresh by rule. It is meant for small data; the
    paper does not train the positions, which stay trainable here.

    Args:
        model: a vision transformer of any size.
        options: a :class:`weightinit.Mimetic`; None is the paper's.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        ProjectionError: if it is no vision transformer.

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
    plan_mimetic(
        model, options=options, generator=generator, keep=keep, rules=rules, unexplained=unexplained
    ).commit()
    return model


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
    """Return what :func:`init_mimetic` would do, without doing it.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2)
        >>> wi.plan_mimetic(model, options=wi.Mimetic(positions="fresh")).report().counts
        {'written': 4, 'fresh': 28, 'kept': 0}
    """
    target = _seen(model, keep, rules, unexplained)
    planned = planned_mimetic(target, options, seed=base_seed(generator))
    recipes = keeping(target, planned.recipes(target), keep)
    return Plan(model, target, recipes, source="mimetic initialisation", seed=_seed(generator))


def project_from(
    ancestor: AncestorLike,
    target: M,
    *,
    method: MethodName | Method = "auto",
    calibration: Iterable[Any] | Literal["generated", "none"] | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    """Fill a model in place with weights inherited from one pretrained ancestor, and return it.

    Narrower or wider, shallower or deeper, other heads, MLP ratio, patch and image size, all at
    once.

    With batches, a smaller target is fitted to what the ancestor does on them; without, a narrower
    one on generated data. That costs some multiples of the ancestor's own forward passes over the
    data, of which it sees 64 to 512 generated images, by 32 patches for each of its channels. A
    copy of the ancestor runs, with its forward hooks.

    A pre-norm model that ends in a norm, once fitted, is trained with AdamW at the rate of random
    weights, about 3e-4 to 1e-3. All else that is inherited wants about 2e-5 to 1e-4, and a new head
    ten times as much. The report of :func:`plan_projection` says which.

    Args:
        ancestor: a timm name, ``"org/name@revision"`` on the Hugging Face Hub, a safetensors file
            or folder, a module, a state dict, or an :class:`weightinit.Ancestor`. It is only read.
        target: a model of the same family.
        method: by name, or an object of its options: ``wi.WeightSelection(faithful=True)``.
        calibration: a few batches that the ancestor takes, unlabelled: 5 to 20 of real data are
            best. None is what the method does without; ``"auto"`` fits a narrower target on images
            or tokens that it generates, where the ancestor can be run, and takes whole blocks where
            only blocks are fewer. ``"generated"`` gives such data to any method, and ``"none"``
            keeps ``"auto"`` to the weights alone, which takes seconds and mostly keeps less.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the target or the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if the two do not fit.

    Warns:
        UserWarning: if the two are of very different size, or compute different functions; the
            report of :func:`plan_projection` has the same lines.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor, model = (
        ...     timm.create_model("vit_tiny_patch16_224", img_size=32, depth=n, embed_dim=d,
        ...                       num_heads=d // 32) for n, d in ((3, 96), (2, 64)))
        >>> wi.project_from(ancestor, model) is model
        True
    """
    plan = plan_projection(
        ancestor,
        target,
        method=method,
        calibration=calibration,
        generator=generator,
        keep=keep,
        rules=rules,
        unexplained=unexplained,
    ).validate()
    for doubt in plan.doubts:  # before the first write, because a warning may be an error
        warnings.warn(f"project_from: {doubt}", stacklevel=2)
    plan.commit()
    return target


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
    """Return what :func:`project_from` would do, without doing it.

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
    rules, keep = _checked(rules), names_of(keep)
    seen = _seen(target, keep, rules, unexplained)
    opened = Ancestor.open(ancestor, rules=rules)
    source, notes = folded(opened, seen)
    kept = kept_by(seen, keep)
    pieces = (piece for spec in seen.specs if spec.name in kept for piece in seen.pieces(spec))
    if any(piece.facts.place != "reads" for piece in pieces):
        chosen = unpaced(chosen)
    doubts = check_pair(source.anatomy, seen, kept)
    seed = base_seed(generator)
    batches, of_data = given(calibration, source, seed=seed)
    planned = chosen.plan(source, seen, seed=seed, calibration=batches)
    recipes = keeping(seen, planned.recipes(seen), keep)
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


def init_from_hypernet(
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
) -> M:
    """Fill a model in place with weights that a hypernetwork predicts for it, and return it.

    GHN-3 (Knyazev et al., ICML 2023), LoGAH (Zhou et al., 2024), TAL and PITH (Xu et al.). The
    prediction is deterministic, and runs no forward pass of the model. Layers that the published
    graphs have no node for (tokens, layer scales) are set by the rule that the report names.

    Args:
        model: a ViT or GPT-2 of any size.
        hypernet: a built-in name, a folder, ``"org/name@revision"`` on the Hugging Face Hub, a
            :class:`weightinit.HyperNetwork`, or a network.
        task: TAL: an embedding ``[task_dim]``, or images of the task, a batch ``[B, C, H, W]`` or
            an iterable of batches as the ancestor takes them, whose mean feature it is.
        ancestor: that PITH inherits from, or that makes the task's embedding.
        faithful: to the released code: tensors beyond the decoder's size are clipped and tiled, the
            positions of tokens are random, PITH's positions are one off, what has no node stays as
            it was, a language model's matrices have the standard deviation of its initialiser.
            None is the rules by which the hypernetwork was trained; the report notes them.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if the hypernetwork or the ancestor cannot be had or is not sound.
        ProjectionError: if the model has layers outside the vocabulary, or is larger than the
            hypernetwork predicts, or task or ancestor do not fit.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.hypernet.config import HyperConfig
        >>> from weightinit.hypernet.network import GraphHyperNetwork
        >>> small = HyperConfig("logah", hid=16, layers=1, heads=2, rank=4, max_ck=8192)
        >>> logah = GraphHyperNetwork(small)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=96, num_heads=3)
        >>> wi.init_from_hypernet(model, logah) is model
        True
    """
    plan_hypernet(
        model,
        hypernet,
        task=task,
        ancestor=ancestor,
        faithful=faithful,
        generator=generator,
        keep=keep,
        rules=rules,
        unexplained=unexplained,
    ).commit()
    return model


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
    """Return what :func:`init_from_hypernet` would do, without doing it."""
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
        keeping(target, planned.recipes(target), keep),
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
    return anatomy(model, rules=_checked(rules), keep=names_of(keep), unexplained=unexplained)


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
