"""The published hypernetworks' way: trace a forward pass, decode every latent, tile, scale.

GHN-3, LoGAH, TAL and PITH as their code does it for torchvision's ViT, written anew and only as
fast; the benchmark measures against it and tests compare with it. Weights are those of a
:class:`weightinit.hypernet.network.GraphHyperNetwork`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.hypernet.graph import PRIMITIVES
from weightinit.hypernet.network import GraphHyperNetwork

#: Operations of autograd that have a node.
KEPT = {"Softmax": "msa", "Mean": "glob_avg", "Add": "sum", "Cat": "concat"}
#: Operations that only change how a parameter is laid out.
LAYOUT = {"T", "Transpose", "Permute", "View", "Unsafeview", "Expand", "Unsqueeze", "Alias"}


@dataclass
class Traced:
    """Nodes of a traced model: names (of a parameter, or empty), primitives, shapes, distances."""

    names: list[str]
    ops: list[str]
    shapes: list[tuple[int, ...] | None]
    distances: Tensor


def trace(model: nn.Module, size: int = 224, cutoff: int = 50) -> Traced:
    """Run a batch of two images forward, walk its autograd graph, and search all shortest paths."""
    with torch.enable_grad():
        out = model(torch.rand(2, 3, size, size))
    walk = _Walk(model)
    walk.sources(out.grad_fn)
    for node in range(1, len(walk.ops)):
        if walk.ops[node] == "conv" and not walk.before[node]:
            walk.before[node] = {0}
    return Traced(walk.names, walk.ops, walk.shapes, walk.distances(cutoff))


class _Walk:
    def __init__(self, model: nn.Module) -> None:
        self.params = {id(p): name for name, p in model.named_parameters()}
        self.norms = {
            name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)
        }
        self.names, self.ops = [""], ["input"]
        self.shapes: list[tuple[int, ...] | None] = [None]
        self.before: list[set[int]] = [set()]
        self.seen: dict[Any, tuple[set[int], list[Tensor]]] = {}

    def sources(self, last: Any) -> set[int]:
        """Return the nodes that make the output of an operation; depth first, without recursion."""
        stack = [last]
        while stack:
            fn = stack[-1]
            below = [child for child, _ in fn.next_functions if child is not None]
            todo = [child for child in below if child not in self.seen]
            if todo:
                stack += todo[-1:]
                continue
            stack.pop()
            if fn not in self.seen:
                self.seen[fn] = self._visit(fn, [self.seen[child] for child in below])
        return self.seen[last][0]

    def _visit(self, fn: Any, below: list[Any]) -> tuple[set[int], list[Tensor]]:
        kind = type(fn).__name__.rstrip("0123456789").removesuffix("Backward")
        if kind == "AccumulateGrad":
            return set(), [fn.variable]
        before = set().union(*(nodes for nodes, _ in below))
        held = [p for _, params in below for p in params]
        if held and not before and kind in LAYOUT:
            return set(), held
        made = {self.params[id(p)]: p for p in held}
        made.pop("class_token", None)
        if any("pos_embedding" in name for name in made):
            (name,) = made
            pos = self._node(name, "pos_enc", made[name], set())
            return {self._node("", "sum", None, {*before, pos})}, []
        for name in sorted(made, key=lambda name: "bias" in name):
            norm = name.rpartition(".")[0] in self.norms
            if norm and name.endswith("bias"):
                continue
            op = "ln" if norm else "bias" if "bias" in name else "conv"
            before = {self._node(name, op, made[name], before)}
        if not made and kind in KEPT and (kind not in ("Add", "Cat") or len(before) > 1):
            before = {self._node("", KEPT[kind], None, before)}
        return before, []

    def _node(self, name: str, op: str, value: Tensor | None, before: set[int]) -> int:
        self.names.append(name)
        self.ops.append(op)
        self.before.append(set(before))
        shape = None if value is None else tuple(value.shape)
        if op == "pos_enc" and value is not None:
            side = math.isqrt(value.shape[1])
            shape = (1, value.shape[2], side, side)
        self.shapes.append(shape)
        return len(self.ops) - 1

    def distances(self, cutoff: int) -> Tensor:
        """Search breadth first from every node."""
        n = len(self.ops)
        after: list[list[int]] = [[] for _ in range(n)]
        for node, before in enumerate(self.before):
            for other in before:
                after[other].append(node)
        found = torch.zeros(n, n, dtype=torch.long)
        for start in range(n):
            level, reached, length = [start], {start}, 0
            while level and length < cutoff:
                length += 1
                level = [b for a in level for b in after[a] if b not in reached]
                level = list(dict.fromkeys(level))
                reached.update(level)
                for node in level:
                    found[start, node] = length
        return found


def latents(decoder: Any, x: Tensor, head: int = 0) -> tuple[Tensor, Tensor]:
    """Return the whole factors A and B ``[N, ck, r]``: all 2 r latents, read as ``[2 ck, r]``."""
    hidden = decoder.mlp.fc(x).view(len(x), 2 * decoder.rank, decoder.rank)
    *steps, last = decoder.layers(head)
    for step in steps:
        hidden = step(functional.relu(hidden))
    y = last(functional.relu(hidden))
    y = y.view(len(x), 2 * decoder.max_ck, decoder.rank)
    return y[:, : decoder.max_ck], y[:, decoder.max_ck :]


def low_rank(decoder: Any, x: Tensor, shape: tuple[int, ...], head: int = 0) -> Tensor:
    """Decode tensors of a shape by the low-rank decoder; one axis is a vector."""
    a, b = latents(decoder, x, head)
    if len(shape) == 1:
        return torch.bmm(a[:, : shape[0]], b[:, :1].transpose(1, 2))[..., 0]
    out, into, high, wide = (*shape, 1, 1)[:4]
    w = torch.bmm(a[:, : out * high], b[:, : into * wide].transpose(1, 2))
    w = w.reshape(len(x), out, high, into, wide).permute(0, 1, 3, 2, 4)
    return w if len(shape) == 4 else w[..., 0, 0]


def convolved(decoder: Any, x: Tensor, shape: tuple[int, ...], classes: bool = False) -> Tensor:
    """Decode tensors of a shape by GHN-3's decoder: everything is computed, then cut."""
    side, (high, wide) = decoder.side, (shape[2:] if len(shape) == 4 else (1, 1))
    y = decoder.fc(x).view(len(x), -1, side, side)
    half = side // 2
    y = y[:, :, max(0, half - high // 2) : half + math.ceil(high / 2)]
    y = y[:, :, :, max(0, half - wide // 2) : half + math.ceil(wide / 2)]
    y = decoder.conv(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y = y.reshape(len(x), decoder.rows, decoder.columns, *y.shape[2:])
    if classes:
        y = decoder.class_layer_predictor(y[..., 0, 0].transpose(1, 2)).transpose(1, 2)
        return y[:, :, : shape[1]]
    if min(high, wide) > side:
        (one,) = y
        y = functional.interpolate(one, (high, wide), mode="bilinear")[None]
    return y[:, : shape[0], : shape[1]]


def keyed(shape: tuple[int, ...], last: bool, net: GraphHyperNetwork) -> tuple[int, ...]:
    """Return the key of a group: sizes clipped and rounded."""
    most = net.config.max_shape

    def least(axis: int) -> int:
        n = min(shape[axis], most[axis])
        if net.config.kind == "pith":
            return n
        n = 4 * n // 3 if n % 3 == 0 else n
        return most[axis] if n >= most[axis] / 2 else n

    if len(shape) == 1:
        return (least(0), -1 if last else 0)
    if len(shape) == 2:
        return (least(0), least(1)) if last else (least(0), least(1), 1, 1)
    if shape[0] == 1:
        return shape
    return (least(0), least(1), *shape[2:])


def tile(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat along rows, then columns, and cut."""
    for axis in range(min(2, len(shape))):
        times = [1] * value.dim()
        times[axis] = math.ceil(shape[axis] / value.shape[axis])
        value = value.repeat(*times).narrow(axis, 0, shape[axis])
    return value


def scaled(value: Tensor, name: str, *, weight: bool) -> Tensor:
    """Normalise one parameter."""
    if value.dim() == 1:
        return 2 * torch.sigmoid(value / 2) if weight else torch.tanh(value / 5)
    if "pos_embedding" in name:
        return value
    beta = 1 if value.dim() > 2 and (value.shape[1] == 1 or value.shape[2] < value.shape[3]) else 2
    return value * (beta / value[0].numel()) ** 0.5


def embeddings(net: GraphHyperNetwork, graph: Traced, task: Tensor | None = None) -> Tensor:
    """Encode the nodes, the bias of attention from every pair of nodes on its own."""
    first: Any = net.gnn[0]
    device, hid = net.embed.weight.device, net.config.hid
    a = graph.distances.to(device)
    x = net.embed(torch.tensor([PRIMITIVES.index(op) for op in graph.ops], device=device))
    shapes = [(*(s or (-1,) * 4), 1, 1, 1)[:4] for s in graph.shapes]
    parts: list[Tensor] = []
    for axis in range(4):
        bins = net.shape_enc.channels if axis < 2 else net.shape_enc.spatial
        table = net.shape_enc.embed_channel if axis < 2 else net.shape_enc.embed_spatial
        which = [_bin(shape[axis], bins.tolist()) for shape in shapes]
        parts.append(table(torch.tensor(which, device=device)))
    x = x + torch.cat(parts, 1)
    edge = a == 1
    x = x + first.centrality_embed_in(edge.sum(0).clamp(max=100))
    x = x + first.centrality_embed_out(edge.sum(1).clamp(max=100))
    x = x + first.input_dist_embed(a[0].clamp(max=1000))
    table = first.attn.edge_embed["embed"]
    bias = first.attn.proj_e(torch.cat([table(a + 2), table(a.T + 2)], -1)).permute(2, 0, 1)
    layers: Any = net.gnn
    for layer in layers:
        normed = layer.ln1(x)
        normed = normed if task is None else layer.TEN(normed, task)
        q, k, v = layer.attn.to_qkv(normed).view(len(x), 3, net.config.heads, -1).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q, k) * (hid // net.config.heads) ** -0.5 + bias
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(x), hid)
        x = x + layer.attn.to_out(mixed)
        x = x + layer.ff(layer.ln2(x))
    return net.ln(x)


def _bin(size: int, bins: list[int]) -> int:
    """Return the row of the shape embedding."""
    if size < 0:
        return len(bins)
    if size in bins:
        return bins.index(size)
    if len(bins) > 100 and 4 <= size <= 7:
        return bins.index(8)
    if len(bins) < 100 and size == 2:
        return bins.index(3)
    return min(range(len(bins)), key=lambda i: abs(bins[i] - size))


def predict(
    net: GraphHyperNetwork,
    graph: Traced,
    params: Mapping[str, Tensor],
    *,
    task: Tensor | None = None,
    ancestor: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return what the published code predicts: every parameter that has a node.

    Positions are without the row of the class token, which is random there.
    """
    x = embeddings(net, graph, task)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, name in enumerate(graph.names):
        if name:
            shape = graph.shapes[index] or ()
            key = keyed(shape, name.startswith("heads."), net)
            groups.setdefault(key, []).append(index)
    found: dict[str, Tensor] = {}
    for key, members in groups.items():
        values = _decode(net, key, x[members], [graph.names[i] for i in members], ancestor)
        for index, value in zip(members, values, strict=True):
            _write(found, graph.names[index], value, graph.shapes[index] or (), params)
    return found


def _decode(
    net: GraphHyperNetwork,
    key: tuple[int, ...],
    x: Tensor,
    names: list[str],
    ancestor: Mapping[str, Tensor] | None,
) -> Tensor:
    conv = net.config.kind == "ghn3"
    if len(key) == 2 and key[1] <= 0:
        if not conv:
            return low_rank(net.decoder, x, (2 * key[0],)).view(len(x), 2, key[0])
        values = net.decoder_1d(x)
        return net.bias_class(values) if key[1] < 0 else values
    decode: Callable[..., Tensor] = convolved if conv else low_rank
    if len(key) == 2:
        return decode(net.decoder, x, key, True) if conv else decode(net.decoder, x, key)
    values = decode(net.decoder, x, key)
    return values if ancestor is None else _inherit(net, key, x, names, values, ancestor)


def _inherit(
    net: GraphHyperNetwork,
    key: tuple[int, ...],
    x: Tensor,
    names: list[str],
    values: Tensor,
    ancestor: Mapping[str, Tensor],
) -> Tensor:
    stored = []
    for name in names:
        value = ancestor[name]
        if value.dim() == 3:
            value = value[:, : key[2] * key[3]].transpose(1, 2)
            value = value.reshape(1, -1, key[2], key[3])
        stored.append(value if value.dim() == 4 else value[..., None, None])
    whole = torch.stack(stored)
    shared = net.config.pathway == "shared"
    decoder = net.decoder if shared else net.decoderpq
    head = int(shared)
    p = low_rank(decoder, x, (key[0], whole.shape[1]), head)
    q = low_rank(decoder, x, (whole.shape[2], key[1]), head + net.config.separate)
    a = torch.sigmoid(net.fusion_weight)
    return (1 - a) * values + a * torch.einsum("noa,nabkl,nbi->noikl", p, whole, q)


def _write(
    found: dict[str, Tensor],
    name: str,
    value: Tensor,
    shape: tuple[int, ...],
    params: Mapping[str, Tensor],
) -> None:
    if len(shape) == 1:
        weight, bias = (tile(row, shape) for row in value)
        if name.endswith("bias"):
            found[name] = scaled(bias, name, weight=False)
            return
        found[name] = scaled(weight, name, weight=True)
        other = name.removesuffix("weight") + "bias"
        if other in params:
            found[other] = scaled(bias, other, weight=False)
        return
    value = value[..., 0, 0] if value.dim() == 4 and len(shape) == 2 else value
    value = tile(value, shape)
    if "pos_embedding" in name:
        found[name] = value.flatten(2).transpose(1, 2)
    else:
        found[name] = scaled(value, name, weight=True)
