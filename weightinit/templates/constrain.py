"""A model whose block weights are composed from weight templates and scalers at every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import ParamSpec, Piece, anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import ComposedModel
from weightinit.inherit.fresh import base_seed, sub_generator
from weightinit.inherit.outside import collect
from weightinit.kernels import kron_sum
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig, kind_of
from weightinit.templates.scalers import closed_form, interpolate_depth

__all__ = ["ConstrainedModel", "constrain"]

STD = 0.02


def constrain(
    model: nn.Module,
    config: TemplateConfig,
    *,
    templates: Mapping[str, Tensor] | None = None,
    scalers: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    train: str = "both",
    head_dim: int | None = None,
) -> ConstrainedModel:
    r"""Return a copy of ``model`` whose blocks are :math:`W = \sum_t S_t \otimes T_t`.

    The templates T and scalers S (WAVE, Feng et al., CVPR 2025, Eq. 4 and 6) are its parameters,
    with everything outside the blocks; the block weights follow from them at every forward. Of the
    closed-form methods (``tleg``, ``share``, ...) only the templates are trained.

    Args:
        model: a ViT that :func:`weightinit.anatomy` explains; it is copied and left as it is.
        config: the template set; kinds that the model lacks are dropped.
        templates: start values by kind, ``[N, *shape]``; default: drawn so that matrices get a
            standard deviation of 0.02, norm weights are 1 and biases 0.
        scalers: start values by kind, ``[depth, N, *scaler_shape]``; default: likewise.
        generator: draws the start values; None is a fixed seed.
        train: ``"both"``, or ``"scalers"`` to freeze all else (WAVE's Eq. 8).
        head_dim: head dim that the templates were trained with; None is the model's.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        ProjectionError: if templates or scalers have other shapes, or the blocks differ in size.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, num_heads=2)
        >>> constrained = wi.constrain(vit, wi.TemplateConfig.wave(32))
        >>> constrained(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 1000])
        >>> sum(s.numel() for s in constrained.scalers.values())
        1392
    """
    return ConstrainedModel(
        model,
        config,
        templates=templates,
        scalers=scalers,
        generator=generator,
        train=train,
        head_dim=head_dim,
    )


class ConstrainedModel(ComposedModel):
    """See :func:`constrain`, which makes it.

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
        config: TemplateConfig,
        *,
        templates: Mapping[str, Tensor] | None = None,
        scalers: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        train: str = "both",
        head_dim: int | None = None,
    ) -> None:
        if train not in ("both", "scalers"):
            raise ProjectionError(f"train={train!r} is unknown: use 'both' or 'scalers'")
        if any(p.is_meta for p in model.parameters()):
            raise ProjectionError(
                "a meta model has no values to train: build it on a device, or call to_empty() and "
                "initialise it first"
            )
        target = anatomy(model)
        composer = Composer(config.restricted_to(target), target, head_dim)
        slots = _slots(composer)
        specs = [spec for slot in slots for spec in slot.specs]
        super().__init__(_copy(model), [name for s in specs for name in (s.name, *s.tied)])
        self.config, self.anatomy = composer.config, target
        self.depth_used: int | None = None
        self._composer, self._slots = composer, slots
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        self.templates = nn.ParameterDict()
        self.scalers = nn.ParameterDict() if config.method == "wave" else _Constants()
        seed = base_seed(generator)
        for kind in self.config.kinds:
            start = self._start(kind, templates or {}, scalers or {}, sub_generator(seed, kind))
            for held, value in zip((self.templates, self.scalers), start, strict=True):
                held[_key(kind)] = nn.Parameter(value.to(like.device, like.dtype).clone())
        if train == "scalers":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("scalers."))

    def _start(
        self,
        kind: str,
        templates: Mapping[str, Tensor],
        scalers: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return templates and scalers of a kind as given, else as they are drawn."""
        spec, depth = self.config.kinds[kind], self.anatomy.depth
        t_shape = (spec.number, *spec.shape)
        s_shape = (spec.number, *self._composer.scaler_shape(kind))
        t, s = _draw(kind, t_shape, (depth, *s_shape), generator)
        if self.config.method != "wave":
            s = closed_form(self.config.method, spec.number, depth)
            s = s.view(depth, spec.number, *(1,) * len(spec.shape)).expand(-1, *s_shape)
            t = torch.zeros_like(t) if kind.endswith("bias") else t
            if kind.startswith("norm") and kind.endswith("weight"):
                t = torch.ones_like(t) * (torch.arange(spec.number) == 0).view(-1, 1)
        t, s = templates.get(kind, t), scalers.get(kind, s)
        for what, value, expected in (
            ("templates", t, t_shape),
            ("scalers", s, (None, *s_shape)),
        ):
            if value.shape[1:] != expected[1:] or expected[0] not in (None, value.shape[0]):
                raise ProjectionError(
                    f"{what} of {kind} have shape {tuple(value.shape)}, and the model needs "
                    f"{expected} (None is the depth): pass those of this config and model"
                )
        return t.detach(), s.detach()

    def weights(self) -> dict[str, Tensor]:
        """Return the composed parameters of all blocks, by name."""
        return {
            name: value
            for slot in self._slots
            for spec, value in zip(slot.specs, self._stored(slot), strict=False)
            for name in (spec.name, *spec.tied)
        }

    def _stored(self, slot: _Slot) -> Sequence[Tensor]:
        """Return one parameter of every block as it is stored."""
        kinds = [kind_of(piece.role) for piece in slot.pieces]
        if slot.joint:
            # The step must cost what an unconstrained step costs: few and large operations.
            return kron_sum(*self._values(kinds[0]), order=self.config.order).unbind(0)
        parts = [
            self._composer.compose(piece, *self._values(kind))
            for piece, kind in zip(slot.pieces, kinds, strict=True)
        ]
        if slot.stacked:
            return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).unbind(0)
        layout = slot.specs[0].layout
        return [
            layout.merge(block) for block in zip(*(part.unbind(0) for part in parts), strict=True)
        ]

    def _values(self, kind: str) -> tuple[Tensor, Tensor]:
        """Return the templates of a kind, and its scalers in the depth that is used."""
        scalers = self.scalers[_key(kind)]
        if self.depth_used is not None:
            scalers = interpolate_depth(scalers, self.depth_used)
        return self.templates[_key(kind)], scalers

    @property
    def depth(self) -> int:
        """How many blocks have scalers of their own."""
        return len(next(iter(self.scalers.values())))

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

        Args:
            provenance: of the training, plain JSON. Parameters of the blocks that no kind covers
                (layer scale, say) are not part of a bundle; they are listed under ``left_out``.
            dtype: dtype of the tensors.
            licence: SPDX identifier.
        """
        tensors = {f"templates.{k}": self.templates[_key(k)] for k in self.config.kinds}
        if self.config.method == "wave":
            tensors |= {f"scalers.{k}": v for k, v in self.scaler_values().items()}
        specs = self.anatomy.specs
        left = sorted({s.role for s in specs if s.stack and s.name not in self._places})
        return as_bundle(
            self.anatomy,
            self.config,
            tensors,
            collect(self.anatomy, dict(self.model.named_parameters(remove_duplicate=False))),
            depth=self.depth,
            licence=licence,
            provenance={**(provenance or {}), **({"left_out": left} if left else {})},
            dtype=dtype,
        )


class _Constants(nn.Module):
    """Tensors that follow the module's device and are neither trained nor saved."""

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.register_buffer(key, value.detach(), persistent=False)

    def __getitem__(self, key: str) -> Tensor:
        return self.get_buffer(key)

    def values(self) -> list[Tensor]:
        return list(self.buffers())


@dataclass(frozen=True)
class _Slot:
    """One parameter of every block that is composed."""

    specs: tuple[ParamSpec, ...]  # one a block
    pieces: tuple[Piece, ...]  # of the first block
    stacked: bool  # it is stored as its pieces, one below the other
    joint: bool  # one Kronecker sum is the parameter as it is stored


def _slots(composer: Composer) -> list[_Slot]:
    """Return the parameters of the blocks that the kinds of a template set make up."""
    anatomy = composer.target
    first = anatomy.blocks[0]
    covered = {role for role in first if kind_of(role) in composer.config.kinds}
    slots = {}
    for role in first:
        specs = tuple(block[role].spec for block in anatomy.blocks if role in block)
        if role not in covered or specs[0].name in slots:
            continue
        alike = all(s.shape == specs[0].shape and s.parts == specs[0].parts for s in specs)
        if len(specs) != anatomy.depth or not alike or not covered.issuperset(specs[0].parts):
            raise ProjectionError(
                f"{specs[0].role} ({specs[0].name}) cannot be composed: all blocks must have "
                f"it in one size, made of kinds of the config ({sorted(covered)}). Leave its kind "
                "out of the config, or use a model of like blocks"
            )
        pieces, layout = tuple(anatomy.pieces(specs[0])), specs[0].layout
        stacked = layout.fused in (-1, 0) and all(view.plain for view in layout.parts)
        slots[specs[0].name] = _Slot(specs, pieces, stacked, stacked and composer.joint(pieces))
    return list(slots.values())


def _key(kind: str) -> str:
    return kind.replace(".", "_")


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ProjectionError(
            f"the model cannot be copied ({error}): constrain it before it is wrapped or run"
        ) from error


def _draw(
    kind: str, t_shape: tuple[int, ...], s_shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw templates and scalers so that every one of them has a gradient.

    Matrices: standard deviation 0.02, in every block. Norm weights: 1; the scalers are drawn, then
    moved so that they sum to 1 over templates of ones. Biases: 0; templates in equal pairs, scalers
    in opposite ones.
    """
    number = t_shape[0]
    s = torch.randn(s_shape, generator=generator) / math.sqrt(number)
    if kind.startswith("norm") and kind.endswith("weight"):
        return torch.ones(t_shape), s + (1 - s.sum(1, keepdim=True)) / number
    t = nn.init.trunc_normal_(torch.empty(t_shape), std=STD, generator=generator)
    if kind.endswith("bias"):
        half = number // 2
        t[half : 2 * half], s[:, half : 2 * half] = t[:half], -s[:, :half]
        t[2 * half :] = 0
        return t, s
    return t, s / s.norm(dim=1, keepdim=True)
