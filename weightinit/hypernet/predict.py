"""What a hypernetwork predicts, as a model stores it."""

from __future__ import annotations

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
from weightinit.plan import Action, Inheritance, Part

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
            dense = {
                piece.role: _dense(self._part(spec, piece.role, piece.size)[2])
                for piece in self.target.pieces(spec)
            }
            found[spec.name] = self.target.merge(spec, dense)
        return found

    def plan(self) -> Inheritance:
        """Return a part for every piece; matrices are multiplied out as they are written."""
        pieces = (piece for spec in self.target.specs for piece in self.target.pieces(spec))
        return Inheritance({piece: self._as_part(piece) for piece in pieces})

    def _as_part(self, piece: Piece) -> Part:
        spec, role = piece.spec, piece.role
        if self.faithful and not any(self._known(spec, each) is not None for each in spec.parts):
            return Part("kept", "as it was: the published graphs have no node for it")
        action, text, value = self._part(spec, role, piece.size)
        if isinstance(value, LowRank):
            return Part(action, text, value.write)
        return Part(action, text, lambda out: out.copy_(value))

    @cached_property
    def _blocks(self) -> dict[str, int]:
        return {
            piece.spec.name: index
            for index, block in enumerate(self.target.blocks)
            for piece in block.values()
        }

    def _known(self, spec: ParamSpec, role: str) -> Decoded | None:
        return self.weights.parts.get((self._blocks.get(spec.name, -1), role))

    def _part(
        self, spec: ParamSpec, role: str, size: tuple[int, ...]
    ) -> tuple[Action, str, Decoded]:
        """Return what becomes of a canonical part, where it comes from, and its values."""
        value = self._known(spec, role)
        generator = sub_generator(self.seed, f"{spec.key}.{role}")
        if value is None:
            rows = self.inherited.rows(role) if self.inherited else None
            if rows is not None and tuple(rows.shape) == tuple(size):
                return "written", f"{role}, projected", rows
            text, rule = fresh_rule(role, size)
            drawn = torch.empty(size)
            rule(drawn, generator)
            return "fresh", text, drawn.to(self._like)
        if self.rule is not None:
            source = self.rule.recipes[spec.name].source
            return "written", f"{source}, and what is generated", value
        if role == "pos" and isinstance(value, Tensor) and len(value) < size[0]:
            text, before = self._before(size[0] - len(value), size[1], generator)
            where = f"{role}, predicted for patches; {text} for tokens"
            return "written", where, torch.cat([before.to(value), value])
        return "written", f"{role}, predicted", value

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
