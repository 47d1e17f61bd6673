"""What a hypernetwork predicts, as a model stores it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.decoders import LowRank
from weightinit.hypernet.fusion import Fusion
from weightinit.hypernet.graph import Graph, graph_of, keyed
from weightinit.hypernet.network import Decoded, GraphHyperNetwork, WeightMap
from weightinit.hypernet.refinement import ClosedForm, Refinement
from weightinit.inherit.fresh import fresh_part, sub_generator
from weightinit.inherit.method import Runnable
from weightinit.recipes import Action, Inheritance, Part

__all__ = ["Prediction"]


class Prediction:
    """The weights of one target: predicted, inherited, or set by rule.

    Args:
        hypernet: the network that predicts.
        target: anatomy of the model.
        task: TAL's task embedding ``[task_dim]``.
        ancestor: what PITH inherits from.
        faithful: as the released code: clipped, tiled, positions one off, a random class row; None
            is how the network was trained.
        std: standard deviation of a language model's matrices, by its own initialiser.
        seed: base seed for all random draws.
        graph: graph of the target, if it is known.
        rule: what the default rule makes of ancestor and target, if it is known.

    Raises:
        ProjectionError: if the target, task or ancestor does not fit the hypernetwork.
    """

    def __init__(
        self,
        hypernet: GraphHyperNetwork,
        target: Anatomy,
        *,
        task: Tensor | None = None,
        ancestor: Runnable | None = None,
        faithful: bool | None = None,
        std: float = 0.02,
        seed: int = 0,
        graph: Graph | None = None,
        rule: ClosedForm | None = None,
    ) -> None:
        config = hypernet.config
        if not isinstance(faithful, bool | None):
            raise ProjectionError(f"faithful={faithful!r}: use True, False, or None")
        self.faithful = config.faithful if faithful is None else faithful
        self.target, self.seed = target, seed
        self._device = hypernet.embed.weight.device
        stored = config.as_stored(self.faithful)
        graph = graph or graph_of(target, softmax=config.softmax, stored=stored)
        predict = partial(hypernet, graph, task=task, faithful=self.faithful, std=std)
        self._notes = _notes(config, faithful)
        self._fusion: Fusion | None = None
        self._rule: ClosedForm | None = None
        if config.kind != "pith":
            self.weights: WeightMap = predict()
        elif ancestor is None:
            raise ProjectionError("PITH inherits from an ancestor: pass ancestor=")
        elif config.start == "rule":
            self._rule = rule or ClosedForm(target, ancestor, seed=seed)
            refinement = Refinement(hypernet, graph, self._rule)
            self.weights = refinement.weights(predict(fuse=refinement.fuse, faithful=False))
        else:
            self._fusion = Fusion(hypernet, graph, target, ancestor, faithful=self.faithful)
            self.weights = predict(fuse=self._fusion.fuse)

    def parameters(self) -> dict[str, Tensor]:
        """Return every parameter as stored, by name; differentiable where it is predicted."""
        dense: dict[str, dict[str, Tensor]] = {}
        for (block, role), piece in keyed(self.target).items():
            _, _, value = self._part(block, piece)
            value = value.dense() if isinstance(value, LowRank) else value
            dense.setdefault(piece.spec.name, {})[role] = value
        return {spec.name: self.target.merge(spec, dense[spec.name]) for spec in self.target.specs}

    def plan(self) -> Inheritance:
        """Return a part for every piece; matrices are multiplied out as they are written."""
        parts = {}
        for (block, _), piece in keyed(self.target).items():
            known = any((block, role) in self.weights for role in piece.spec.parts)
            if self.faithful and not known:
                fresh = fresh_part(piece, self.seed)
                text = f"as it was, on meta {fresh.text}: the published graphs have no node for it"
                parts[piece] = Part("kept", text, fresh.fill)
            else:
                action, text, value = self._part(block, piece)
                fill = value.write if isinstance(value, LowRank) else partial(_copy, value)
                parts[piece] = Part(action, text, fill)
        return Inheritance(parts, self._notes)

    def _part(self, block: int, piece: Piece) -> tuple[Action, str, Decoded]:
        """Return what becomes of a canonical part, where it comes from, and its values."""
        role, size = piece.role, tuple(piece.size)
        value = self.weights.data.get((block, role))
        if value is None and (rows := self._rows(role, size)) is not None:
            return "written", f"{role}, projected", rows
        if value is None:
            fresh = fresh_part(piece, self.seed)
            assert fresh.fill is not None
            drawn = torch.empty(size)
            fresh.fill(drawn)
            return "fresh", fresh.text, drawn.to(self._device)
        if self._rule is not None:
            return "written", f"{self._rule.parts[block, role].text}, refined", value
        if piece.facts.kind != "position" or isinstance(value, LowRank) or len(value) == size[0]:
            return "written", f"{role}, predicted", value
        # The published graphs have no node for the positions of tokens.
        shape = (size[0] - len(value), size[1])
        if self.faithful:
            generator = sub_generator(self.seed, f"{piece.spec.key}.{role}")
            text, before = "normal(std=0.02)", 0.02 * torch.randn(shape, generator=generator)
        elif (rows := self._rows(role, shape)) is not None:
            text, before = "projected", rows
        else:
            text, before = "zeros", torch.zeros(shape)
        text = f"{role}, predicted for patches; {text} for tokens"
        return "written", text, torch.cat([before.to(value), value])

    def _rows(self, role: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return the ancestor's rows of tokens, projected, if there are as many as are needed."""
        rows = self._fusion.rows(role) if self._fusion else None
        return rows if rows is not None and tuple(rows.shape) == shape else None


def _notes(config: HyperConfig, asked: bool | None) -> list[str]:
    """Return by whose rules is predicted, where those are not weightinit's alone."""
    if asked and config.start == "rule":
        return ["the hypernetwork starts at a rule of weightinit's: faithful=True changes little"]
    if asked is None or asked == config.faithful:
        how = "predicted by the released code's rules, by which the hypernetwork was trained"
        return [f"{how}; faithful=False takes weightinit's"] if config.faithful else []
    by, other = ("weightinit's", "the released code's")[:: -1 if config.faithful else 1]
    return [f"the hypernetwork was trained by {by} rules, and predicts by {other}, as asked for"]


def _copy(value: Tensor, out: Tensor) -> None:
    out.copy_(value)
