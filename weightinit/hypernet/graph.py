"""The computational graph of a target, from its anatomy: no forward pass, no tracing.

GHN-2 and GHN-3 (Knyazev et al., https://arxiv.org/abs/2110.13100, https://arxiv.org/abs/2303.04143)
trace the model's autograd graph; what that gives for a transformer is written down here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.anatomy.labels import label_of
from weightinit.anatomy.roles import facts
from weightinit.errors import ProjectionError

__all__ = ["PRIMITIVES", "Graph", "Key", "Node", "graph_of", "grid", "keyed"]

#: Types of nodes by id; the last three are those of the language models' list.
PRIMITIVES = (
    "max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat", "input",
    "bias", "bn", "ln", "pos_enc", "glob_avg", "rmsnorm", "rot_emb", "gate",
)  # fmt: skip
#: Published cutoff of shortest paths: pairs farther apart are not connected.
CUTOFF = 50
#: Layers whose weights are stacked in one node.
FUSED = {
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),
    "pool.qkv": ("pool.q", "pool.k", "pool.v"),
    "mlp.fc1": ("mlp.fc1", "mlp.up"),
}
#: Block, -1 outside the blocks, and canonical role.
Key = tuple[int, str]


@dataclass(frozen=True)
class Node:
    """One operation of a model.

    Args:
        op: type of the operation, one of :data:`PRIMITIVES`.
        roles: canonical roles that it predicts, their rows stacked in this order; of a norm its
            weight and bias. Empty for an operation without parameters.
        block: index of its block, -1 outside.
        shape: shape of what it predicts: out, in, height, width; empty without parameters.
        turned: whether that shape is in, out: that of a matrix which is stored transposed.
    """

    op: str
    roles: tuple[str, ...] = ()
    block: int = -1
    shape: tuple[int, ...] = ()
    turned: bool = False

    @property
    def head(self) -> bool:
        """Whether it belongs to the classifier."""
        return bool(self.roles) and facts(self.roles[0]).kind == "head"

    @property
    def spatial(self) -> bool:
        """Whether it predicts a tensor of four axes: patches, or positions of patches."""
        return self.roles == ("patch.weight",) or self.on_grid

    @property
    def on_grid(self) -> bool:
        """Whether it predicts positions of patches, ``(1, d, rows, columns)``."""
        return self.roles == ("pos",) and self.shape[0] == 1


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, the first the input, and the edges between them, forwards.

    ``stored`` is the graph of a language model as LoGAH's released classes for them see it.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    cutoff: int = CUTOFF
    stored: bool = False

    @cached_property
    def distances(self) -> Tensor:
        """Shortest paths ``[n, n]``, int64: 1 an edge, 0 none or farther than the cutoff."""
        n = len(self.nodes)
        found = np.full((n, n), np.iinfo(np.int32).max // 2, dtype=np.int32)
        after: list[list[int]] = [[] for _ in range(n)]
        for start, end in self.edges:
            after[start].append(end)
        for node in reversed(range(n)):
            for end in after[node]:
                np.minimum(found[node], found[end] + 1, out=found[node])
                found[node, end] = 1
        found[found > self.cutoff] = 0
        return torch.from_numpy(found.astype(np.int64))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(node.block for node in self.nodes)

    @cached_property
    def types(self) -> Tensor:
        """Ids of the node types ``[n]``, int64."""
        return torch.tensor([PRIMITIVES.index(node.op) for node in self.nodes])


def graph_of(
    target: Anatomy,
    *,
    softmax: bool = False,
    stored: bool = False,
    extra: Mapping[str, tuple[int, int]] | None = None,
) -> Graph:
    """Return the graph of a transformer.

    12 L + 8 nodes for L blocks of a plain ViT, or 13 L + 8 with the softmax nodes that torch 1
    showed to the published code and torch 2 hides.

    Args:
        target: anatomy of the model.
        softmax: whether attention has a node of its own.
        stored: whether matrices of a language model have the shape that they are stored in.
        extra: matrices ``(rows, columns)`` by role that read the stream after the last norm, beside
            the head: TAL's M.

    Raises:
        ProjectionError: if the model has layers outside the vocabulary.

    Examples:
        >>> import timm, weightinit as wi
        >>> graph = graph_of(wi.anatomy(timm.create_model("vit_tiny_patch16_224")))
        >>> len(graph.nodes), int(graph.distances.count_nonzero())
        (152, 11473)
    """
    stored = stored and target.word_table is not None
    built = _Builder(target, softmax, stored)
    built.build(extra or {})
    return Graph(tuple(built.nodes), tuple(built.edges), stored=stored)


class _Builder:
    """Adds nodes in the order of a forward pass; what adds returns the index of the last one."""

    def __init__(self, target: Anatomy, softmax: bool, stored: bool) -> None:
        self.target, self.softmax, self.stored = target, softmax, stored
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []

    def build(self, extra: Mapping[str, tuple[int, int]]) -> None:
        target, outside = self.target, self.target.outside
        wrong = sorted({stack for stack, _ in target.extra_blocks})
        for block in target.blocks:
            lacking = {"attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"} - block.keys()
            wrong += [f"no {role}" for role in sorted(lacking)]
        if wrong:
            _refuse("layers", dict.fromkeys(wrong))
        last = self._add(Node("input"), ())
        if target.word_table is not None:
            joined, start = [self._embedding(last, "embed.token.weight")], last
        else:
            joined, start = [self._linear(last, outside, -1, "patch")], None
        if target.position_table is not None:
            last = self._add(Node("sum"), [*joined, self._embedding(start, "pos")])
        else:
            last = joined[0]
        last = self._norm(last, outside, -1, "norm_pre")
        for index, block in enumerate(target.blocks):
            last = self._block(last, block, index)
        last = self._norm(last, outside, -1, "norm")
        if target.traits.pool == "avg":
            last = self._add(Node("glob_avg"), (last,))
        last = self._pool(self._norm(last, outside, -1, "fc_norm"))
        for head in ("head", "head_dist"):
            self._linear(last, outside, -1, head)
        for role, sizes in extra.items():
            self._add(Node("conv", (role,), -1, (*sizes, 1, 1)), (last,))
        used = {(node.block, role) for node in self.nodes for role in node.roles}
        left = [p for key, p in keyed(target).items() if key not in used and not _ruled(p)]
        if left:
            _refuse("parameters", sorted(piece.spec.name for piece in left)[:6])

    def _block(self, last: int, block: Mapping[str, Piece], index: int) -> int:
        post = self.target.traits.form in ("branch_norm", "post_norm")
        for norm, layers in (
            ("norm1", ("attn.qkv", "attn.proj")),
            ("norm2", ("mlp.fc1", "mlp.fc2")),
        ):
            at = last if post else self._norm(last, block, index, norm)
            for layer in layers:
                at = self._linear(at, block, index, layer)
                if layer == "attn.qkv" and self.softmax:
                    at = self._add(Node("msa"), (at,))
            at = self._norm(at, block, index, norm) if post else at
            last = self._add(Node("sum"), (last, at))
        return last

    def _pool(self, last: int) -> int:
        """Add attention that pools, a block of one learned query."""
        outside = self.target.outside
        if "pool.proj.weight" not in outside:
            return last
        last = self._linear(self._linear(last, outside, -1, "pool.qkv"), outside, -1, "pool.proj")
        at = self._norm(last, outside, -1, "pool.norm")
        for layer in ("pool.mlp.fc1", "pool.mlp.fc2"):
            at = self._linear(at, outside, -1, layer)
        return self._add(Node("sum"), (last, at))

    def _linear(self, last: int, pieces: Mapping[str, Piece], block: int, layer: str) -> int:
        for which, op in (("weight", "conv"), ("bias", "bias")):
            roles = [f"{name}.{which}" for name in FUSED.get(layer, (layer,))]
            if found := [role for role in roles if role in pieces]:
                sizes = [pieces[role].size for role in found]
                shape = (sum(size[0] for size in sizes), *(*sizes[0][1:], 1, 1, 1)[:3])
                order = pieces[found[0]].spec.layout.parts[0].order
                turned = self.stored and which == "weight" and order[0] > 0
                if turned:
                    shape = (shape[1], shape[0], *shape[2:])
                last = self._add(Node(op, tuple(found), block, shape, turned), (last,))
        return last

    def _norm(self, last: int, pieces: Mapping[str, Piece], block: int, norm: str) -> int:
        roles = [role for role in (f"{norm}.weight", f"{norm}.bias") if role in pieces]
        if not roles:
            return last
        shape = (*pieces[roles[0]].size, 1, 1, 1)
        return self._add(Node("ln", tuple(roles), block, shape), (last,))

    def _embedding(self, last: int | None, role: str) -> int:
        rows, width = self.target.outside[role].size
        on_grid = role == "pos" and "patch.weight" in self.target.outside
        shape = (1, width, *grid(self.target)) if on_grid else (rows, width, 1, 1)
        return self._add(Node("pos_enc", (role,), -1, shape), () if last is None else (last,))

    def _add(self, node: Node, before: Iterable[int]) -> int:
        self.nodes.append(node)
        index = len(self.nodes) - 1
        self.edges += [(other, index) for other in sorted(before)]
        return index


def _refuse(what: str, names: Iterable[str]) -> NoReturn:
    raise ProjectionError(
        f"the model has {what} outside the hypernetworks' vocabulary: {', '.join(names)}; use a "
        "plain ViT or GPT-2, or wi.project_from(ancestor, model)"
    )


def _ruled(piece: Piece) -> bool:
    """Return whether the published graphs have no node for it: a rule sets it, as if fresh."""
    fact = piece.facts
    if fact.kind == "norm":
        return fact.branch in ("attn", "mlp") or fact.place == "first norm"
    if fact.kind in ("embedding", "stem", "head"):
        return False
    labels = [label_of(name) for axis in piece.axes for name in axis]
    tokens = labels[0].kind in ("index", "position")
    layer = any(label.shared or label.width for label in labels)
    return fact.kind in ("scale", "table", "token", "position") or tokens or not layer


def keyed(target: Anatomy) -> dict[Key, Piece]:
    """Return every canonical piece of a model by block and role."""
    blocks = enumerate((target.outside, *target.blocks), -1)
    return {(index, role): piece for index, block in blocks for role, piece in block.items()}


def grid(target: Anatomy) -> tuple[int, int]:
    """Return rows and columns of the patches that have a position."""
    tokens = target.outside["pos"].size[0]
    found = target.traits.grid
    if found is not None and math.prod(found) <= tokens:
        return found
    return math.isqrt(tokens), math.isqrt(tokens)
