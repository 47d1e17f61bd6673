"""Ours: generated projections that start at a rule's, W = W_rule + dP W_P Q + P W_P dQ + dP W_P dQ.

W_rule is what project_from gives by default, so training begins at a network that works; P and Q
select or repeat channels and whole heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.anatomy.roles import facts
from weightinit.hypernet.decoders import LowRank
from weightinit.hypernet.graph import Graph, Key, keyed
from weightinit.hypernet.network import Decoded, GraphHyperNetwork, Pass, WeightMap
from weightinit.inherit.depth import followers, mixes
from weightinit.inherit.method import Runnable
from weightinit.inherit.transfer import Place
from weightinit.init.operators import along
from weightinit.methods.auto import SELECTION, Auto
from weightinit.methods.each import EachAxis
from weightinit.recipes import Part

__all__ = ["ClosedForm", "Refinement"]


class ClosedForm:
    """What the default rule makes of one ancestor and one target, and its two halves.

    Its tensors stay on ``device``, once they are made; ``seed`` is that of what is fresh.
    """

    def __init__(
        self,
        target: Anatomy,
        source: Runnable,
        *,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.source, self.device = source, device
        deeper = target.depth >= source.anatomy.depth
        self._depth = mixes(followers if deeper else SELECTION.depth, source.anatomy, target)
        self._axes = EachAxis().axes(source.anatomy, target)
        parts = Auto().plan(source, target, seed=seed).parts
        self._pieces = keyed(target)
        #: What becomes of each canonical part by the rule alone.
        self.parts: Mapping[Key, Part] = {key: parts[piece] for key, piece in self._pieces.items()}
        self._halves: dict[Key, tuple[Tensor, ...]] = {}

    @cached_property
    def weights(self) -> dict[Key, Tensor]:
        """The target's canonical parts by the rule alone."""
        found: dict[Key, Tensor] = {}
        for key, part in self.parts.items():
            value = torch.empty(self._pieces[key].size)
            assert part.fill is not None
            part.fill(value)
            found[key] = value.to(self.device)
        return found

    def halves(self, block: int, role: str) -> tuple[Tensor, ...]:
        """Return W_P ``[m, n]``, P W_P ``[m', n]`` and W_P Q ``[m, n']`` of a matrix.

        Nothing where the ancestor has no such matrix.
        """
        key, old = (block, role), self.source.anatomy
        place = Place(role, block, self._depth[block][0][0] if block >= 0 else -1)
        pieces = old.outside if block < 0 else old.blocks[place.source]
        if role not in pieces:
            return ()
        if key not in self._halves:
            value = self.source.part(pieces[role]).float().to(self.device)
            moved = (self._moved(value, pieces[role], place, dim) for dim in (0, 1))
            self._halves[key] = (value, *moved)
        return self._halves[key]

    def _moved(self, value: Tensor, piece: Piece, place: Place, dim: int) -> Tensor:
        axis = self._axes(piece.axes[dim], place)
        return value if axis is None else along(value, dim, axis.op(piece.side(dim)))


class Refinement:
    """Adds what a hypernetwork that starts at the rule generates to the weights of the rule."""

    def __init__(self, hypernet: GraphHyperNetwork, graph: Graph, rule: ClosedForm) -> None:
        self.hypernet, self.graph, self.rule = hypernet, graph, rule
        self._changes: dict[Key, LowRank] = {}

    def fuse(self, run: Pass, members: list[int], values: Decoded) -> Decoded:
        """Generate what is added to P and Q of nodes of one shape; leave their values alone."""
        nodes = [self.graph.nodes[index] for index in members]
        first = nodes[0]
        if first.head or first.op == "pos_enc" or first.spatial:
            return values
        halves = [[self.rule.halves(node.block, role) for role in node.roles] for node in nodes]
        if not all(half for row in halves for half in row):
            return values
        # [N, parts, rows, columns]; q, k and v are parts, and share the columns of P.
        w, pw, wq = (
            torch.stack([torch.stack([half[i] for half in row]) for row in halves]).to(run.x)
            for i in range(3)
        )
        parts, rows, columns = w.shape[1:]
        out, into = pw.shape[2], wq.shape[3]
        _, left, right = self.hypernet.gates
        p, q = run.pair(members, (parts * out, rows), (columns, into))
        pa = left * rows**-0.5 * p.a.unflatten(1, (parts, out))
        qa = (right * columns**-0.5 * q.a)[:, None]
        pb, qb = p.b[:, None], q.b[:, None].expand(-1, parts, -1, -1)
        # dP W_P Q + dP W_P dQ + P W_P dQ, of which nothing is multiplied out
        a = torch.cat([pa, pa @ (pb.mT @ w @ qa) + pw @ qa], -1)
        b = torch.cat([(pb.mT @ wq).mT, qb], -1)
        for place, node in enumerate(nodes):
            for i, role in enumerate(node.roles):
                self._changes[node.block, role] = LowRank(a[place, i], b[place, i])
        return values

    def weights(self, predicted: WeightMap) -> WeightMap:
        """Return the sum of rule, changes of P and Q, and the original path's prediction."""
        gate = self.hypernet.gates[0]
        found: dict[Key, Decoded] = {k: v.to(gate) for k, v in self.rule.weights.items()}
        for key, value in predicted.data.items():
            base = found[key]
            assert isinstance(base, Tensor)
            if self.rule.parts[key].action == "fresh":
                found[key] = value
            elif isinstance(value, LowRank):
                a, b = gate * value.a, value.b
                if change := self._changes.get(key):
                    a, b = torch.cat([a, change.a], -1), torch.cat([b, change.b], -1)
                found[key] = LowRank(a, b, base)
            else:
                value = value - 1 if facts(key[1]).gain else value
                if facts(key[1]).kind == "position" and len(value) < len(base):
                    lacking = value.new_zeros(len(base) - len(value), value.shape[1])
                    value = torch.cat([lacking, value])
                found[key] = base + gate * value
        return WeightMap(found)
