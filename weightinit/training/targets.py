"""The networks that a hypernetwork trains on: built once, without weights of their own."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Piece, anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.hypernet.graph import Graph, graph_of
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.predict import Prediction
from weightinit.hypernet.refinement import ClosedForm
from weightinit.training.fleet import plain_attention
from weightinit.training.tasks import Data

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["GUIDE", "Target", "Targets", "zero_shot"]

#: TAL's M, which takes a target's feature to the ancestor's width: a node of the graph.
GUIDE = "guide.weight"


@dataclass(frozen=True)
class Target:
    """A model on the meta device, in training mode, and what the weights start at, if any rule."""

    model: nn.Module
    anatomy: Anatomy
    graph: Graph
    rule: ClosedForm | None = None


class Targets:
    """Architectures with their anatomies, graphs and rules, each built once.

    PITH gets the ancestor; ``guide`` is the width that TAL's M projects a feature to, 0 for no M.
    """

    def __init__(
        self, hypernet: GraphHyperNetwork, ancestor: Ancestor | None = None, guide: int = 0
    ) -> None:
        self.hypernet, self.guide = hypernet, guide
        self.ancestor = ancestor if hypernet.config.kind == "pith" else None
        self.device = hypernet.embed.weight.device
        self._source = _CachedAncestor(self.ancestor, self.device) if self.ancestor else None
        self._built: dict[str, Target] = {}

    def __call__(self, kwargs: Mapping[str, Any], data: Data) -> Target:
        """Return the model of ``kwargs`` for the classes, or the vocabulary, of ``data``."""
        arguments = data.arguments(kwargs)
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._built:
            with torch.device("meta"):
                model = data.build(arguments).train()
            if self.device.type == "cpu":
                plain_attention(model)
            config, target, rule = self.hypernet.config, anatomy(model), None
            if self.ancestor is not None and config.start == "rule":
                rule = ClosedForm(target, self.ancestor, device=self.device)
            extra = {GUIDE: (self.guide, target.sizes["d"])} if self.guide else None
            stored = config.as_stored(config.faithful)
            graph = graph_of(target, softmax=config.softmax, stored=stored, extra=extra)
            self._built[key] = Target(model, target, graph, rule)
        return self._built[key]

    def predict(self, target: Target, task: Tensor | None = None) -> Prediction:
        """Return the prediction of a target's weights, of a TAL for a task ``[task_dim]``."""
        return Prediction(
            self.hypernet,
            target.anatomy,
            task=task,
            ancestor=self._source,
            graph=target.graph,
            rule=target.rule,
        )

    @torch.no_grad()
    def score(
        self, kwargs: Mapping[str, Any], data: Data, split: Any = None, task: Tensor | None = None
    ) -> float:
        """Return what :func:`zero_shot` does, of this object's hypernetwork and ancestor."""
        target = self(kwargs, data)
        model = copy.deepcopy(target.model)
        weights = self.predict(target, task).parameters()
        model.load_state_dict(weights, strict=False, assign=True)
        return data.score(model, split)


def zero_shot(
    hypernet: GraphHyperNetwork,
    kwargs: Mapping[str, Any],
    data: Data,
    *,
    split: Any = None,
    task: Tensor | None = None,
    ancestor: AncestorLike | None = None,
) -> float:
    """Return the score of a network whose weights are predicted, never trained.

    That is accuracy in percent on images, and bits per byte, less being better, on texts; ``split``
    is a part of the data, of a text its tokens, and None what was held out for validation. The
    network is that of ``kwargs``, as :func:`weightinit.hypernet.samplers.sample` gives them; TAL
    needs the embedding of the task, ``[task_dim]``, and PITH the ancestor.
    """
    source = None if ancestor is None else Ancestor.open(ancestor)
    return Targets(hypernet, source).score(kwargs, data, split, task)


class _CachedAncestor:
    """An ancestor whose parts are read once and stay where they are computed with."""

    def __init__(self, source: Ancestor, device: torch.device) -> None:
        self.source, self.device = source, device
        self.anatomy, self.module = source.anatomy, source.module
        self._parts: dict[tuple[str, str], Tensor] = {}

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part."""
        key = piece.spec.name, piece.role
        if key not in self._parts:
            self._parts[key] = self.source.part(piece).to(self.device)
        return self._parts[key]
