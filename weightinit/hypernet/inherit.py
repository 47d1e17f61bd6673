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
from weightinit.hypernet.network import Decoded, Hypernet, Pass
from weightinit.inherit.transfer import Source
from weightinit.init.operators import select_indices

__all__ = ["Inherited"]


class Inherited:
    """Fuses what a hypernetwork predicts with an ancestor's projected weights.

    Args:
        hypernet: of kind pith.
        graph: of the target.
        target: its anatomy.
        source: the ancestor.
        faithful: block i from block i, and positions one off, as the released code.

    Raises:
        ProjectionError: if the ancestor lacks what the target has.
    """

    def __init__(
        self,
        hypernet: Hypernet,
        graph: Graph,
        target: Anatomy,
        source: Source,
        *,
        faithful: bool = False,
    ) -> None:
        self.hypernet, self.graph, self.target, self.source = hypernet, graph, target, source
        self.faithful = faithful
        self.around: Tensor | None = None
        depth, own = target.depth, source.anatomy.depth
        if faithful and depth > own:
            raise ProjectionError(
                f"the target has {depth} blocks and the ancestor {own}, which the released code "
                "cannot project: use faithful=False"
            )
        even = select_indices(own, depth) if depth <= own else torch.arange(depth) * own // depth
        first = torch.arange(depth).clamp(max=own - 1)
        alignment = "first" if faithful else hypernet.config.alignment
        self.blocks = (first if alignment == "first" else even).tolist()
        self.mixes = alignment == "learned"

    def __call__(self, run: Pass, members: list[int], values: Decoded) -> Decoded:
        """Return fused matrices, or tensors ``[N, out, in, height, width]``, of one shape."""
        nodes = [self.graph.nodes[index] for index in members]
        first = nodes[0]
        if first.head or (first.op == "pos_enc" and not first.on_grid):
            return values
        parts = [self._stored(node) for node in nodes]
        if not all(parts):
            return values
        weight = self.hypernet.fusion_weight.sigmoid()
        if self.mixes and first.block >= 0:
            stored = [self._mixed(run.x[index], self.graph.nodes[index]) for index in members]
        else:
            stored = [[part.to(run.x) for part in found] for found in parts]
        if isinstance(values, LowRank):
            apart = self.hypernet.config.heads_apart and first.roles[0].startswith("attn.")
            a, b, _ = (self._heads if apart else self._whole)(run, members, stored, values)
            return LowRank(
                torch.cat([weight * a, (1 - weight) * values.a], -1),
                torch.cat([b, values.b], -1),
            )
        inherited = torch.stack([found[0] for found in stored])
        (rows, columns), (_, out, into) = inherited.shape[1:3], values.shape[:3]
        p, q = run.pair(members, (out, rows), (columns, into))
        p, q = p.dense(), q.dense()
        projected = torch.einsum("nab,nbckl,ncd->nadkl", p, inherited, q)
        if first.on_grid:
            self._around(q[0] * p[0, 0, 0])
        return weight * projected + (1 - weight) * values

    def _whole(
        self, run: Pass, members: list[int], stored: list[list[Tensor]], values: LowRank
    ) -> LowRank:
        """Project every matrix by one P and one Q, which are never multiplied out."""
        rows, columns = sum(len(part) for part in stored[0]), stored[0][0].shape[1]
        p, q = run.pair(members, (values.a.shape[1], rows), (columns, values.b.shape[1]))
        left = []
        for i, found in enumerate(stored):
            ways = p.b[i].split([len(part) for part in found])
            inner = [way.mT @ part for way, part in zip(ways, found, strict=True)]
            left.append(p.a[i] @ (torch.stack(inner).sum(0) @ q.a[i]))
        return LowRank(torch.stack(left), q.b)

    def _heads(
        self, run: Pass, members: list[int], stored: list[list[Tensor]], values: LowRank
    ) -> LowRank:
        """Project q, k, v and every head by a block of P (or Q) of its own."""
        old, new = self.source.anatomy.sizes, self.target.sizes
        more = new["h"] > old["h"]
        which = torch.arange(new["h"]) % old["h"] if more else select_indices(old["h"], new["h"])
        which = which.to(run.x.device)
        out, into = values.a.shape[1], values.b.shape[1]
        heads, found = (old["h"], old["k"]), []
        if self.graph.nodes[members[0]].roles[0].startswith("attn.proj"):
            rows = len(stored[0][0])
            p, q = run.pair(members, (out, rows), (old["k"], into))
            for i, (whole,) in enumerate(stored):
                chosen = whole.unflatten(1, heads)[:, which].transpose(0, 1)
                core = p.b[i].mT @ chosen @ q.a[i]
                found.append((q.b[i].unflatten(0, (new["h"], -1)) @ core.mT).flatten(0, 1))
            return LowRank(p.a, torch.stack(found))
        columns = stored[0][0].shape[1]
        p, q = run.pair(members, (out, old["k"]), (columns, into))
        for i, parts in enumerate(stored):
            chosen = torch.stack([part.unflatten(0, heads)[which] for part in parts])
            core = p.b[i].mT @ chosen @ q.a[i]
            rows = p.a[i].unflatten(0, (len(parts), new["h"], -1))
            found.append((rows @ core).flatten(0, 2))
        return LowRank(torch.stack(found), q.b)

    def _mixed(self, x: Tensor, node: Node) -> list[Tensor]:
        """Return the ancestor's matrices, averaged over the blocks around a node's own place."""
        blocks = self.source.anatomy.blocks
        place = self.blocks[node.block] + self.hypernet.place(x)
        away = (torch.arange(len(blocks), device=x.device) - place).square()
        weights = (-self.hypernet.precision.exp() * away).softmax(0)
        return [
            torch.einsum(
                "b,bij->ij",
                weights,
                torch.stack([self.source.part(block[role]).to(x) for block in blocks]),
            )
            for role in node.roles
        ]

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
        if node.roles == ("patch.weight",):
            assert node.shape is not None
            _, channels, height, width = node.shape
            if parts[0].shape[1:] == (channels, height, width):
                return parts
            return [resample_patch(parts[0], (height, width), channels)]
        return parts

    def _positions(self, value: Tensor, node: Node) -> Tensor:
        assert node.shape is not None
        rows, columns = node.shape[2:]
        if self.faithful:
            if len(value) < rows * columns:
                raise ProjectionError(
                    f"the ancestor has {len(value)} positions, the target a grid of "
                    f"{rows}x{columns}, which the released code cannot project: use faithful=False"
                )
            kept = value[: rows * columns]
        else:
            before = _prefix(self.source.anatomy)
            kept = resample_pos(value, grid(self.source.anatomy), (rows, columns), before, 0)
        return kept.T.unflatten(1, (rows, columns))[None]

    def _around(self, q: Tensor) -> None:
        """Keep what the rows of positions and tokens outside the grid are projected with."""
        self.around = self.hypernet.fusion_weight.sigmoid() * q

    def rows(self, role: str) -> Tensor | None:
        """Return projected token rows: of ``pos`` those before the grid, or of a token role."""
        piece = self.source.anatomy.outside.get(role)
        if self.around is None or piece is None or self.faithful:
            return None
        value = self.source.part(piece).to(self.around)
        value = value[: _prefix(self.source.anatomy)] if role == "pos" else value
        return value @ self.around


def _prefix(seen: Anatomy) -> int:
    """Return how many rows of the positions come before the grid."""
    rows, columns = grid(seen)
    return seen.outside["pos"].size[0] - rows * columns
