"""Weight templates of any ancestor, without data: the nearest sum of Kronecker products.

W = sum_t S_t (x) T_t says that every tile of W is a weighted sum of the templates T (WAVE, Feng et
al., CVPR 2025, https://arxiv.org/abs/2406.17503, Eq. 4), so that the tiles of all blocks, one a
row, make a matrix of rank N. The nearest such matrix is a singular value decomposition cut at N
(Van Loan & Pitsianis, "Approximation with Kronecker Products", 1993).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import base_seed, sub_generator
from weightinit.kernels import kron
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.config import KIND_PARTS, TemplateConfig, TemplateKind, kind_roles
from weightinit.templates.lowrank import low_rank

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["extract_templates", "tiles_config"]


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
            :func:`tiles_config`: tiles of the ancestor's width, as many as make it exact unless
            ``number`` or ``error`` says otherwise.
        number: of templates, for all kinds or by kind; default: the config's.
        error: the fewest templates of each kind that leave no more than this part of its norm.
        dtype: of the bundle's tensors.
        licence: SPDX identifier of the ancestor's weights.
        generator: of the randomised decomposition, which few templates of large models are found
            by; None is a fixed seed.

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
    seen = source.anatomy
    if config is not None and config.method != "wave":
        raise ProjectionError(
            f"templates of {config.method} are trained with closed-form scalers: use a config of "
            "method 'wave', or None"
        )
    if (number is not None and error is not None) or not 0 <= (error or 0.0) < 1:
        raise ProjectionError(
            f"{number=} and {error=}: pass one of them, and an error from 0 to below 1"
        )
    config = (config or tiles_config(seen)).restricted_to(seen)
    unknown = set(number) - set(config.kinds) if isinstance(number, Mapping) else set()
    if unknown:
        raise ProjectionError(
            f"number= names kinds that are not there, {sorted(unknown)}: use {sorted(config.kinds)}"
        )
    seed = base_seed(generator)
    kinds, tensors, errors = {}, {}, {}
    for kind, spec in config.kinds.items():
        tiles = _Tiles(seen, config, kind)
        rows = torch.stack([tiles.rows(block) for block in _read(source, kind)]).flatten(0, 1)
        wanted = number.get(kind) if isinstance(number, Mapping) else number
        wanted = spec.number if wanted is None else wanted
        if error is not None:
            wanted = min(rows.shape)
        if wanted < 1:
            raise ProjectionError(f"number={wanted} of {kind}: use 1 template or more")
        scalers, templates, errors[kind] = low_rank(
            rows, wanted, error=error, generator=sub_generator(seed, f"extract {kind}")
        )
        kinds[kind] = replace(spec, number=len(templates))
        tensors[f"templates.{kind}"] = templates.view(-1, *spec.shape)
        tensors[f"scalers.{kind}"] = tiles.scalers(scalers, seen.depth)
    covered = {role for kind in kinds for role in kind_roles(kind)}
    blocks = (*seen.blocks, *(block for _, block in seen.extra_blocks))
    left = sorted({role for block in blocks for role in block} - covered)
    outside = {piece.spec.name: piece.spec for piece in seen.outside.values()}
    return as_bundle(
        seen,
        replace(config, kinds=kinds),
        tensors,
        {
            name: seen.merge(spec, {r: source.part(seen.outside[r]) for r in spec.parts})
            for name, spec in outside.items()
        },
        depth=seen.depth,
        licence=licence,
        provenance={
            "ancestor": source.source,
            "method": "nearest Kronecker sum, without data",
            "relative_error": errors,
            "left_out": left,
        },
        dtype=dtype,
    )


def tiles_config(seen: Anatomy) -> TemplateConfig:
    """Return a template set that holds a whole ancestor: every tile of its width.

    Every matrix and vector of its blocks is a kind, cut to the longest tiles that divide it and
    are no longer than the residual stream is wide.

    Args:
        seen: anatomy of the ancestor.
    """
    width = seen.sizes.get("d")
    if width is None:
        raise ProjectionError(
            f"a {seen.family} has a width for every stage, and templates are of blocks that are "
            "alike: use another ancestor"
        )
    kinds: dict[str, TemplateKind] = {}
    for role, piece in seen.blocks[0].items():
        known = all(label in seen.sizes for axis in piece.axes for label in axis)
        kind = next((name for name, roles in KIND_PARTS.items() if role in roles), role)
        if kind in kinds or len(piece.size) > 2 or not known:
            continue
        shape = tuple(max(n for n in range(1, width + 1) if size % n == 0) for size in piece.size)
        tiles = len(kind_roles(kind)) * seen.depth
        for size, length in zip(piece.size, shape, strict=True):
            tiles *= size // length
        kinds[kind] = TemplateKind(tiles, shape)
    return TemplateConfig("wave", width, kinds)


def _read(source: Ancestor, kind: str) -> Iterator[Tensor]:
    """Yield the parts of a kind in every block, ``[parts, *size]``; what is missing is zero."""
    for block in source.anatomy.blocks:
        parts = [source.part(block[role]) if role in block else None for role in kind_roles(kind)]
        first = next(part for part in parts if part is not None)
        whole = first.new_zeros(len(parts), *first.shape)
        for row, part in zip(whole, parts, strict=True):
            if part is not None:  # grouped keys and values have fewer rows than queries
                row[: len(part)] = part
        yield whole


class _Tiles:
    """How the parts of a kind are cut into tiles the size of a template, and put together."""

    def __init__(self, seen: Anatomy, config: TemplateConfig, kind: str) -> None:
        spec, self.order = config.kinds[kind], config.order
        roles = kind_roles(kind)
        sizes = [next(b[r].size for r in roles if r in b) for b in seen.blocks
                 if any(r in b for r in roles)]  # fmt: skip
        self.unit = (spec.shape[0] // spec.parts, *spec.shape[1:])
        size = sizes[0]
        if len(sizes) != seen.depth or len(set(sizes)) > 1:
            raise ProjectionError(
                f"{kind} is not in all blocks in one size ({sorted(set(sizes))}): leave it out of "
                "the config, or use an ancestor of like blocks"
            )
        if len(size) != len(self.unit) or any(n % w for n, w in zip(size, self.unit, strict=True)):
            raise ProjectionError(
                f"templates of {kind} of shape {spec.shape} do not divide its parts of size "
                f"{size}: use a config whose templates do, or None"
            )
        self.count = tuple(n // w for n, w in zip(size, self.unit, strict=True))
        # Templates that span all parts weigh their tiles alike.
        self.spans, self.parts = spec.parts > 1, len(roles)

    def rows(self, parts: Tensor) -> Tensor:
        """Return the tiles of one block's parts ``[parts, *size]``, one a row."""
        unit, count = self.unit, self.count
        if len(unit) == 1:
            parts, unit, count = parts.unsqueeze(-2), (1, *unit), (1, *count)
        tiles = kron.blocks(parts, unit, count, self.order)  # [parts, s1, w1, s2, w2]
        order = (1, 3, 0, 2, 4) if self.spans else (0, 1, 3, 2, 4)
        spanned = self.parts if self.spans else 1
        return tiles.permute(order).reshape(-1, spanned * unit[0] * unit[1])

    def scalers(self, rows: Tensor, depth: int) -> Tensor:
        """Return the weights of the rows ``[depth tiles, N]`` as ``[depth, N, *s]``."""
        copies = 1 if self.spans else self.parts
        shape = (copies * self.count[0], *self.count[1:])
        return rows.view(depth, *shape, -1).movedim(-1, 1)
