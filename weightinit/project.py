"""Inheriting weights from one pretrained ancestor, in either direction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Rule, anatomy
from weightinit.ancestor import Ancestor
from weightinit.api import keeping
from weightinit.errors import ProjectionError
from weightinit.methods.fresh import base_seed
from weightinit.methods.pairs import check_pair
from weightinit.plan import Plan, Recipe

__all__ = ["METHODS", "Method", "plan_projection", "project_from"]

AncestorLike = str | os.PathLike[str] | nn.Module | Mapping[str, Tensor] | Ancestor

#: From the name that ``method=`` takes to where its options live.
METHODS: Mapping[str, str] = {
    "activation": "weightinit.methods.activation:ActivationAware",
    "auto": "weightinit.methods.auto:Auto",
    "bert2bert": "weightinit.methods.bert2bert:Bert2BERT",
    "bot": "weightinit.methods.bot:BoT",
    "fine": "weightinit.methods.fine:FINE",
    "expansions": "weightinit.methods.expansions:Expansions",
    "hypercloning": "weightinit.methods.hypercloning:HyperCloning",
    "lemon": "weightinit.methods.lemon:LEMON",
    "ligo": "weightinit.methods.ligo:LiGO",
    "net2net": "weightinit.methods.net2net:Net2Net",
    "pith": "weightinit.generate:PITH",
    "stacking": "weightinit.methods.stacking:Stacking",
    "subcloning": "weightinit.methods.subcloning:Subcloning",
    "weight_selection": "weightinit.methods.selection:WeightSelection",
}


class Method(Protocol):
    """One way to inherit weights: a frozen dataclass of its options.

    Its ``notes(source, target)``, where it has them, are lines for the report: whether the
    function is kept, say.
    """

    def recipes(
        self,
        source: Ancestor,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> list[Recipe]:
        """Return a recipe for every parameter of a target."""
        ...


def project_from(
    ancestor: AncestorLike,
    target: nn.Module,
    *,
    method: str | Method = "auto",
    calibration: Iterable[Any] | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> nn.Module:
    """Fill a model in place with weights inherited from one pretrained ancestor, and return it.

    Narrower or wider, shallower or deeper, other heads, MLP ratio, patch and image size, all at
    once. Call it before building the optimizer.

    Args:
        ancestor: a timm name, ``"org/name@revision"`` on the Hugging Face Hub, a safetensors file
            or folder, a module, a state dict, or an :class:`weightinit.Ancestor`. It is only read.
        target: a model of the same family, on any device. A meta model is materialised on the CPU.
        method: by name, or an object of its options: ``wi.WeightSelection(heads="flat")``.
        calibration: a few batches that the ancestor takes, unlabelled; some methods need them.
        generator: of every random draw; None is a fixed seed. The global one is never touched.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains; see :func:`weightinit.anatomy`.

    Returns:
        ``target``.

    Raises:
        AnatomyError: if a parameter of the target or the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if the two do not fit. The target is left as it was.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=3)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=3)
        >>> wi.project_from(ancestor, model) is model
        True
    """
    return plan_projection(
        ancestor,
        target,
        method=method,
        calibration=calibration,
        generator=generator,
        keep=keep,
        rules=rules,
    ).commit()


def plan_projection(
    ancestor: AncestorLike,
    target: nn.Module,
    *,
    method: str | Method = "auto",
    calibration: Iterable[Any] | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> Plan:
    """Return what :func:`project_from` would do, without doing it.

    Takes the same arguments and raises the same errors, but for values that are not finite, which
    :meth:`Plan.validate` finds.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=7)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=7)
        >>> wi.plan_projection(ancestor, model).report().counts["fresh"]
        0
    """
    source = Ancestor.open(ancestor)
    seen = anatomy(target, rules=tuple(rules))
    notes = check_pair(source.anatomy, seen)
    chosen = get_method(method)
    if pick := getattr(chosen, "choose", None):
        chosen = pick(source.anatomy, seen, calibration)
        notes.append(f"method 'auto' picked {chosen}")
    recipes = chosen.recipes(source, seen, seed=base_seed(generator), calibration=calibration)
    if say := getattr(chosen, "notes", None):
        notes += say(source, seen)
    return Plan(
        target,
        seen,
        keeping(seen, recipes, keep),
        source=f"ancestor {source.source}, by {chosen}",
        notes=lambda: notes,
    )


def get_method(method: str | Method) -> Method:
    """Return a method by name with its default options, or the object itself."""
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ProjectionError(f"method={method!r} is unknown: use one of {sorted(METHODS)}")
    module, _, name = METHODS[method].partition(":")
    return getattr(import_module(module), name)()
