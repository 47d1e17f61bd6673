"""From what a user calls a start to a model that is filled by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from weightinit.ancestor.ancestor import Ancestor
from weightinit.api import (
    AncestorLike,
    plan_hypernet,
    plan_mimetic,
    plan_projection,
    plan_templates,
)
from weightinit.errors import ProjectionError, WeightInitError
from weightinit.files.locate import names
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.pith import HypernetLike
from weightinit.inherit.method import Method
from weightinit.inherit.running import Running
from weightinit.plan import Plan
from weightinit.registry import METHODS
from weightinit.starts import kind_of
from weightinit.templates.bundle import TemplateBundle
from weightinit.training.contexts import seeded

__all__ = ["Start", "Starter", "named_starts"]

#: What may be compared.
Start = (
    AncestorLike
    | TemplateBundle
    | HypernetLike
    | Method
    | tuple[AncestorLike, str | Method]
    | Callable[[nn.Module], object]
)

#: Starts that need no file; the first is the model's own weights.
RANDOM, MIMETIC = "random", "mimetic"
#: What the methods need that are tried unasked.
FREE = ("nothing", "batches", "batches, or nothing")


def named_starts(
    candidates: Mapping[str, Start] | Iterable[Start] | None, ancestor: bool
) -> dict[str, Start]:
    """Return starts by name: those given, or all that need nothing but an ancestor, if any."""
    if candidates is None:
        methods = [n for n, facts in METHODS.items() if facts.needs in FREE]
        shipped = [RANDOM, MIMETIC, *names(TemplateBundle.kind), *names(HyperNetwork.kind)]
        return {name: name for name in (*shipped, *(methods if ancestor else ()))}
    if isinstance(candidates, Mapping):
        found = dict(cast(Mapping[str, Start], candidates))
    elif isinstance(candidates, (str, os.PathLike, nn.Module)) or not isinstance(
        candidates, Iterable
    ):
        raise WeightInitError(
            f"candidates={candidates!r}: pass a list of starts, a dict of name and start, or None"
        )
    else:
        starts = list(candidates)
        labels = [_label(start) for start in starts]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise WeightInitError(
                f"candidates= has two of the name {min(twice)!r}: pass a dict of name and start"
            )
        found = {label: start for label, start in zip(labels, starts, strict=True)}  # noqa: C416
    if not found:
        raise WeightInitError("candidates= is empty: name a start, or pass None for the shipped")
    return found


def _label(start: Start) -> str:
    if isinstance(start, (str, os.PathLike)):
        return os.fspath(start)
    if isinstance(start, tuple):
        return ", ".join(map(_label, start))
    if isinstance(start, (TemplateBundle, HyperNetwork, Ancestor)) and start.source:
        return start.source
    return getattr(start, "__name__", type(start).__name__)


class Starter:
    """Fills a model by any start, and says from where.

    Args:
        ancestor: what methods inherit from, and hypernetworks that need one.
        calibration: batches for methods that look at data, or a word, as
            :func:`weightinit.project_from` takes them; None takes the examples' inputs.
        inputs: of a few batches of the examples.
        seed: base seed for all random draws.
    """

    def __init__(
        self,
        ancestor: AncestorLike | None,
        calibration: Iterable[Any] | Literal["generated", "none"] | None,
        inputs: Sequence[Any],
        seed: int,
    ) -> None:
        self._ancestor = None if ancestor is None else Ancestor.open(ancestor)
        # An iterator would be empty for the second method.
        self._calibration = (
            calibration
            if calibration is None or isinstance(calibration, str)
            else list(calibration)
        )
        self._inputs, self._seed = inputs, seed

    def fill(self, model: nn.Module, start: Start) -> tuple[str, list[str]]:
        """Fill a model in place; return where its weights are from, and what else to know."""
        options: dict[str, Any] = {"generator": torch.Generator().manual_seed(self._seed)}
        if isinstance(start, str) and start == RANDOM:
            if any(parameter.is_meta for parameter in model.parameters()):
                raise WeightInitError("the model is on the meta device: build it on the CPU")
            return "its own weights", []
        if isinstance(start, str) and start == MIMETIC:
            return _committed(plan_mimetic(model, **options))
        if (isinstance(start, str) and start in METHODS) or hasattr(start, "plan"):
            return self._projected(model, self._required(start), start, options)
        if isinstance(start, tuple):
            if len(start) != 2:
                raise WeightInitError(f"{start!r}: pass a pair of an ancestor and a method")
            return self._projected(model, Ancestor.open(start[0]), start[1], options)
        if callable(start) and not isinstance(start, nn.Module):
            with seeded(self._seed):
                own = start(model)
            if isinstance(own, nn.Module) and own is not model:
                raise WeightInitError(
                    "it returns another model: fill the one that it is given, in place"
                )
            return f"{getattr(start, '__name__', type(start).__name__)}()", []
        kind = kind_of(start)
        if kind == "templates":
            return _committed(plan_templates(model, start, **options))  # type: ignore[arg-type]
        if kind == "hypernetwork":
            return _committed(
                plan_hypernet(model, start, ancestor=self._ancestor, **options)  # type: ignore[arg-type]
            )
        return self._projected(model, Ancestor.open(start), "auto", options)  # type: ignore[arg-type]

    def _required(self, start: Start) -> Ancestor:
        if self._ancestor is None:
            raise WeightInitError(
                f"{start!r} is a method, which inherits from an ancestor: pass ancestor="
            )
        return self._ancestor

    def _projected(
        self, model: nn.Module, source: Ancestor, method: Any, options: dict[str, Any]
    ) -> tuple[str, list[str]]:
        calibration, notes = self._calibration, []
        if calibration is None:
            calibration = list(self._inputs)
            try:
                Running(source, calibration[:1]).run(0)
            except ProjectionError as error:
                calibration = None
                notes = [f"without calibration on batches=, as {error}; or pass calibration="]
        plan = plan_projection(source, model, method=method, calibration=calibration, **options)
        text, more = _committed(plan)
        return text, [*notes, *more]


def _committed(plan: Plan) -> tuple[str, list[str]]:
    report = plan.report()
    plan.commit()
    return report.source, [*plan.doubts]
