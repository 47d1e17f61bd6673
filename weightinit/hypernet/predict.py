"""What a hypernetwork predicts, as a model stores it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, ParamSpec, Piece
from weightinit.errors import ProjectionError
from weightinit.hypernet.decoders import LowRank
from weightinit.hypernet.graph import Graph, graph_of
from weightinit.hypernet.inherit import Inherited
from weightinit.hypernet.network import Decoded, Hypernet, Weights
from weightinit.hypernet.rule import Rule, Started
from weightinit.inherit.fresh import fresh_rule, sub_generator
from weightinit.inherit.running import Runnable
from weightinit.plan import Recipe

__all__ = ["Prediction"]


class Prediction:
    """The weights of one target: predicted, inherited, or set by rule.

    Args:
        hypernet: that predicts.
        target: anatomy of the model.
        task: TAL's task embedding ``[task_dim]``.
        ancestor: that PITH inherits from.
        faithful: to the released code: clipped, tiled, positions one off, a random class row.
        seed: of what is drawn.
        graph: of the target, if it is known.
        rule: of ancestor and target, if it is known.

    Raises:
        ProjectionError: if the target, task or ancestor does not fit the hypernetwork.
    """

    def __init__(
        self,
        hypernet: Hypernet,
        target: Anatomy,
        *,
        task: Tensor | None = None,
        ancestor: Runnable | None = None,
        faithful: bool = False,
        seed: int = 0,
        graph: Graph | None = None,
        rule: Rule | None = None,
    ) -> None:
        config = hypernet.config
        self.target, self.faithful, self.seed = target, faithful, seed
        graph = graph or graph_of(target, softmax=config.softmax)
        self.inherited: Inherited | None = None
        self.rule = rule
        if config.kind != "pith":
            self.weights: Weights = hypernet(graph, task=task, faithful=faithful)
            return
        if ancestor is None:
            raise ProjectionError("PITH inherits from an ancestor: pass ancestor=")
        if config.start == "rule":
            self.rule = rule or Rule(target, ancestor, seed=seed)
            started = Started(hypernet, graph, self.rule)
            self.weights = started.weights(hypernet(graph, task=task, fuse=started.watch))
        else:
            self.inherited = Inherited(hypernet, graph, target, ancestor, faithful=faithful)
            self.weights = hypernet(graph, task=task, fuse=self.inherited, faithful=faithful)

    def parameters(self) -> dict[str, Tensor]:
        """Return every parameter as stored, by name; differentiable where it is predicted."""
        found = {}
        for spec in self.target.specs:
            pieces = self._pieces(spec)
            parts = {role: self._part(spec, role, pieces[role].size)[1] for role in spec.parts}
            dense = {role: _dense(part) for role, part in parts.items()}
            found[spec.name] = self.target.merge(spec, dense)
        return found

    def recipes(self) -> list[Recipe]:
        """Return a recipe for every parameter; matrices are multiplied out as they are written."""
        return [self._recipe(spec) for spec in self.target.specs]

    def _recipe(self, spec: ParamSpec) -> Recipe:
        pieces = self._pieces(spec)
        parts = {role: self._part(spec, role, pieces[role].size) for role in spec.parts}
        if self.faithful and not any(self._known(spec, role) is not None for role in spec.parts):
            return Recipe(spec, "kept", "as it was: the published graphs have no node for it")
        texts = list(dict.fromkeys(text for text, _ in parts.values()))
        fresh = all(text == fresh_rule(role, spec.shape)[0] for role, (text, _) in parts.items())

        def fill(out: Tensor) -> None:
            for role, view in self.target.split(spec, out).items():
                value = parts[role][1]
                if isinstance(value, LowRank):
                    value.write(view)
                else:
                    view.copy_(value)

        return Recipe(spec, "fresh" if fresh else "written", "; ".join(texts), fill)

    def _pieces(self, spec: ParamSpec) -> Mapping[str, Piece]:
        block = self._blocks.get(spec.name, -1)
        pieces = self.target.outside if block < 0 else self.target.blocks[block]
        return {role: pieces[role] for role in spec.parts}

    @cached_property
    def _blocks(self) -> dict[str, int]:
        return {
            piece.spec.name: index
            for index, block in enumerate(self.target.blocks)
            for piece in block.values()
        }

    def _known(self, spec: ParamSpec, role: str) -> Decoded | None:
        return self.weights.parts.get((self._blocks.get(spec.name, -1), role))

    def _part(self, spec: ParamSpec, role: str, size: tuple[int, ...]) -> tuple[str, Decoded]:
        """Return where a canonical part comes from, and its values."""
        value = self._known(spec, role)
        generator = sub_generator(self.seed, f"{spec.key}.{role}")
        if value is None:
            rows = self.inherited.rows(role) if self.inherited else None
            if rows is not None and tuple(rows.shape) == tuple(size):
                return f"{role}, projected", rows
            text, rule = fresh_rule(role, size)
            drawn = torch.empty(size)
            rule(drawn, generator)
            return text, drawn.to(self._like)
        if self.rule is not None:
            return f"{self.rule.recipes[spec.name].source}, and what is generated", value
        if role == "pos" and isinstance(value, Tensor) and len(value) < size[0]:
            text, before = self._before(size[0] - len(value), size[1], generator)
            return f"{role}, predicted for patches; {text} for tokens", torch.cat(
                [before.to(value), value]
            )
        return f"{role}, predicted", value

    @cached_property
    def _like(self) -> Tensor:
        return next(value for value in self.weights.parts.values() if isinstance(value, Tensor))

    def _before(self, count: int, width: int, generator: torch.Generator) -> tuple[str, Tensor]:
        """Return rows of positions for tokens, which the published graphs have no node for."""
        rows = self.inherited.rows("pos") if self.inherited else None
        if self.faithful:
            return "normal(std=0.02)", 0.02 * torch.randn(count, width, generator=generator)
        if rows is not None and tuple(rows.shape) == (count, width):
            return "projected", rows
        return "zeros", torch.zeros(count, width)


def _dense(value: Decoded) -> Tensor:
    return value.dense() if isinstance(value, LowRank) else value
