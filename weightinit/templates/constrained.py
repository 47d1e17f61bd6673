"""A model whose block weights are composed from weight templates and scalers at every step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weightinit.anatomy import ParamSpec
from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import ComposedModel
from weightinit.inherit.outside import collect
from weightinit.kernels import kron_sum
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.compose import Composer
from weightinit.templates.kinds import Block, blocks_of
from weightinit.templates.scalers import interpolate_depth

__all__ = ["ConstrainedModel", "Slots"]


class Slots:
    """The parameters of a model's blocks that templates make up, of all blocks at once.

    Raises:
        ProjectionError: if the blocks differ in size.
    """

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.specs: list[tuple[ParamSpec, ...]] = []
        for stack in dict.fromkeys(kind.stack for kind in composer.config.kinds.values()):
            self.specs += self._alike(blocks_of(composer.target, stack))
        self._joint = {specs[0] for specs in self.specs if composer.joint(specs[0])}

    def _alike(self, blocks: Sequence[Block]) -> list[tuple[ParamSpec, ...]]:
        """Return the covered parameters of the blocks of a stack, one spec a block."""
        kinds, first = self.composer.config.kinds, blocks[0] if blocks else {}
        covered = [role for role, piece in first.items() if self.composer.kind(piece) in kinds]
        slots = {}
        for role in covered:
            specs = tuple(block[role].spec for block in blocks if role in block)
            slots[specs[0].name] = specs
            alike = all(s.shape == specs[0].shape and s.parts == specs[0].parts for s in specs)
            if len(specs) != len(blocks) or not alike or not set(specs[0].parts) <= set(covered):
                raise ProjectionError(
                    f"{specs[0].role} ({specs[0].name}) cannot be composed: all blocks must have "
                    f"it in one size, made of kinds of the config ({sorted(covered)}). Leave its "
                    "kind out of the config, or use a model of like blocks"
                )
        return list(slots.values())

    @property
    def names(self) -> list[str]:
        """The names of the parameters, tied ones among them."""
        return [name for specs in self.specs for s in specs for name in (s.name, *s.tied)]

    def weights(
        self, templates: Mapping[str, Tensor], scalers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the parameters by name, composed for as many blocks as the scalers have."""
        return {
            name: value
            for specs in self.specs
            for spec, value in zip(specs, self._stored(specs[0], templates, scalers), strict=False)
            for name in (spec.name, *spec.tied)
        }

    def _stored(
        self, spec: ParamSpec, templates: Mapping[str, Tensor], scalers: Mapping[str, Tensor]
    ) -> Iterable[Tensor]:
        """Return one parameter of every block as it is stored."""
        pieces, composer = self.composer.target.pieces(spec), self.composer
        kinds = [composer.kind(piece) for piece in pieces]
        if spec in self._joint:
            # The step must cost what an unconstrained step costs: few and large operations.
            values = kron_sum(templates[kinds[0]], scalers[kinds[0]], order=composer.config.order)
            return values.unbind(0)
        parts = [
            composer.compose(piece, templates[kind], scalers[kind])
            for piece, kind in zip(pieces, kinds, strict=True)
        ]
        return map(spec.layout.merge, zip(*parts, strict=True))


