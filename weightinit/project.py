"""Inheriting weights from one pretrained ancestor, in either direction."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Rule, anatomy
from weightinit.ancestor import Ancestor
from weightinit.api import keeping
from weightinit.errors import ProjectionError
from weightinit.methods.activation import ActivationAware
from weightinit.methods.folding import folded
from weightinit.methods.fresh import base_seed
from weightinit.methods.method import Method
from weightinit.methods.pairs import check_pair
from weightinit.plan import Plan

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

    Warns:
        UserWarning: if the two are of very different size, or compute different functions; the
            report of :func:`plan_projection` has the same lines.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=3)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=3)
        >>> wi.project_from(ancestor, model) is model
        True
    """
    plan, doubts = _planned(ancestor, target, method, calibration, generator, keep, rules)
    plan.validate()
    for doubt in doubts:  # before the first write, because a warning may be an error
        warnings.warn(f"project_from: {doubt}", stacklevel=2)
    return plan.commit()


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
    return _planned(ancestor, target, method, calibration, generator, keep, rules)[0]


def _planned(
    ancestor: AncestorLike,
    target: nn.Module,
    method: str | Method,
    calibration: Iterable[Any] | None,
    generator: torch.Generator | None,
    keep: Iterable[str],
    rules: Iterable[Rule],
) -> tuple[Plan, list[str]]:
    """Return the plan, and what makes one doubt that the pair was meant."""
    chosen = get_method(method)
    if not isinstance(generator, torch.Generator | None):
        raise ProjectionError(f"generator={generator!r}: pass a torch.Generator, or leave it out")
    rules = tuple(rules)
    seen = anatomy(target, rules=rules)
    source, notes = folded(Ancestor.open(ancestor, rules=rules), seen)
    doubts = check_pair(source.anatomy, seen)
    notes += doubts
    if pick := getattr(chosen, "choose", None):
        chosen = pick(source.anatomy, seen, calibration)
        fitted = isinstance(getattr(chosen, "shrink", chosen), ActivationAware)
        unused = calibration is not None and not fitted
        reason = ", which has no use for calibration=" if unused else ""
        notes.append(f"method 'auto' picked {chosen}{reason}")
    recipes = chosen.recipes(source, seen, seed=base_seed(generator), calibration=calibration)
    if say := getattr(chosen, "notes", None):
        notes += say(source, seen)
    plan = Plan(
        target,
        seen,
        keeping(seen, recipes, keep),
        source=f"ancestor {source.source}, by {chosen}",
        notes=lambda: notes,
    )
    return plan, doubts


def get_method(method: str | Method) -> Method:
    """Return a method by name with its default options, or the object itself."""
    if not isinstance(method, str):
        if isinstance(method, type) or not callable(getattr(method, "recipes", None)):
            raise ProjectionError(
                f"method={method!r} is no method: pass one of {sorted(METHODS)}, or an object of "
                "its options, such as wi.LEMON()"
            )
        return method
    if method not in METHODS:
        raise ProjectionError(f"method={method!r} is unknown: use one of {sorted(METHODS)}")
    module, _, name = METHODS[method].partition(":")
    return getattr(import_module(module), name)()
