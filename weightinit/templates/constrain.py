"""A model whose block weights are composed from weight templates and scalers at every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import ParamSpec, anatomy, facts
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
    if train not in ("both", "scalers"):
        raise ProjectionError(f"train={train!r} is unknown: use 'both' or 'scalers'")
    if any(p.is_meta for p in model.parameters()):
        raise ProjectionError(
            "a meta model has no values to train: build it on a device, or call to_empty() and "
            "initialise it first"
        )
    target = anatomy(model)
    composer = Composer(config.restricted_to(target), target, head_dim)
    seed = base_seed(generator)
    start = {kind: _start(composer, kind, sub_generator(seed, kind)) for kind in composer.pieces}
    constrained = ConstrainedModel(
        model,
        composer,
        {kind: t for kind, (t, _) in start.items()} | dict(templates or {}),
        {kind: s for kind, (_, s) in start.items()} | dict(scalers or {}),
    )
    if train == "scalers":
        for name, parameter in constrained.named_parameters():
            parameter.requires_grad_(name.startswith("scalers."))
    return constrained


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
        slots = _slots(composer)
        specs = [spec for slot in slots for spec in slot]
        super().__init__(_copy(model), [name for s in specs for name in (s.name, *s.tied)])
        self.composer, self.config = composer, composer.config
        self.depth_used: int | None = None
        self._slots, self._joint = slots, {slot[0] for slot in slots if composer.joint(slot[0])}
        self.templates = nn.ParameterDict()
        self.scalers = nn.ParameterDict() if self.config.method == "wave" else _Constants()
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
        return {
            name: value
            for specs in self._slots
            for spec, value in zip(specs, self._stored(specs[0]), strict=False)
            for name in (spec.name, *spec.tied)
        }

    def _stored(self, spec: ParamSpec) -> Iterable[Tensor]:
        """Return one parameter of every block as it is stored."""
        pieces = self.composer.target.pieces(spec)
        if spec in self._joint:
            # The step must cost what an unconstrained step costs: few and large operations.
            templates, scalers = self._values(kind_of(pieces[0].role))
            return kron_sum(templates, scalers, order=self.config.order).unbind(0)
        parts = [self.composer.compose(p, *self._values(kind_of(p.role))) for p in pieces]
        return map(spec.layout.merge, zip(*parts, strict=True))

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
        anatomy = self.composer.target
        left = sorted({s.role for s in anatomy.specs if s.stack and s.name not in self._places})
        return as_bundle(
            anatomy,
            self.config,
            tensors,
            collect(anatomy, dict(self.model.named_parameters(remove_duplicate=False))),
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


def _slots(composer: Composer) -> list[tuple[ParamSpec, ...]]:
    """Return the parameters that the kinds of a template set make up, one spec a block."""
    anatomy = composer.target
    covered = [role for role in anatomy.blocks[0] if kind_of(role) in composer.config.kinds]
    slots = {}
    for role in covered:
        specs = tuple(block[role].spec for block in anatomy.blocks if role in block)
        slots[specs[0].name] = specs
        alike = all(s.shape == specs[0].shape and s.parts == specs[0].parts for s in specs)
        if len(specs) != anatomy.depth or not alike or not set(specs[0].parts) <= set(covered):
            raise ProjectionError(
                f"{specs[0].role} ({specs[0].name}) cannot be composed: all blocks must have "
                f"it in one size, made of kinds of the config ({sorted(covered)}). Leave its kind "
                "out of the config, or use a model of like blocks"
            )
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


def _start(composer: Composer, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw templates and scalers of a kind so that every one of them has a gradient.

    Matrices: standard deviation 0.02, in every block. Norm weights: 1; the scalers are drawn, then
    moved so that they sum to 1 over templates of ones. Biases: 0; templates in equal pairs, scalers
    in opposite ones. Closed forms have scalers of their own, and biases and the slopes of norms are
    0.
    """
    method, spec, depth = composer.config.method, composer.config.kinds[kind], composer.target.depth
    number, shape = spec.number, composer.scaler_shape(kind)
    role = facts(kind)
    s = torch.randn((depth, number, *shape), generator=generator) / math.sqrt(number)
    t = nn.init.trunc_normal_(torch.empty(number, *spec.shape), std=STD, generator=generator)
    if method != "wave":
        s = closed_form(method, number, depth).view(depth, number, *(1,) * len(shape)).expand_as(s)
        if role.bias or role.gain:
            t.zero_()[0] = float(role.gain)
    elif role.gain:
        t.fill_(1)
        s += (1 - s.sum(1, keepdim=True)) / number
    elif role.bias:
        half = number // 2
        t[half : 2 * half], s[:, half : 2 * half] = t[:half], -s[:, :half]
        t[2 * half :] = 0
    else:
        s /= s.norm(dim=1, keepdim=True)
    return t, s