class ConstrainedModel(ComposedModel):
    """What :func:`constrain` makes.

    Args:
        model: a model on a device; it is copied.
        composer: composes its blocks.
        templates: start values by kind, ``[N, *shape]``.
        scalers: start values by kind, ``[depth, N, *scaler_shape]``, of any depth.

    Attributes:
        model: the inner model, without its block weights.
        templates: by kind, dots replaced by underscores.
        scalers: likewise; constant buffers for closed-form methods.
        depth_used: how many blocks are composed, their scalers interpolated over depth; None is
            :attr:`depth`.
    """

    def __init__(
        self,
        model: nn.Module,
        composer: Composer,
        templates: Mapping[str, Tensor],
        scalers: Mapping[str, Tensor],
    ) -> None:
        self.slots = Slots(composer)
        super().__init__(_copy(model), self.slots.names)
        self.composer, self.config = composer, composer.config
        self.depth_used: int | None = None
        self.templates = nn.ParameterDict()
        self.scalers = nn.ParameterDict() if self.config.trained else _Constants()
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        for kind, spec in self.config.kinds.items():
            number, shape = spec.number, composer.scaler_shape(kind)
            for what, held, value, expected in (
                ("templates", self.templates, templates[kind], (number, *spec.shape)),
                ("scalers", self.scalers, scalers[kind], (None, number, *shape)),
            ):
                if value.shape[1:] != expected[1:] or expected[0] not in (None, len(value)):
                    raise ProjectionError(
                        f"{what} of {kind} have shape {tuple(value.shape)}, and the model needs "
                        f"{expected} (None is the depth): pass those of this config and model"
                    )
                value = value.detach().to(like.device, like.dtype).clone()
                held[_key(kind)] = nn.Parameter(value)

    def weights(self) -> dict[str, Tensor]:
        """Return the composed parameters of all blocks, by name."""
        scalers = self.scaler_values()
        if self.depth_used is not None:
            scalers = {k: interpolate_depth(s, self.depth_used) for k, s in scalers.items()}
        return self.slots.weights(self.template_values(), scalers)

    @property
    def depth(self) -> int:
        """How many blocks have scalers of their own."""
        return len(next(iter(self.scalers.values())))

    @property
    def uncovered(self) -> list[str]:
        """The roles in the blocks that no kind covers."""
        specs = self.composer.target.specs
        return sorted({s.role for s in specs if s.stack and s.name not in self._places})

    def template_values(self) -> dict[str, Tensor]:
        """Return the templates by kind, ``[N, *shape]``."""
        return {kind: self.templates[_key(kind)] for kind in self.config.kinds}

    def scaler_values(self) -> dict[str, Tensor]:
        """Return the scalers by kind, ``[depth, N, *scaler_shape]``."""
        return {kind: self.scalers[_key(kind)] for kind in self.config.kinds}

    def no_weight_decay(self) -> set[str]:
        """Return the names of what composes biases and norms, and the inner model's exclusions."""
        vectors = {_key(k) for k, spec in self.config.kinds.items() if len(spec.shape) == 1}
        names = {f"{held}.{key}" for held in ("templates", "scalers") for key in vectors}
        inner: Any = getattr(self.model, "no_weight_decay", set)
        return names | {f"model.{name}" for name in inner()}

    @torch.no_grad()
    def to_bundle(
        self,
        *,
        provenance: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        licence: str = "Apache-2.0",
    ) -> TemplateBundle:
        """Return templates, scalers and what is outside the blocks as a bundle.

        Parameters of a sharded model are gathered, so that all ranks must call it.

        Args:
            provenance: of the training, plain JSON. Parameters of the blocks that no kind covers
                (layer scale, say) are not part of a bundle; they are listed under ``left_out``.
            dtype: dtype of the tensors.
            licence: SPDX identifier.
        """
        tensors = {f"templates.{k}": v for k, v in self.template_values().items()}
        if self.config.trained:
            tensors |= {f"scalers.{k}": v for k, v in self.scaler_values().items()}
        anatomy, left = self.composer.target, self.uncovered
        outside = dict(self.model.named_parameters(remove_duplicate=False))
        return as_bundle(
            anatomy,
            self.config,
            {name: _gathered(value) for name, value in tensors.items()},
            collect(anatomy, {name: _gathered(value) for name, value in outside.items()}),
            depth=self.depth if len(anatomy.stages) == 1 else anatomy.depth,
            licence=licence,
            provenance={**(provenance or {}), **({"left_out": left} if left else {})},
            traits=self.traits(),
            dtype=dtype,
        )

    def traits(self) -> dict[str, Any]:
        """Return what a bundle says of the sizes that were trained."""
        return {}


class _Constants(nn.Module):
    """Tensors that follow the module's device and are neither trained nor saved."""

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.register_buffer(key, value.detach(), persistent=False)

    def __getitem__(self, key: str) -> Tensor:
        return self.get_buffer(key)

    def values(self) -> list[Tensor]:
        return list(self.buffers())


def _gathered(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _key(kind: str) -> str:
    return kind.replace(".", "_")


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ProjectionError(
            f"the model cannot be copied ({error}): constrain it before it is wrapped or run"
        ) from error
