"""Weight templates of any ancestor, without data: the nearest sum of Kronecker products, or layers.

W = sum_t S_t (x) T_t says that every tile of W is a weighted sum of the templates T (WAVE, Feng et
al., CVPR 2025, https://arxiv.org/abs/2406.17503, Eq. 4), so that the tiles of all blocks, one a
row, make a matrix of rank N. The nearest such matrix is a singular value decomposition cut at N
(Van Loan & Pitsianis, "Approximation with Kronecker Products", 1993). Heur-LG and Auto-LG, special
cases in WAVE's appendix A, take whole layers: the ancestor's last, or first, below or above random
ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weightinit.anatomy import Piece
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import base_seed, sub_generator
from weightinit.kernels import kron
from weightinit.numerics import plain_numerics
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind, folded
from weightinit.templates.lowrank import low_rank

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["auto_lg", "extract_templates", "heur_lg"]


@plain_numerics()
def extract_templates(
    ancestor: AncestorLike,
    config: TemplateConfig | None = None,
    *,
    number: int | Mapping[str, int] | None = None,
    error: float | None = None,
    dtype: torch.dtype = torch.float32,
    licence: str = "other",
    generator: torch.Generator | None = None,
) -> TemplateBundle:
    r"""Return the weight templates and scalers nearest to an ancestor, found without data.

    Of every kind the templates and scalers minimise :math:`\sum_l \|W_l - \sum_t S_{lt} \otimes
    T_t\|^2` over all blocks l; enough templates give the ancestor itself. For another depth or
    width the scalers are interpolated and tiled, as those of any bundle, and
    :func:`weightinit.fit_scalers` fits them on a little data. Few templates of weights that were
    not trained to share any explain little of them: ``provenance["relative_error"]`` of the bundle
    says how much is missing of each kind, and ``["left_out"]`` names block parameters that no kind
    covers.

    Args:
        ancestor: whatever :func:`weightinit.project_from` takes. It is only read.
        config: the template set; kinds that the ancestor lacks are dropped. None is
            :meth:`TemplateConfig.of` all its layers, which makes it exact unless ``number`` or
            ``error`` says otherwise.
        number: number of templates, for all kinds or by kind; default: the config's.
        error: take the fewest templates of each kind that leave no more than this part of its norm.
        dtype: dtype of the bundle's tensors.
        licence: SPDX identifier of the ancestor's weights.
        generator: draws the randomised decomposition that finds few templates of large models; None
            is a fixed seed.

    Raises:
        AnatomyError: if a parameter of the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if its blocks differ in size, the templates do not divide them, or an
            option is none of these.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=5).eval()
        >>> bundle = wi.extract_templates(ancestor)
        >>> bundle.tensors["templates.attn.proj.weight"].shape
        torch.Size([3, 192, 192])
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=5).eval()
        >>> images = torch.randn(2, 3, 224, 224)
        >>> same = wi.init_from_templates(model, bundle)(images)
        >>> torch.allclose(same, ancestor(images), atol=1e-4)
        True
        >>> few = wi.extract_templates(ancestor, wi.TemplateConfig.wave(96))
        >>> few.config.provenance["relative_error"]["mlp.fc1.weight"] > 0.5
        True
    """
    source = Ancestor.open(ancestor)
    anatomy = source.anatomy
    if config is not None and config.method != "wave":
        raise ProjectionError(
            f"templates of {config.method} are trained with closed-form scalers: use a config of "
            "method 'wave', or None"
        )
    if (number is not None and error is not None) or not 0 <= (error or 0.0) < 1:
        raise ProjectionError(
            f"{number=} and {error=}: pass one of them, and an error from 0 to below 1"
        )
    config = config or TemplateConfig.of(anatomy, layers=None, method="wave")
    config = config.restricted_to(anatomy)
    numbers = number if isinstance(number, Mapping) else dict.fromkeys(config.kinds, number)
    if unknown := set(numbers) - set(config.kinds):
        raise ProjectionError(
            f"number= names kinds that are not there, {sorted(unknown)}: use {sorted(config.kinds)}"
        )
    composer, seed = Composer(config, anatomy), base_seed(generator)
    kinds, tensors, errors = {}, {}, {}
    for kind, spec in config.kinds.items():
        _check_size(composer, kind)
        shape = composer.scaler_shape(kind)
        blocks = composer.blocks(kind)
        tiles = _tiles(kind_values(source, config.roles(kind), blocks), spec, config.order)
        wanted = numbers.get(kind)
        if error is not None:
            wanted = min(tiles.shape)
        elif wanted is None:
            wanted = spec.number
        if wanted < 1:
            raise ProjectionError(f"number={wanted} of {kind}: use 1 template or more")
        scalers, templates, errors[kind] = low_rank(
            tiles, wanted, error=error, generator=sub_generator(seed, f"extract {kind}")
        )
        kinds[kind] = replace(spec, number=len(templates))
        tensors[f"templates.{kind}"] = templates.view(-1, *spec.shape)
        tensors[f"scalers.{kind}"] = scalers.view(len(blocks), *shape, -1).movedim(-1, 1)
    config = replace(config, kinds=kinds)
    left = {
        role
        for block in anatomy.all_blocks
        for role, piece in block.items()
        if config.kind(role, piece.spec.stack) not in kinds
    }
    return as_bundle(
        anatomy,
        config,
        tensors,
        {role: source.part(piece) for role, piece in anatomy.outside.items()},
        depth=anatomy.depth,
        licence=licence,
        provenance={
            "ancestor": source.source,
            "method": "nearest Kronecker sum, without data",
            "relative_error": errors,
            "left_out": sorted(left),
        },
        dtype=dtype,
    )


def heur_lg(ancestor: nn.Module, *, layers: int = 3) -> TemplateBundle:
    """Return the last ``layers`` blocks of an ancestor as a bundle: Heuristic learngene (A.3).

    Wang et al., AAAI 2022, https://arxiv.org/abs/2106.06788. WAVE's tables use 3.
    """
    return _cut(ancestor, "heur_lg", layers)


def auto_lg(ancestor: nn.Module, *, layers: int = 4) -> TemplateBundle:
    """Return the first ``layers`` blocks of an ancestor as a bundle: Auto-learngene (A.4).

    Wang et al., 2023, https://arxiv.org/abs/2305.02279. WAVE's tables use 4.
    """
    return _cut(ancestor, "auto_lg", layers)


def _cut(ancestor: nn.Module, method: str, layers: int) -> TemplateBundle:
    """Return the first or last blocks of an ancestor, and what is outside its blocks."""
    source = Ancestor.open(ancestor)
    anatomy = source.anatomy
    if not 1 <= layers <= anatomy.depth:
        raise ProjectionError(
            f"layers={layers} cannot be taken from {anatomy.depth} blocks: use 1 to {anatomy.depth}"
        )
    config = TemplateConfig.layers(method, anatomy.sizes["d"], layers).restricted_to(anatomy)
    blocks = anatomy.blocks[-layers:] if method == "heur_lg" else anatomy.blocks[:layers]
    kinds, tensors = {}, {}
    for kind, spec in config.kinds.items():
        whole = kind_values(source, config.roles(kind), blocks).flatten(1, 2)
        kinds[kind] = replace(spec, shape=tuple(whole.shape[1:]))
        tensors[f"templates.{kind}"] = whole
    return as_bundle(
        anatomy,
        replace(config, kinds=kinds),
        tensors,
        {role: source.part(piece) for role, piece in anatomy.outside.items()},
        depth=anatomy.depth,
        licence="other",
        provenance={"ancestor": type(ancestor).__name__, "layers": layers},
    )


def kind_values(
    source: Ancestor, roles: Sequence[str], blocks: Iterable[Mapping[str, Piece]]
) -> Tensor:
    """Return the parameters of a kind, ``[blocks, roles, *size]``; what is missing is zero."""
    found = []
    for block in blocks:
        parts = [source.part(block[role]) if role in block else None for role in roles]
        first = next(part for part in parts if part is not None)
        whole = first.new_zeros(len(parts), *first.shape)
        for row, part in zip(whole, parts, strict=True):
            if part is not None:  # grouped keys and values have fewer rows than queries
                row[: len(part)] = part
        found.append(whole)
    values = torch.stack(found)
    return values.flatten(3) if values.dim() > 4 else values


def _check_size(composer: Composer, kind: str) -> None:
    """Raise ProjectionError unless the templates of a kind divide its parameters in all blocks."""
    spec, size = composer.config.kinds[kind], folded(composer.pieces[kind])
    roles, blocks = composer.config.roles(kind), composer.blocks(kind)
    sizes = [[folded(block[role]) for role in roles if role in block] for block in blocks]
    firsts = {block[0] for block in sizes if block}
    if not all(sizes) or len(firsts) > 1:
        raise ProjectionError(
            f"{kind} is not in all blocks in one size ({sorted(firsts)}): leave it out of "
            "the config, or use an ancestor of like blocks"
        )
    if len(size) != len(spec.unit) or any(n % w for n, w in zip(size, spec.unit, strict=True)):
        raise ProjectionError(
            f"templates of {kind} of shape {spec.shape} do not divide its parts of size "
            f"{size}: use a config whose templates do, or None"
        )


def _tiles(parts: Tensor, spec: TemplateKind, order: str) -> Tensor:
    """Return the tiles of ``[blocks, roles, *size]``, in the shape of a template, one a row."""
    unit = spec.unit
    if len(unit) == 1:
        parts, unit = parts.unsqueeze(-2), (1, *unit)
    count = [n // w for n, w in zip(parts.shape[2:], unit, strict=True)]
    tiles = kron.blocks(parts, unit, count, order)  # [blocks, roles, s1, w1, s2, w2]
    # Templates that span all roles weigh their tiles alike.
    axes = (0, 2, 4, 1, 3, 5) if spec.parts > 1 else (0, 1, 2, 4, 3, 5)
    return tiles.permute(axes).reshape(-1, math.prod(spec.shape))
