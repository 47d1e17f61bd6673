"""A plan: recipes for every parameter of a model, checked first, and committed all or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy
from weightinit.anatomy.signal import silent
from weightinit.commit import overlapping, parameters_of, sharing, write
from weightinit.errors import ProjectionError, WeightInitError
from weightinit.numerics import finite, plain_numerics
from weightinit.recipes import Recipe
from weightinit.report import Report, Row
from weightinit.text import first

__all__ = ["Plan"]

M = TypeVar("M", bound=nn.Module)
logger = logging.getLogger("weightinit")


class Plan(Generic[M]):
    """A dry run that can be committed: one :class:`Recipe` for each parameter of ``model``.

    Args:
        model: the module to write.
        anatomy: of that module.
        recipes: one for each of its parameters, in any order.
        source: where the values come from, for the report.
        readonly: tensors that the values are read from, which no written parameter may share.
        seed: of the user's generator, for the report.
        doubts: what makes one doubt that the call was meant; the report begins its notes with it.
        notes: returns further lines for the report; called when one is made.

    Raises:
        ProjectionError: if a parameter has no recipe, cannot be kept because it is on meta, or
            shares memory with another or with what is read.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5)
        >>> plan = wi.plan_templates(model)
        >>> plan.validate().report().counts["written"]
        30
        >>> plan.commit() is model
        True
    """

    def __init__(
        self,
        model: M,
        anatomy: Anatomy,
        recipes: Sequence[Recipe],
        *,
        source: str,
        readonly: Iterable[Tensor] = (),
        seed: int | None = None,
        doubts: Sequence[str] = (),
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.model = model
        self.anatomy = anatomy
        self.doubts = tuple(doubts)
        self._source, self._seed, self._notes, self._committed = source, seed, notes, False
        self._values: dict[str, Tensor] | None = None
        self._parameters = parameters_of(model)
        self._made_of = {name: (p.shape, p.dtype) for name, p in self._parameters.items()}
        self.recipes = {recipe.spec.name: recipe for recipe in recipes}
        for name, recipe in self.recipes.items():
            if recipe.action == "kept" and recipe.fill is not None:
                self.recipes[name] = (
                    replace(recipe, action="fresh")
                    if self._parameters[name].is_meta
                    else replace(recipe, fill=None)
                )
        missing = [name for name in self._parameters if name not in self.recipes]
        if missing:
            raise ProjectionError(f"no recipe for {missing}: a method must cover every parameter")
        meta = [
            name
            for name, recipe in self.recipes.items()
            if recipe.action == "kept" and self._parameters[name].is_meta
        ]
        if meta:
            raise ProjectionError(
                f"cannot keep {meta}: on the meta device they have no values; build the model on "
                "the CPU, or drop them from keep="
            )
        written = {n: p for n, p in self._parameters.items() if self.recipes[n].fill is not None}
        if shared := sharing(written, readonly):
            raise ProjectionError(
                f"{first(shared)} of the model share memory with the source, which is only read: "
                "copy them first, as copy.deepcopy(block) does, or name them in keep="
            )
        if shared := overlapping(written):
            raise ProjectionError(
                f"{' and '.join(shared)} share memory and are two Parameters: make them one, as in "
                "a.weight = b.weight, or clone one"
            )

    def report(self) -> Report:
        """Return what becomes of every parameter; nothing is computed or written."""
        rows = []
        for name in self._parameters:
            r, spec = self.recipes[name], self.recipes[name].spec
            place = (spec.name, spec.role, spec.block, tuple(spec.shape))
            rows.append(Row(*place, r.action, r.source, r.how, r.blocks))
        notes = [*self.doubts, *self._notes()]
        return Report(
            rows, self._source, notes, seed=self._seed, model=self.model, planned=self._planned
        )

    def _planned(self) -> Mapping[str, Tensor] | None:
        """Return the planned values by name, or None when they are written."""
        return None if self._committed else self.validate()._values

    def __repr__(self) -> str:
        return f"Plan({self.report().summary}; .report() shows it, .commit() does it)"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def _check_current(self) -> None:
        """Raise ProjectionError unless the model's parameters are those that were planned for."""
        now = parameters_of(self.model)
        changed = [
            name
            for name in {**self._parameters, **now}
            if now.get(name) is not self._parameters.get(name)
            or self._made_of[name] != (now[name].shape, now[name].dtype)
        ]
        if changed:
            raise ProjectionError(
                f"the model is no longer what this plan was made for: {first(changed)} were "
                "replaced, moved off meta, sharded or cast. Make a new plan of the model as it is"
            )

    @plain_numerics()
    def validate(self) -> Plan[M]:
        """Compute every value and check it, without touching the model.

        Raises:
            ProjectionError: on a recipe that fails, or values that are not finite, by name.
        """
        if self._values is not None:
            return self
        values: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            recipe = self.recipes[name]
            if parameter.is_inference():
                raise ProjectionError(
                    f"{name} was made in inference mode and cannot be written: build the model "
                    "outside torch.inference_mode()"
                )
            if recipe.fill is None:
                continue
            dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            value = torch.empty(parameter.shape, dtype=dtype)
            try:
                with torch.no_grad():
                    if not recipe.whole:
                        value.fill_(torch.nan)  # the check below finds what stays unwritten
                    recipe.fill(value)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if isinstance(error, (WeightInitError, torch.OutOfMemoryError)):
                    raise
                raise ProjectionError(
                    f"{name} ({recipe.spec.role}, {tuple(value.shape)}) cannot be made from "
                    f"{recipe.source}: {error}. The model is as it was; pass another method="
                ) from error
            if not finite(value):
                raise ProjectionError(
                    f"{name} ({recipe.spec.role}, {tuple(value.shape)}) would get values that are "
                    f"not finite from {recipe.source}: check the source with torch.isfinite"
                )
            if parameter.dtype != dtype and not _fits(value, parameter.dtype):
                raise ProjectionError(
                    f"{name} ({recipe.spec.role}) overflows {parameter.dtype}: use bfloat16 or "
                    "float32 parameters"
                )
            values[name] = value
        if dead := silent(self.anatomy, values):
            raise ProjectionError(
                f"{', '.join(dead[:4])}{', ...' if dead[4:] else ''} would be zeros, behind which "
                f"nothing of the input is left ({self.recipes[dead[0]].source}): check the source, "
                "or use another method"
            )
        self._values = values
        return self

    @plain_numerics()
    def commit(self) -> M:
        """Write the values in place, all or nothing, and return the model.

        A meta model is materialised on the CPU. After any exception the model is as it was, bit for
        bit; a Ctrl-C that comes when all is written is raised with the model filled. The logger
        ``weightinit`` gets a line at INFO: what was used, how many parameters are written, fresh
        and kept, and the report's notes.

        Raises:
            ProjectionError: see :meth:`validate`; or if the model is no longer the planned one.
        """
        self._check_current()
        self.validate()
        report = self.report() if logger.isEnabledFor(logging.INFO) else None
        values, self._values = self._values or {}, None
        write(self.model, self._parameters, values)
        self._committed = True
        for name in values:
            # transformers re-initialises whatever lacks this mark.
            self._parameters[name]._is_hf_initialized = True  # type: ignore[attr-defined]
        if report is not None:
            logger.info("; ".join([report.summary, *report.notes]))
        return self.model


def _fits(value: Tensor, dtype: torch.dtype) -> bool:
    """Return whether values stay finite in another dtype."""
    if dtype.itemsize > 1:
        return finite(value.to(dtype))
    # float8 has no sum, and the cast clamps what overflows.
    return not value.numel() or bool(value.abs().max() <= torch.finfo(dtype).max)
