"""Training under the Kronecker constraint: templates and scalers are a model's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from weightinit.anatomy import Rule, anatomy, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import base_seed, sub_generator
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.constrained import ConstrainedModel
from weightinit.templates.nested import NestedModel
from weightinit.templates.scalers import closed_form, linear_scalers
from weightinit.templates.sizes import Size, Sizes

__all__ = ["constrain"]

STD = 0.02


def constrain(
    model: nn.Module,
    config: TemplateConfig,
    *,
    sizes: Sizes | None = None,
    build: Callable[[Size], nn.Module] | None = None,
    rules: Iterable[Rule] = (),
    templates: Mapping[str, Tensor] | None = None,
    scalers: Mapping[str, Tensor] | Literal["drawn", "linear"] = "drawn",
    generator: torch.Generator | None = None,
    train: Literal["both", "scalers"] = "both",
    uncovered: Literal["keep", "error"] | None = None,
    head_dim: int | None = None,
) -> ConstrainedModel:
    r"""Return a copy of ``model`` whose blocks are :math:`W = \sum_t S_t \otimes T_t`.

    The templates T and scalers S (WAVE, Feng et al., CVPR 2025, Eq. 4 and 6) are its parameters,
    with everything outside the blocks; the block weights follow from them at every forward. Of the
    closed-form methods (``tleg``, ``share``, ...) only the templates are trained.

    With ``sizes`` the smaller networks inside it are trained too, one drawn at each forward in
    training (WeiT, https://arxiv.org/abs/2604.14769, as far as its descriptions tell): the result
    is a :class:`NestedModel`, for any training loop.

    Args:
        model: a model that :func:`weightinit.anatomy` explains; it is copied and left as it is.
        config: the template set; kinds that the model lacks are dropped.
        sizes: sizes to train at; None trains the model's own.
        build: makes the model of a :class:`Size`, of the same family as ``model``; its parameters
            are not used. Needed with ``sizes``.
        rules: for parameters of yours that no rule explains; see :func:`weightinit.anatomy`.
        templates: start values by kind, ``[N, *shape]``; default: drawn so that matrices get a
            standard deviation of 0.02, norm weights are 1, layer scales what they are, and biases
            and all that is neutral at 0 are 0.
        scalers: start values by kind, ``[depth, N, *scaler_shape]``, or ``"drawn"``, likewise, or
            ``"linear"``, WAVE's Eq. B.1, which ``"linear"`` targets need.
        generator: draws the start values; None is a fixed seed.
        train: ``"both"``, or ``"scalers"`` to freeze all else (WAVE's Eq. 8).
        uncovered: ``"keep"`` leaves parameters of the blocks that no kind covers as they are, fresh
            in every target; ``"error"`` refuses them, which is the default for ``weit``.
        head_dim: head dim that the templates were trained with; None is the model's.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        ProjectionError: if templates or scalers have other shapes, the blocks differ in size, or
            ``build`` gives another model than its size says.

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
    if uncovered not in ("keep", "error", None):
        raise ProjectionError(f"uncovered={uncovered!r} is unknown: use 'keep' or 'error'")
    if any(p.is_meta for p in model.parameters()):
        raise ProjectionError(
            "a meta model has no values to train: build it on a device, or call to_empty() and "
            "initialise it first"
        )
    rules = tuple(rules)
    target = anatomy(model, rules=rules)
    composer = Composer(config.restricted_to(target), target, head_dim)
    how, given = (scalers, {}) if isinstance(scalers, str) else ("drawn", scalers)
    own, seed = dict(model.named_parameters()), base_seed(generator)
    drawn = {
        kind: _start(composer, kind, own, how, sub_generator(seed, kind))
        for kind in composer.pieces
    }
    values = (
        {kind: t for kind, (t, _) in drawn.items()} | dict(templates or {}),
        {kind: s for kind, (_, s) in drawn.items()} | dict(given),
    )
    if sizes is None:
        constrained = ConstrainedModel(model, composer, *values)
    else:
        constrained = NestedModel(model, composer, *values, sizes, build, rules)
    left = constrained.uncovered
    if left and (uncovered or ("error" if config.method == "weit" else "keep")) == "error":
        raise ProjectionError(
            f"no kind covers {left}, which would be fresh in every target: use "
            "TemplateConfig.of(anatomy), which has all, or pass uncovered='keep'"
        )
    if train == "scalers":
        for name, parameter in constrained.named_parameters():
            parameter.requires_grad_(name.startswith("scalers."))
    return constrained


def _start(
    composer: Composer,
    kind: str,
    values: Mapping[str, Tensor],
    how: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw templates and scalers of a kind so that every one of them has a gradient.

    What is drawn gets a standard deviation of 0.02 in every block. What starts at a constant other
    than 0: scalers that sum to it over templates of ones. What starts at 0: templates in equal
    pairs, scalers in opposite ones. Closed forms and Eq. B.1 say the scalers: there what starts at
    0 has templates of 0, and a constant is in the templates that do not depend on the block.
    """
    spec, blocks = composer.config.kinds[kind], composer.blocks(kind)
    number, depth, shape = spec.number, len(blocks), composer.scaler_shape(kind)
    value, size = _constant(composer, kind, values), (depth, number, *shape)
    s = torch.randn(size, generator=generator, dtype=torch.float32) / math.sqrt(number)
    t = torch.empty(number, *spec.shape, dtype=torch.float32)
    nn.init.trunc_normal_(t, std=STD, generator=generator)
    half = number // 2
    if not composer.config.trained:
        s = closed_form(composer.config.method, number, depth)
        s = s.view(depth, number, *(1,) * len(shape)).expand(size)
        if value is not None:
            t.zero_()[0] = value
    elif how == "linear":
        s = linear_scalers(number, shape, depth, generator=generator)
        if value is not None:
            places = math.prod(shape)
            if value and (half < places or half % places):
                raise ProjectionError(
                    f"scalers='linear' cannot start {kind} at {value:g} with {number} templates "
                    f"for {places} places: use twice as many templates as places, or 'drawn'"
                )
            t.zero_()[:half] = value * places / max(half, 1)
    elif value:
        t.fill_(1)
        s += (value - s.sum(1, keepdim=True)) / number
    elif value == 0:
        t[half : 2 * half], s[:, half : 2 * half] = t[:half], -s[:, :half]
        t[2 * half :] = 0
    else:
        s /= s.norm(dim=1, keepdim=True)
    return t, s


def _constant(composer: Composer, kind: str, values: Mapping[str, Tensor]) -> float | None:
    """Return the value that a kind starts at everywhere; None if it is drawn.

    That is the model's own value where it is constant, as those of norms, biases, layer scales and
    the layers that adaLN starts at zero are.
    """
    roles = composer.config.roles(kind)
    names = {b[r].spec.name for b in composer.blocks(kind) for r in roles if r in b}
    own = [values[name].detach().aminmax() for name in names if values[name].numel()]
    least, most = min(float(o.min) for o in own), max(float(o.max) for o in own)
    if least == most:
        return least
    role = facts(roles[0])
    return 1.0 if role.gain else role.neutral
