"""The computational graph of a target, from its anatomy: no forward pass, no tracing.

GHN-2 and GHN-3 (Knyazev et al., https://arxiv.org/abs/2110.13100, https://arxiv.org/abs/2303.04143)
trace the model's autograd graph; what that gives for a transformer is written down here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

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
        shape: shape of what it predicts, for the shape embedding: out, in, height, width.
    """

    op: str
    roles: tuple[str, ...] = ()
    block: int = -1
    shape: tuple[int, int, int, int] | None = None

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
        return self.roles == ("pos",) and self.shape is not None and self.shape[0] == 1


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and the edges between them.

    Args:
        nodes: the first is the input.
        edges: pairs of indices, each from a smaller one to a larger one.
        cutoff: longest path that connects two nodes.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    cutoff: int = CUTOFF

    @cached_property
    def distances(self) -> Tensor:
        """Shortest paths ``[n, n]``, int64: 1 an edge, 0 none or farther than the cutoff."""
        n = len(self.nodes)
        far = np.iinfo(np.int32).max // 2
        found = np.full((n, n), far, dtype=np.int32)
        after: list[list[int]] = [[] for _ in range(n)]
        for start, end in self.edges:
            after[start].append(end)
        for node in reversed(range(n)):
            for end in after[node]:
                np.minimum(found[node], found[end] + 1, out=found[node])
                found[node, end] = 1
        found[found > self.cutoff] = 0
        return torch.from_numpy(found.astype(np.int64))

    @cached_property
    def types(self) -> Tensor:
        """Ids of the node types ``[n]``, int64."""
        return torch.tensor([PRIMITIVES.index(node.op) for node in self.nodes])


def graph_of(
    target: Anatomy,
    *,
    softmax: bool = False,
    extra: Mapping[str, tuple[int, int]] | None = None,
) -> Graph:
    """Return the graph of a transformer.

    12 L + 8 nodes for L blocks of a plain ViT, or 13 L + 8 with the softmax nodes that torch 1
    showed to the published code and torch 2 hides.

    Args:
        target: anatomy of the model.
        softmax: whether attention has a node of its own.
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
    built = _Builder(target, softmax)
    built.check()
    built.build(extra or {})
    return Graph(tuple(built.nodes), tuple(built.edges))


class _Builder:
    def __init__(self, target: Anatomy, softmax: bool) -> None:
        self.target, self.softmax = target, softmax
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self.used: set[Key] = set()

    def check(self) -> None:
        """Raise if attention or MLP are missing, or something is beside the blocks."""
        target = self.target
        lacking = {"attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
        wrong = sorted({stack for stack, _ in target.extra_blocks})
        for block in target.blocks:
            wrong += [f"no {role}" for role in sorted(lacking - block.keys())]
        if wrong:
            raise ProjectionError(
                f"the model has layers outside the hypernetworks' vocabulary: "
                f"{', '.join(dict.fromkeys(wrong))}; use a plain ViT or GPT-2, or "
                "wi.project_from(ancestor, model)"
            )

    def build(self, extra: Mapping[str, tuple[int, int]]) -> None:
        """Add every node; raise if a parameter has none and no rule."""
        outside = self.target.outside
        last = self._add(Node("input"), ())
        if "embed.token.weight" in outside:
            joined = [self._param(last, outside, -1, "embed.token.weight", op="pos_enc")]
            start = last
        else:
            last = self._linear(last, outside, -1, "patch")
            joined, start = [last], None
        if "pos" in outside:
            joined.append(self._param(start, outside, -1, "pos", op="pos_enc"))
            last = self._add(Node("sum"), joined)
        else:
            last = joined[0]
        last = self._norm(last, outside, -1, "norm_pre")
        for index, block in enumerate(self.target.blocks):
            last = self._block(last, block, index)
        pooled = self.target.traits.pool == "avg"
        last = self._norm(last, outside, -1, "norm")
        last = self._add(Node("glob_avg"), (last,)) if pooled else last
        last = self._norm(last, outside, -1, "fc_norm")
        last = self._pool(last)
        for head in ("head", "head_dist"):
            self._linear(last, outside, -1, head)
        for role, (rows, columns) in extra.items():
            self._add(Node("conv", (role,), -1, (rows, columns, 1, 1)), (last,))
        self._complete()

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
        for layer in ("pool.qkv", "pool.proj"):
            last = self._linear(last, outside, -1, layer)
        at = self._norm(last, outside, -1, "pool.norm")
        for layer in ("pool.mlp.fc1", "pool.mlp.fc2"):
            at = self._linear(at, outside, -1, layer)
        return self._add(Node("sum"), (last, at))

    def _linear(self, last: int, pieces: Mapping[str, Piece], block: int, layer: str) -> int:
        """Add weight and bias of a layer; q, k and v are one, and so are a gated MLP's two."""
        fused = {
            "attn.qkv": ("attn.q", "attn.k", "attn.v"),
            "pool.qkv": ("pool.q", "pool.k", "pool.v"),
            "mlp.fc1": ("mlp.fc1", "mlp.up"),
        }
        for which, op in (("weight", "conv"), ("bias", "bias")):
            roles = [f"{name}.{which}" for name in fused.get(layer, (layer,))]
            last = self._param(last, pieces, block, *roles, op=op)
        return last

    def _norm(self, last: int, pieces: Mapping[str, Piece], block: int, norm: str) -> int:
        return self._param(last, pieces, block, f"{norm}.weight", f"{norm}.bias", op="ln")

    def _param(
        self, last: int | None, pieces: Mapping[str, Piece], block: int, *roles: str, op: str
    ) -> int:
        """Add the node of parameters, if the model has them; return the node that is last then."""
        found = [role for role in roles if role in pieces]
        if not found:
            assert last is not None
            return last
        self.used |= {(block, role) for role in found}
        sizes = [pieces[role].size for role in found]
        if op == "ln":
            shape = (sizes[0][0], 1, 1, 1)
        elif found == ["pos"] and "patch.weight" in pieces:
            shape = (1, sizes[0][-1], *grid(self.target))
        else:
            rows = sum(size[0] for size in sizes)
            columns, height, width = (*sizes[0][1:], 1, 1, 1)[:3]
            shape = (rows, columns, height, width)
        return self._add(Node(op, tuple(found), block, shape), () if last is None else (last,))

    def _add(self, node: Node, before: Iterable[int]) -> int:
        self.nodes.append(node)
        index = len(self.nodes) - 1
        self.edges += [(other, index) for other in sorted(before)]
        return index

    def _complete(self) -> None:
        every = keyed(self.target)
        left = [every[key] for key in every.keys() - self.used]
        left = [piece.spec.name for piece in left if not _ruled(piece)]
        if left:
            raise ProjectionError(
                f"the model has parameters outside the hypernetworks' vocabulary: "
                f"{', '.join(sorted(left)[:6])}; use a plain ViT or GPT-2, or "
                "wi.project_from(ancestor, model)"
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
    """Return rows and columns of the patches that have a position.

    Examples:
        >>> import timm, weightinit as wi
        >>> grid(wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=1)))
        (14, 14)
    """
    tokens = target.outside["pos"].size[0]
    found = target.traits.grid
    if found is not None and math.prod(found) <= tokens:
        return found
    side = math.isqrt(tokens)
    return side, side
