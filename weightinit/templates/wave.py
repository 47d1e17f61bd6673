"""WAVE: every parameter of a target from one bundle of weight templates.

Feng et al., "WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models", CVPR
2025, https://arxiv.org/abs/2406.17503. The special cases of its appendix A share this file: their
bundles hold whole layers as templates and get their scalers from a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import fresh_part, fresh_rule, sub_generator
from weightinit.inherit.outside import carry
from weightinit.plan import Recipe, joined
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import compose, compose_into
from weightinit.templates.config import KIND_PARTS, kind_roles
from weightinit.templates.scalers import fitted_index, head_dims, start_scalers

__all__ = ["template_recipes"]

_KIND_OF = {role: kind for kind, roles in KIND_PARTS.items() for role in roles}


def template_recipes(
    bundle: TemplateBundle,
    anatomy: Anatomy,
    *,
    scalers: str = "interpolate",
    seed: int = 0,
) -> list[Recipe]:
    """Return a recipe for every parameter of a target: composed, carried, or fresh by rule.

    Args:
        bundle: the templates.
        anatomy: of the target.
        scalers: see :func:`weightinit.templates.scalers.start_scalers`; with ``"interpolate"``,
            scalers fitted for exactly this size are taken where the bundle has them.
        seed: of every draw.

    Raises:
        ProjectionError: if the target is of another family than the bundle's auxiliary model.
    """
    family = bundle.config.traits.get("family", "vit")
    if anatomy.family != family:
        raise ProjectionError(
            f"a {anatomy.family} cannot be composed from templates of a {family}: use templates "
            f"trained on a {anatomy.family}, or weightinit.constrain to train them"
        )
    if scalers == "interpolate" and fitted_index(bundle, anatomy) is not None:
        scalers = "fitted"
    return _Composer(bundle, anatomy, scalers, seed).recipes()


class _Composer:
    """Recipes for one target: holds the scalers of its size and the templates."""

    def __init__(self, bundle: TemplateBundle, anatomy: Anatomy, scalers: str, seed: int) -> None:
        self.bundle, self.anatomy, self.seed = bundle, anatomy, seed
        self.config = bundle.template_config
        self.heads = head_dims(bundle, anatomy)
        self.how = scalers
        self.scalers = start_scalers(bundle, anatomy, scalers, seed=seed)
        self.templates: Callable[[str, torch.dtype], Tensor] = cache(
            lambda kind, dtype: bundle.tensors[f"templates.{kind}"].to(dtype)
        )
        self.vectors = cache(self._vectors)
        self.outside = {
            name.removeprefix("outside."): value
            for name, value in bundle.tensors.items()
            if name.startswith("outside.")
        }

    def recipes(self) -> list[Recipe]:
        blocks = [(index, block) for index, block in enumerate(self.anatomy.blocks)]
        blocks += [(-1, block) for _, block in self.anatomy.extra_blocks]
        place = {
            piece.spec.name: (index, block) for index, block in blocks for piece in block.values()
        }
        return [
            self._block(spec, *place[spec.name]) if spec.name in place else self._outside(spec)
            for spec in self.anatomy.specs
        ]

    def _block(self, spec: ParamSpec, index: int, block: Mapping[str, Piece]) -> Recipe:
        kinds = dict.fromkeys(_KIND_OF.get(role, role) for role in spec.parts)
        fills: list[Callable[[Mapping[str, Tensor]], None]] = []
        texts: list[str] = []
        for kind in kinds:
            source = self._glu_source(kind, block)
            scaler = self.scalers.get(source)
            # A row of zeros of the closed forms is a block that they leave random.
            trained = self.config.method == "wave"
            if scaler is not None and (trained or bool(scaler[index].any())):
                number = self.config.kinds[source].number
                texts.append(f"{number} templates of {source}, {self.how} scalers")
                fills.append(self._compose(kind, source, index))
            else:
                text, fill = self._glu_rule(kind, block) or self._fresh(spec, kind)
                texts.append(text)
                fills.append(fill)
        written = any("templates" in text for text in texts)
        return self._recipe(spec, "written" if written else "fresh", texts, fills)

    def _compose(
        self, kind: str, source: str, index: int
    ) -> Callable[[Mapping[str, Tensor]], None]:
        rename = dict(zip(kind_roles(kind), kind_roles(source), strict=True))
        vector = len(self.config.kinds[source].shape) == 1

        def fill(views: Mapping[str, Tensor]) -> None:
            mine = {rename[role]: view for role, view in views.items() if role in rename}
            sizes = {role: tuple(view.shape) for role, view in mine.items()}
            dtype = next(iter(mine.values())).dtype
            if vector:
                for role, value in self.vectors(source, dtype, tuple(sizes.items())).items():
                    mine[role].copy_(value[index])
                return
            compose_into(
                self.config,
                source,
                self.templates(source, dtype),
                self.scalers[source][index].to(dtype),
                mine,
                heads=self.heads,
            )

        return fill

    def _vectors(
        self, source: str, dtype: torch.dtype, sizes: tuple[tuple[str, tuple[int, ...]], ...]
    ) -> dict[str, Tensor]:
        """Compose the vectors of a kind for all blocks at once: one by one, calls cost most."""
        templates, scalers = self.templates(source, dtype), self.scalers[source].to(dtype)
        return compose(self.config, source, templates, scalers, dict(sizes), heads=self.heads)

    def _glu_source(self, kind: str, block: Mapping[str, Piece]) -> str:
        """Return the templates for a kind: a GLU's other half without a bias takes fc1's."""
        if kind == "mlp.up.weight" and "mlp.up.bias" not in block and kind not in self.scalers:
            return "mlp.fc1.weight"
        return kind

    def _glu_rule(
        self, kind: str, block: Mapping[str, Piece]
    ) -> tuple[str, Callable[[Mapping[str, Tensor]], None]] | None:
        """Return the rule for a GLU's other half: a constant 1, so the MLP is the composed one."""
        if kind not in ("mlp.up.weight", "mlp.up.bias") or "mlp.up.bias" not in block:
            return None
        value = float(kind == "mlp.up.bias")

        def fill(views: Mapping[str, Tensor]) -> None:
            views[kind].fill_(value)

        return f"{value:g} (the gate alone is the composed MLP)", fill

    def _outside(self, spec: ParamSpec) -> Recipe:
        traits = self.bundle.config.traits
        parts = [
            carry(piece, self.anatomy, self.outside, traits) or fresh_part(piece, self.seed)
            for piece in self.anatomy.pieces(spec)
        ]
        return joined(self.anatomy, spec, parts)

    def _fresh(
        self, spec: ParamSpec, kind: str
    ) -> tuple[str, Callable[[Mapping[str, Tensor]], None]]:
        text, rule = fresh_rule(kind, spec.shape)

        def fill(views: Mapping[str, Tensor]) -> None:
            for role in kind_roles(kind):
                if role in views:
                    rule(views[role], sub_generator(self.seed, f"{spec.key}.{role}"))

        return text, fill

    def _recipe(
        self,
        spec: ParamSpec,
        action: Literal["written", "fresh"],
        texts: list[str],
        fills: list[Callable[[Mapping[str, Tensor]], None]],
    ) -> Recipe:
        def fill(out: Tensor) -> None:
            views = self.anatomy.split(spec, out)
            for each in fills:
                each(views)

        return Recipe(spec, action, "; ".join(dict.fromkeys(texts)), fill)
