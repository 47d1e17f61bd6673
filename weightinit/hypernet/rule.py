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
from weightinit.hypernet.decoders import LowRank
from weightinit.hypernet.graph import Graph
from weightinit.hypernet.network import Decoded, Hypernet, Pass, Weights
from weightinit.inherit.depth import mixes
from weightinit.inherit.growth import followers
from weightinit.inherit.running import Runnable
from weightinit.inherit.transfer import Place, side
from weightinit.init.operators import along
from weightinit.methods.auto import SELECTION, Auto
from weightinit.methods.each import EachAxis
from weightinit.plan import Recipe

__all__ = ["Rule", "Started"]


class Rule:
    """A closed-form projection of one ancestor into one target, and its two halves.

    Args:
        target: anatomy of the target.
        source: the ancestor.
        seed: of what is fresh.
        device: where its tensors stay, once they are made.
    """

    def __init__(
        self,
        target: Anatomy,
        source: Runnable,
        *,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.target, self.source, self.device = target, source, device
        deeper = target.depth >= source.anatomy.depth
        self._depth = mixes(followers if deeper else SELECTION.depth, source.anatomy, target)
        self._axes = EachAxis().axes(source.anatomy, target)
        recipes = Auto().plan(source, target, seed=seed).recipes(target)
        self.recipes: Mapping[str, Recipe] = {recipe.spec.name: recipe for recipe in recipes}

    @cached_property
    def weights(self) -> dict[tuple[int, str], Tensor]:
        """The target's weights by the rule alone, canonical parts."""
        found: dict[tuple[int, str], Tensor] = {}
        for spec in self.target.specs:
            recipe, value = self.recipes[spec.name], torch.empty(spec.shape)
            assert recipe.fill is not None
            recipe.fill(value)
            block = self._blocks.get(spec.name, -1)
            parts = self.target.split(spec, value.to(self.device))
            found |= {(block, role): part for role, part in parts.items()}
        return found

    @cached_property
    def _blocks(self) -> dict[str, int]:
        return {
            piece.spec.name: index
            for index, block in enumerate(self.target.blocks)
            for piece in block.values()
        }

    @cached_property
    def _halves(self) -> dict[tuple[int, str], tuple[Tensor, Tensor, Tensor]]:
        return {}

    def halves(self, block: int, role: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return W_P ``[m, n]``, P W_P ``[m', n]`` and W_P Q ``[m, n']`` of a matrix.

        None where the ancestor has no such matrix.
        """
        key = (block, role)
        if key not in self._halves:
            old = self.source.anatomy
            source = self._depth[block][0][0] if block >= 0 else -1
            pieces = old.outside if block < 0 else old.blocks[source]
            if role not in pieces:
                return None
            piece, place = pieces[role], Place(role, block, source)
            value = self.source.part(piece).float().to(self.device)
            self._halves[key] = (
                value,
                self._moved(value, piece, place, 0),
                self._moved(value, piece, place, 1),
            )
        return self._halves[key]

    def _moved(self, value: Tensor, piece: Piece, place: Place, dim: int) -> Tensor:
        axis = self._axes(" ".join(piece.axes[dim]), place)
        return value if axis is None else along(value, dim, axis.op(side(place.role, dim, 2)))


class Started:
    """Adds what a hypernetwork generates to a rule's weights.

    Args:
        hypernet: of kind pith that starts at the rule.
        graph: of the target.
        rule: of ancestor and target.
    """

    def __init__(self, hypernet: Hypernet, graph: Graph, rule: Rule) -> None:
        self.hypernet, self.graph, self.rule = hypernet, graph, rule
        self.changes: dict[tuple[int, str], LowRank] = {}

    def watch(self, run: Pass, members: list[int], values: Decoded) -> Decoded:
        """Generate what is added to P and Q of nodes of one shape; leave their values alone."""
        nodes = [self.graph.nodes[index] for index in members]
        first = nodes[0]
        if not first.head and first.op != "pos_enc" and first.roles != ("patch.weight",):
            halves = [[self.rule.halves(node.block, role) for role in node.roles] for node in nodes]
            if all(half is not None for row in halves for half in row):
                self._change(run, members, halves)
        return values

    def _change(self, run: Pass, members: list[int], halves: list) -> None:
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
        for place, index in enumerate(members):
            node = self.graph.nodes[index]
            self.changes |= {
                (node.block, role): LowRank(a[place, i], b[place, i])
                for i, role in enumerate(node.roles)
            }

    def weights(self, predicted: Weights) -> Weights:
        """Return the sum of rule, changes of P and Q, and the original path's prediction."""
        found: dict[tuple[int, str], Decoded] = {
            key: value.to(self.hypernet.gates) for key, value in self.rule.weights.items()
        }
        gate = self.hypernet.gates[0]
        for key, value in predicted.parts.items():
            block, role = key
            base = found[key]
            assert isinstance(base, Tensor)
            if self._fresh(block, role):
                found[key] = value
            elif isinstance(value, LowRank):
                both = LowRank(gate * value.a, value.b)
                if change := self.changes.get(key):
                    both = LowRank(
                        *(torch.cat(ab, -1) for ab in zip(both[:2], change[:2], strict=True))
                    )
                found[key] = LowRank(both.a, both.b, base)
            else:
                if "norm" in role and role.endswith("weight"):
                    value = value - 1
                if role == "pos" and len(value) < len(base):
                    lacking = value.new_zeros(len(base) - len(value), value.shape[1])
                    value = torch.cat([lacking, value])
                found[key] = base + gate * value
        return Weights(found)

    def _fresh(self, block: int, role: str) -> bool:
        target = self.rule.target
        pieces = target.outside if block < 0 else target.blocks[block]
        return self.rule.recipes[pieces[role].spec.name].action == "fresh"
