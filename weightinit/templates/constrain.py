"""A model whose block weights are composed from weight templates and scalers at every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import base_seed, sub_generator
from weightinit.kernels import kron_sum
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.compose import HeadDims, compose, scaler_shape
from weightinit.templates.config import TemplateConfig, kind_roles
from weightinit.templates.learngene import closed_form
from weightinit.templates.scalers import interpolate_depth
from weightinit.templates.slots import find_slots

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
    heads: HeadDims | None = None,
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
        generator: of the start values; None is a fixed seed.
        train: ``"both"``, or ``"scalers"`` to freeze all else (WAVE's Eq. 8).
        heads: head dims, where the templates were trained with another than the model's.

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
        heads=heads,
    )


class ConstrainedModel(nn.Module):
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
        heads: HeadDims | None = None,
    ) -> None:
        super().__init__()
        if train not in ("both", "scalers"):
            raise ProjectionError(f"train={train!r} is unknown: use 'both' or 'scalers'")
        if any(p.is_meta for p in model.parameters()):
            raise ProjectionError(
                "a meta model has no values to train: build it on a device, or call to_empty() and "
                "initialise it first"
            )
        seen = anatomy(model)
        self.config = config.restricted_to(seen)
        self.anatomy = seen
        self.depth_used: int | None = None
        self._heads = heads
        self._sizes = {
            kind: {role: seen.blocks[0][role].size for role in _roles(seen, kind)}
            for kind in self.config.kinds
        }
        self._slots = find_slots(seen, {role for sizes in self._sizes.values() for role in sizes})
        self.model = _copy(model)
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        for slot in self._slots:
            for _, module, leaf in slot.places(self.model):
                del module._parameters[leaf]
        self.templates = nn.ParameterDict()
        self.scalers = nn.ParameterDict() if config.method == "wave" else _Constants()
        seed = base_seed(generator)
        for kind in self.config.kinds:
            start = self._start(kind, templates or {}, scalers or {}, sub_generator(seed, kind))
            for held, value in zip((self.templates, self.scalers), start, strict=True):
                held[_key(kind)] = nn.Parameter(value.to(like.device, like.dtype).clone())
        self._direct = {kind for kind in self.config.kinds if self._at_once(kind)}
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
        spec, depth = self.config.kinds[kind], self.anatomy.depth
        size = next(iter(self._sizes[kind].values()))
        shape = scaler_shape(self.config, kind, size, self._heads)
        trained = self.config.method == "wave"
        t, s = _draw(kind, (spec.number, *spec.shape), (depth, spec.number, *shape), generator)
        if not trained:
            s = closed_form(self.config.method, spec.number, depth)
            s = s.view(depth, spec.number, *(1,) * len(shape)).expand(-1, -1, *shape)
            t = torch.zeros_like(t) if kind.endswith("bias") else t
            if kind.startswith("norm") and kind.endswith("weight"):
                t = torch.ones_like(t) * (torch.arange(spec.number) == 0).view(-1, 1)
        t, s = templates.get(kind, t), scalers.get(kind, s)
        for what, value, wanted in (
            ("templates", t, (spec.number, *spec.shape)),
            ("scalers", s, (None, spec.number, *shape)),
        ):
            if value.shape[1:] != wanted[1:] or wanted[0] not in (None, value.shape[0]):
                raise ProjectionError(
                    f"{what} of {kind} have shape {tuple(value.shape)}, and the model needs "
                    f"{wanted} (None is the depth): pass those of this config and model"
                )
        return t.detach(), s.detach()

    def _at_once(self, kind: str) -> bool:
        """Whether one Kronecker sum gives q, k and v of every block just as they are stored."""
        spec, scalers = self.config.kinds[kind], self.scalers[_key(kind)]
        slot = next((s for s in self._slots if s.specs[0].parts == kind_roles(kind)), None)
        product = tuple(w * s for w, s in zip(spec.shape, scalers.shape[2:], strict=True))
        return (
            slot is not None
            and slot.stacked
            and product == slot.specs[0].shape
            and (spec.parts == 1 or scalers.shape[2] == 1)
            and (self.config.order == "block" or len(slot.specs[0].parts) == 1)
            and (self._heads is None or self._heads.source == self._heads.target)
        )

    def compose(self) -> None:
        """Compose the weights of all blocks and hang them into the inner model."""
        parts: dict[str, Tensor] = {}
        whole: dict[tuple[str, ...], list[Tensor]] = {}
        for kind, sizes in self._sizes.items():
            templates, scalers = self.templates[_key(kind)], self.scalers[_key(kind)]
            if self.depth_used is not None:
                scalers = interpolate_depth(scalers, self.depth_used)
            if kind in self._direct:
                # the step must cost what an unconstrained step costs: few and large operations
                sums = kron_sum(templates, scalers, order=self.config.order)
                whole[kind_roles(kind)] = list(sums.unbind(0))
            else:
                parts |= compose(self.config, kind, templates, scalers, sizes, heads=self._heads)
        for slot in self._slots:
            roles = slot.specs[0].parts
            stored = whole.get(roles) or slot.stored([parts[r] for r in roles], self.anatomy)
            for index, module, leaf in slot.places(self.model, len(stored)):
                module.__dict__[leaf] = stored[index]

    @property
    def depth(self) -> int:
        """How many blocks have scalers of their own."""
        return len(next(iter(self.scalers.values())))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compose the block weights, then call the inner model."""
        self.compose()
        return self.model(*args, **kwargs)

    def scaler_values(self) -> dict[str, Tensor]:
        """Return the scalers by kind, ``[depth, N, *scaler_shape]``."""
        return {kind: self.scalers[_key(kind)] for kind in self.config.kinds}

    def no_weight_decay(self) -> set[str]:
        """Return the names of what composes biases and norms, and the inner model's exclusions."""
        vectors = {_key(k) for k, spec in self.config.kinds.items() if len(spec.shape) == 1}
        names = {f"{held}.{key}" for held in ("templates", "scalers") for key in vectors}
        inner: Any = getattr(self.model, "no_weight_decay", set)
        return names | {f"model.{name}" for name in inner()}

    def __deepcopy__(self, memo: dict[int, Any]) -> ConstrainedModel:
        """Copy all but the composed weights, which belong to a graph and follow anyway."""
        for slot in self._slots:
            for _, module, leaf in slot.places(self.model):
                module.__dict__.pop(leaf, None)
        new = memo[id(self)] = self.__class__.__new__(self.__class__)
        new.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return new

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
            dtype: of the tensors.
            licence: SPDX identifier.
        """
        tensors = {f"templates.{k}": self.templates[_key(k)] for k in self.config.kinds}
        if self.config.method == "wave":
            tensors |= {f"scalers.{k}": v for k, v in self.scaler_values().items()}
        slots = {spec.name for slot in self._slots for spec in slot.specs}
        left = sorted({s.role for s in self.anatomy.specs if s.stack and s.name not in slots})
        return as_bundle(
            self.anatomy,
            self.config,
            tensors,
            dict(self.model.named_parameters(remove_duplicate=False)),
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


def _key(kind: str) -> str:
    return kind.replace(".", "_")


def _roles(seen: Anatomy, kind: str) -> tuple[str, ...]:
    return tuple(role for role in kind_roles(kind) if role in seen.blocks[0])


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
