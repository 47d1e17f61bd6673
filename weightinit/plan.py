"""Recipes for every parameter of a model: computed and checked first, committed all or nothing."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.errors import ProjectionError
from weightinit.report import Report, Row

__all__ = ["Action", "Inheritance", "Part", "Plan", "Recipe", "assemble", "joined", "keeping"]


Action = Literal["written", "fresh", "kept"]
Fill = Callable[[Tensor], object]


@dataclass(frozen=True)
class Part:
    """What becomes of one canonical piece of a parameter.

    Args:
        action: ``"written"`` from the source, ``"fresh"`` by an explicit rule, or ``"kept"``.
        text: where its values come from, for people; nothing is read from it.
        fill: writes the values into a view of the piece's canonical size; None where it is kept.
        whole: whether ``fill`` is known to write every value, so that nothing has to be marked
            before to find what it left out.
    """

    action: Action
    text: str
    fill: Fill | None = None
    whole: bool = False


@dataclass(frozen=True)
class Inheritance:
    """What a method makes of a target; nothing is written yet.

    Args:
        parts: one for each canonical piece of the target.
        notes: what the user should know besides: whether the function is kept, say.
    """

    parts: Mapping[Piece, Part]
    notes: Sequence[str] = ()

    def recipes(self, target: Anatomy) -> list[Recipe]:
        """Return one recipe for every parameter of the target; see :func:`assemble`."""
        return assemble(target, self.parts.__getitem__)


@dataclass(frozen=True)
class Recipe:
    """What becomes of one parameter.

    Args:
        spec: the parameter.
        action: ``"written"`` if any of its parts is, else ``"fresh"`` or ``"kept"``.
        source: where its values come from, for people.
        fill: writes the values into a tensor of the parameter's global shape, on the CPU, in fp32
            (fp64 for fp64 parameters); None where the parameter is kept.
        whole: whether ``fill`` is known to write every value.
    """

    spec: ParamSpec
    action: Action
    source: str
    fill: Fill | None = None
    whole: bool = False


def assemble(target: Anatomy, part_of: Callable[[Piece], Part]) -> list[Recipe]:
    """Return one recipe for every parameter of a target, from the parts of its pieces.

    Args:
        target: anatomy of the model to fill.
        part_of: the part of each canonical piece.

    Raises:
        ProjectionError: if some pieces of a fused parameter are kept and others are not.

    Examples:
        >>> import timm, weightinit as wi
        >>> seen = wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=1))
        >>> recipes = assemble(seen, lambda piece: Part("fresh", "zeros", lambda out: out.zero_()))
        >>> len(recipes) == len(seen.specs), recipes[0].source
        (True, 'zeros')
    """
    return [
        joined(target, spec, [part_of(piece) for piece in target.pieces(spec)])
        for spec in target.specs
    ]


def joined(target: Anatomy, spec: ParamSpec, parts: Sequence[Part]) -> Recipe:
    """Return the recipe of one parameter from the parts of its pieces; see :func:`assemble`."""
    actions = {part.action for part in parts}
    text = "; ".join(dict.fromkeys(part.text for part in parts))
    if actions == {"kept"}:
        return Recipe(spec, "kept", text)
    if "kept" in actions:
        raise ProjectionError(
            f"{spec.name} stores {', '.join(spec.parts)} together: keep all of it or nothing"
        )

    def fill(out: Tensor) -> None:
        for role, part in zip(spec.parts, parts, strict=True):
            assert part.fill is not None
            # A view made before the last write has no part in its gradient.
            part.fill(target.split(spec, out)[role])

    action = "written" if "written" in actions else "fresh"
    return Recipe(spec, action, text, fill, all(part.whole for part in parts))


class Plan:
    """A dry run that can be committed: one :class:`Recipe` for each parameter of ``model``.

    Args:
        model: the module to write.
        anatomy: of that module.
        recipes: one for each of its parameters, in any order.
        source: where the values come from, for the report.
        notes: returns further lines for the report; called when one is made.

    Raises:
        ProjectionError: if a parameter has no recipe, or cannot be kept because it is on meta.

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
        model: nn.Module,
        anatomy: Anatomy,
        recipes: Sequence[Recipe],
        *,
        source: str,
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.model = model
        self.anatomy = anatomy
        self.recipes = {recipe.spec.name: recipe for recipe in recipes}
        self._source, self._notes = source, notes
        self._values: dict[str, Tensor] | None = None
        self._parameters = dict(model.named_parameters())
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

    def report(self) -> Report:
        """Return what becomes of every parameter; nothing is computed or written."""
        rows = [
            Row(r.spec.name, r.spec.role, r.spec.block, tuple(r.spec.shape), r.action, r.source)
            for r in (self.recipes[name] for name in self._parameters)
        ]
        return Report(rows, source=self._source, notes=self._notes(), model=self.model)

    def validate(self) -> Plan:
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
            with torch.no_grad():
                if not recipe.whole:
                    value.fill_(torch.nan)  # the check below finds what stays unwritten
                recipe.fill(value)
            if not _finite(value):
                raise ProjectionError(
                    f"{name} ({recipe.spec.role}, {tuple(value.shape)}) would get values that are "
                    f"not finite from {recipe.source}: check the source with torch.isfinite"
                )
            if parameter.dtype != dtype and not _finite(value.to(parameter.dtype)):
                raise ProjectionError(
                    f"{name} ({recipe.spec.role}) overflows {parameter.dtype}: use bfloat16 or "
                    "float32 parameters"
                )
            values[name] = value
        self._values = values
        return self

    def commit(self) -> nn.Module:
        """Write the values in place, all or nothing, and return the model.

        A meta model is materialised on the CPU. After any exception, KeyboardInterrupt included,
        the model is as it was, bit for bit.

        Raises:
            ProjectionError: see :meth:`validate`.
        """
        self.validate()
        values, self._values = self._values or {}, None
        if any(isinstance(p, DTensor) for p in self._parameters.values()):
            _commit_sharded(self.model, self._parameters, values)
        else:
            _commit(self.model, self._parameters, values)
        for name in values:
            # transformers re-initialises whatever lacks this mark.
            self._parameters[name]._is_hf_initialized = True  # type: ignore[attr-defined]
        return self.model


