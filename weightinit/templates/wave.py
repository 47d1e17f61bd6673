"""WAVE and WeiT: every parameter of a target from one bundle of weight templates.

Feng et al., "WAVE: Weight Templates for Adaptive Initialization of Variable-sized Models", CVPR
2025, https://arxiv.org/abs/2406.17503, and its successor, https://arxiv.org/abs/2604.14769. The
special cases of WAVE's appendix A share this file: their bundles hold whole layers as templates and
get their scalers from a closed form.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece, Traits
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import fresh_part
from weightinit.inherit.outside import carry
from weightinit.recipes import Part, Recipe, assemble
from weightinit.templates.bundle import TemplateBundle, list_templates
from weightinit.templates.compose import Composer, Scalers
from weightinit.templates.kinds import folded
from weightinit.templates.narrow import narrowed

__all__ = ["template_recipes"]


def template_recipes(
    bundle: TemplateBundle,
    anatomy: Anatomy,
    *,
    scalers: Scalers | None = None,
    seed: int = 0,
) -> list[Recipe]:
    """Return a recipe for every parameter of a target: composed, carried, or fresh by rule.

    Raises:
        ProjectionError: if the target is of another family than the bundle's auxiliary model, or
            ``scalers`` do not fit (:meth:`Composer.start`).
    """
    family = bundle.config.traits.get("family", "vit")
    if anatomy.family != family:
        shipped = " or ".join(map(repr, list_templates(anatomy.family)))
        also = f" ({shipped} is shipped)" if shipped else ""
        raise ProjectionError(
            f"a {anatomy.family} cannot be composed from templates of a {family}: use templates "
            f"trained on a {anatomy.family}{also}, or weightinit.constrain to train them"
        )
    return assemble(anatomy, _Parts(bundle, anatomy, scalers, seed))


class _Parts:
    """The part of every piece of one target: holds the scalers of its size and the templates."""

    def __init__(
        self, bundle: TemplateBundle, target: Anatomy, scalers: Scalers | None, seed: int
    ) -> None:
        self.bundle, self.target, self.seed = narrowed(bundle, target), target, seed
        self.composer = Composer.of(self.bundle, target)
        self.how = scalers or self.composer.default(self.bundle)
        self.scalers = self.composer.start(self.bundle, scalers, seed=seed)
        self.templates = cache(self._templates)
        self.vectors: dict[object, Tensor] = {}
        self.outside = {
            name.removeprefix("outside."): value
            for name, value in self.bundle.tensors.items()
            if name.startswith("outside.")
        }

    def __call__(self, piece: Piece) -> Part:
        """Return what becomes of one piece."""
        if piece.spec.block is None:
            traits = Traits.of(self.bundle.config.traits)
            carried = carry(piece, self.target, self.outside, traits, seed=self.seed)
            return carried or fresh_part(piece, self.seed)
        source = self._source(piece)
        kind = self.composer.kind(source)
        if kind not in self.scalers:
            return self._open_gate(piece) or fresh_part(piece, self.seed)
        unit = self.composer.config.kinds[kind].unit
        axes = zip(folded(source), unit, source.axes, strict=False)
        if any(size != length and not labels.channel for size, length, labels in axes):
            return fresh_part(piece, self.seed)  # a table of other classes, or of another window
        index = self.composer.index(kind, piece)
        # A row of zeros of the closed forms is a block that they leave random.
        if not self.composer.config.trained and not self.scalers[kind][index].any():
            return fresh_part(piece, self.seed)
        number = self.composer.config.kinds[kind].number

        def fill(out: Tensor) -> None:
            templates, scalers = self.templates(kind, out.dtype), self.scalers[kind]
            if out.dim() > 1:
                scalers = scalers[index].to(out.dtype)
                self.composer.compose(source, templates, scalers, out=out)
                return
            # Vectors of all blocks at once: one by one, calls cost most.
            key = kind, source.role, source.size, out.dtype
            if key not in self.vectors:
                scalers = scalers.to(out.dtype)
                self.vectors[key] = self.composer.compose(source, templates, scalers)
            out.copy_(self.vectors[key][index])

        text = f"{number} templates of {kind}, {self.how} scalers"
        return Part("written", text, fill, whole=True)

    def _templates(self, kind: str, dtype: torch.dtype) -> Tensor:
        return self.bundle.tensors[f"templates.{kind}"].to(dtype)

    def _source(self, piece: Piece) -> Piece:
        """Return the piece in the role of its templates: a GLU without biases is twice fc1."""
        half = piece.role == "mlp.up.weight" and piece.role not in self.scalers
        if half and piece.facts.bias_role not in self.target.blocks[0]:
            return replace(piece, role="mlp.fc1.weight")
        return piece

    def _open_gate(self, piece: Piece) -> Part | None:
        """Return a GLU's other half as a constant 1, so that the gate is the composed MLP."""
        if piece.facts.module != "mlp.up" or "mlp.up.bias" not in self.target.blocks[0]:
            return None
        value = float(piece.facts.bias)
        text = f"{value:g} (the gate alone is the composed MLP)"
        return Part("fresh", text, lambda out: out.fill_(value))
