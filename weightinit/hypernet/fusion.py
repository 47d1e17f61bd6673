"""PITH: projections of one ancestor's weights, generated: W = a P W_P Q + (1 - a) W_pred.

Xu et al. As released, one global a, learned; P and Q cropped out of one matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.anatomy.resample import resample_patch, resample_pos
from weightinit.errors import ProjectionError
from weightinit.hypernet.decoders import LowRank
from weightinit.hypernet.graph import Graph, Node, grid
from weightinit.hypernet.network import Decoded, GraphHyperNetwork, Pass
from weightinit.inherit.method import Source
from weightinit.init.operators import select_indices

__all__ = ["Fusion"]


class Fusion:
    """Fuses what a hypernetwork predicts with an ancestor's projected weights.

    ``faithful`` takes block i from block i, and positions one off, as the released code.
    """

    def __init__(
        self,
        hypernet: GraphHyperNetwork,
        graph: Graph,
        target: Anatomy,
        source: Source,
        *,
        faithful: bool = False,
    ) -> None:
        self.hypernet, self.graph, self.source = hypernet, graph, source
        self.faithful = faithful
        self._around: Tensor | None = None
        depth, own = target.depth, source.anatomy.depth
        if faithful and depth > own:
            raise ProjectionError(
                f"the target has {depth} blocks and the ancestor {own}, which the released code "
                "cannot project: use faithful=False"
            )
        if faithful or hypernet.config.alignment == "first":
            blocks = torch.arange(depth).clamp(max=own - 1)
        elif depth <= own:
            blocks = select_indices(own, depth)
        else:
            blocks = torch.arange(depth) * own // depth
        #: The ancestor's block that each block inherits from.
        self.blocks: list[int] = blocks.tolist()

    def fuse(self, run: Pass, members: list[int], values: Decoded) -> Decoded:
        """Return fused matrices, or tensors ``[N, out, in, height, width]``, of one shape."""
        first = self.graph.nodes[members[0]]
        if first.head or (first.op == "pos_enc" and not first.on_grid):
            return values
        parts = (self._stored(self.graph.nodes[index]) for index in members)
        stored = [[part.to(run.x) for part in found] for found in parts]
        if not all(stored):
            return values
        weight = self.hypernet.fusion_weight.sigmoid()
        if isinstance(values, LowRank):
            p, q = run.pair(
                members,
                (values.a.shape[1], sum(len(part) for part in stored[0])),
                (stored[0][0].shape[1], values.b.shape[1]),
            )
            # q, k and v are one matrix, and P and Q are never multiplied out.
            left = []
            for i, found in enumerate(stored):
                ways = p.b[i].split([len(part) for part in found])
                inner = [way.mT @ part for way, part in zip(ways, found, strict=True)]
                left.append(p.a[i] @ (torch.stack(inner).sum(0) @ q.a[i]))
            return LowRank(
                torch.cat([weight * torch.stack(left), (1 - weight) * values.a], -1),
                torch.cat([q.b, values.b], -1),
            )
        inherited = torch.stack([found[0] for found in stored])
        (rows, columns), (_, out, into) = inherited.shape[1:3], values.shape[:3]
        p, q = (factor.dense() for factor in run.pair(members, (out, rows), (columns, into)))
        projected = torch.einsum("nab,nbckl,ncd->nadkl", p, inherited, q)
        if first.on_grid:
            self._around = weight * (q[0] * p[0, 0, 0])
        return weight * projected + (1 - weight) * values

    def rows(self, role: str) -> Tensor | None:
        """Return projected token rows: of ``pos`` those before the grid, or of a token role."""
        piece = self.source.anatomy.outside.get(role)
        if self._around is None or piece is None or self.faithful:
            return None
        value = self.source.part(piece).to(self._around)
        value = value[: _prefix(self.source.anatomy)] if piece.facts.kind == "position" else value
        return value @ self._around

    def _stored(self, node: Node) -> list[Tensor]:
        """Return the ancestor's matrices for a node, or its tensor of four axes.

        Empty where a node outside the blocks has none: it is predicted by the original path alone.
        """
        old = self.source.anatomy
        pieces = old.outside if node.block < 0 else old.blocks[self.blocks[node.block]]
        lacking = [role for role in node.roles if role not in pieces]
        if lacking and node.block < 0:
            return []
        if lacking:
            raise ProjectionError(
                f"the ancestor has no {', '.join(lacking)}: use one with the target's layers"
            )
        parts = [self.source.part(pieces[role]) for role in node.roles]
        if node.on_grid:
            return [self._positions(parts[0], node)]
        if node.spatial:
            _, channels, height, width = node.shape
            if parts[0].shape[1:] != (channels, height, width):
                return [resample_patch(parts[0], (height, width), channels)]
        return parts

    def _positions(self, value: Tensor, node: Node) -> Tensor:
        """Return the ancestor's positions on the target's grid ``[1, d, rows, columns]``."""
        rows, columns = node.shape[2:]
        if not self.faithful:
            before = _prefix(self.source.anatomy)
            value = resample_pos(value, grid(self.source.anatomy), (rows, columns), before, 0)
        elif len(value) < rows * columns:
            raise ProjectionError(
                f"the ancestor has {len(value)} positions, the target a grid of {rows}x{columns}, "
                "which the released code cannot project: use faithful=False"
            )
        return value[: rows * columns].T.unflatten(1, (rows, columns))[None]


def _prefix(seen: Anatomy) -> int:
    """Return how many rows of the positions come before the grid."""
    rows, columns = grid(seen)
    return seen.outside["pos"].size[0] - rows * columns