def _finite(value: Tensor) -> bool:
    # The sum is not finite if any value is not; the slow check tells overflow from NaN.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


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


def _commit(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> None:
    meta = {name for name in values if parameters[name].is_meta}
    backup: dict[str, Tensor] = {}
    swapped: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad(), _materialised_buffers(model, needed=bool(meta)):
            for name, value in values.items():
                parameter = parameters[name]
                if name in meta:
                    fresh = nn.Parameter(value.to(parameter.dtype), parameter.requires_grad)
                    swapped.append((parameter, fresh))
                    # The Parameter objects stay: references in optimizers and ties remain valid.
                    torch.utils.swap_tensors(parameter, fresh)
                else:
                    backup[name] = parameter.detach().clone()
                    parameter.copy_(value)
    except BaseException:
        with torch.no_grad():
            for name, old in backup.items():
                parameters[name].copy_(old)
            for parameter, fresh in swapped:
                if fresh.is_meta:
                    torch.utils.swap_tensors(parameter, fresh)
        raise


@contextlib.contextmanager
def _materialised_buffers(model: nn.Module, *, needed: bool, device: str = "cpu") -> Iterator[None]:
    """Give the buffers of a meta model their values; on an exception they are as they were."""
    if not needed:
        yield
        return
    saved = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_meta
    ]
    try:
        for module, name, buffer in saved:
            module._buffers[name] = torch.empty_like(buffer, device=device)
        for module in dict.fromkeys(module for module, _, _ in saved):
            _reset_buffers(module)
        yield
    except BaseException:
        for module, name, buffer in saved:
            module._buffers[name] = buffer
        raise


def _reset_buffers(module: nn.Module) -> None:
    """Fill a module's buffers through its own method."""
    for method in ("init_non_persistent_buffers", "reset_running_stats"):
        if callable(reset := getattr(module, method, None)):
            reset()
            return
    names = [name for name, _ in module.named_buffers(recurse=False)]
    raise ProjectionError(
        f"{type(module).__name__} has buffers {names} on the meta device and no way to rebuild "
        "them: build the model on the CPU"
    )


def _commit_sharded(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> None:
    """Write full tensors into a model with DTensor parameters: the same bits on every mesh."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    saved = [
        (module, name, parameter, None if parameter.is_meta else _local(parameter).clone())
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    state: dict[str, Any] = {
        _WRAPPERS.sub("", name): value.to(parameters[name].dtype) for name, value in values.items()
    }
    device = next(p.device_mesh.device_type for p in parameters.values() if isinstance(p, DTensor))
    meta = any(parameters[name].is_meta for name in values)
    try:
        with _materialised_buffers(model, needed=meta, device=device):
            options = StateDictOptions(full_state_dict=True, strict=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of its own internals
                unexpected = set_model_state_dict(model, state, options=options).unexpected_keys
            if unexpected:
                raise ProjectionError(
                    f"torch.distributed does not know {unexpected}: initialise the model before "
                    "wrapping it"
                )
    except BaseException:
        with torch.no_grad():
            for module, name, parameter, local in saved:
                if local is not None:
                    _local(parameter).copy_(local)
                module._parameters[name] = parameter
        raise


_WRAPPERS = re.compile(r"\b(_orig_mod|module|_checkpoint_wrapped_module)\.")


def _local(parameter: Tensor) -> Tensor:
    """Return this rank's part of a parameter, without gradient."""
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value
