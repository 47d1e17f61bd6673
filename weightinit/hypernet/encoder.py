"""From a graph to an embedding of every node: Graphormer layers over shortest paths.

GHN-3 (Knyazev et al., ICML 2023, https://arxiv.org/abs/2303.04143); TAL adds FiLM (Xu et al.).
The names of modules are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.graph import Graph

__all__ = ["VOCABULARIES", "Encoder", "ShapeEncoder", "channel_bins"]

#: Rows of the tables: degrees up to 100, distances from the input up to 1000, edges up to 254.
DEGREES, DISTANCES, EDGES = 101, 1001, 257
#: Of GPT-2, and of Llama 2 and Llama 3 as well.
VOCABULARIES = {"none": set(), "gpt": {50257}, "llm": {32000, 50257, 128256}}


def channel_bins(classes: int, language: str) -> set[int]:
    """Return the published bins of rows and columns."""
    bins = {1, 3, classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}
    return bins | VOCABULARIES[language]


class ShapeEncoder(nn.Module):
    """Embed the shapes of what nodes predict, each of four axes in a quarter of the width."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        channels = channel_bins(config.num_classes, config.language)
        spatial = {*range(1, max(12, config.max_shape[2]), 2), 14, 16}
        # not buffers: they are no weights, and have values on the meta device too
        self.channels = torch.tensor(sorted(channels), device="cpu")
        self.spatial = torch.tensor(sorted(spatial), device="cpu")
        self.embed_spatial = nn.Embedding(len(spatial) + 1, config.hid // 4)
        self.embed_channel = nn.Embedding(len(channels) + 1, config.hid // 4)

    def forward(self, graph: Graph) -> Tensor:
        """Return embeddings ``[nodes, hid]``."""
        shapes = torch.tensor([node.shape or (-1,) * 4 for node in graph.nodes]).T
        parts = [
            table(_nearest(sizes, bins).to(table.weight.device))
            for bins, table, pair in (
                (self.channels, self.embed_channel, shapes[:2]),
                (self.spatial, self.embed_spatial, shapes[2:]),
            )
            for sizes in pair
        ]
        return torch.cat(parts, -1)


def _nearest(sizes: Tensor, bins: Tensor) -> Tensor:
    """Return the bin of every size ``[n]``; those without a shape have the row after the last."""
    # as published: 4 to 7 channels count as 8, and kernels of 2 as 3, unless they have a bin
    channels = len(bins) > 100
    known = torch.isin(sizes, bins)
    few = ~known & ((sizes > 3) & (sizes < 8) if channels else sizes == 2)
    sizes = torch.where(few, 8 if channels else 3, sizes)
    found = (sizes[:, None] - bins).abs().argmin(1)
    return torch.where(sizes < 0, len(bins), found)


class Attention(nn.Module):
    """Self-attention over nodes, with a bias from the paths between them."""

    def __init__(self, config: HyperConfig, first: bool) -> None:
        super().__init__()
        hid, self.heads = config.hid, config.heads
        self.to_qkv = nn.Linear(hid, 3 * hid, bias=False)
        self.to_out = nn.Sequential(nn.Linear(hid, hid))
        if first:
            self.edge_embed = nn.ModuleDict({"embed": nn.Embedding(EDGES, hid)})
            self.proj_e = nn.Sequential(
                nn.Linear(2 * hid, hid), nn.ReLU(), nn.Linear(hid, self.heads)
            )

    def bias(self, distances: Tensor) -> Tensor:
        """Return the bias ``[heads, n, n]`` of shortest paths ``[n, n]``."""
        hid = self.to_qkv.in_features
        table, first = self.edge_embed["embed"], self.proj_e[0]
        assert isinstance(table, nn.Embedding) and isinstance(first, nn.Linear)
        # Linear(concat(e_ij, e_ji)) is a sum of two: it is applied to 257 rows, not to n^2 pairs.
        ahead = functional.linear(table.weight, first.weight[:, :hid], first.bias)
        back = functional.linear(table.weight, first.weight[:, hid:])
        longest = int(distances.max())
        pairs = distances * (longest + 1) + distances.T
        kinds, which = pairs.unique(return_inverse=True)
        hidden = ahead[kinds // (longest + 1) + 2] + back[kinds % (longest + 1) + 2]
        values = self.proj_e[2](self.proj_e[1](hidden))
        return values[which].permute(2, 0, 1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return what is added to embeddings ``[n, hid]``."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
        return self.to_out((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))


class FiLM(nn.Module):
    """TAL's task conditioning of one layer: (1 + gamma) x + beta, identity at first."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.fc_gamma = nn.Linear(config.task_dim, config.hid)
        self.fc_beta = nn.Linear(config.task_dim, config.hid)
        for layer in (self.fc_gamma, self.fc_beta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """Return conditioned embeddings ``[n, hid]``; ``task`` is ``[task_dim]``."""
        return (1 + self.fc_gamma(task)) * x + self.fc_beta(task)


class FeedForward(nn.Module):
    """The MLP of a layer, under its published name."""

    def __init__(self, hid: int) -> None:
        super().__init__()
        # 2 is a dropout of rate 0
        self.net = nn.Sequential(
            nn.Linear(hid, 4 * hid), nn.GELU(), nn.Identity(), nn.Linear(4 * hid, hid)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to embeddings ``[n, hid]``."""
        return self.net(x)


class Layer(nn.Module):
    """One Graphormer layer; the first adds where a node is, and makes the bias of all of them."""

    def __init__(self, config: HyperConfig, first: bool) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(config.hid), nn.LayerNorm(config.hid)
        self.attn = Attention(config, first)
        self.ff = FeedForward(config.hid)
        if config.task_dim:
            self.TEN = FiLM(config)
        if first:
            self.centrality_embed_in = nn.Embedding(DEGREES, config.hid)
            self.centrality_embed_out = nn.Embedding(DEGREES, config.hid)
            self.input_dist_embed = nn.Embedding(DISTANCES, config.hid)

    def place(self, distances: Tensor) -> Tensor:
        """Return what tells where each node is ``[n, hid]``."""
        edges = distances == 1
        into = self.centrality_embed_in(edges.sum(0).clamp(max=DEGREES - 1))
        out = self.centrality_embed_out(edges.sum(1).clamp(max=DEGREES - 1))
        return into + out + self.input_dist_embed(distances[0].clamp(max=DISTANCES - 1))

    def forward(self, x: Tensor, bias: Tensor, task: Tensor | None) -> Tensor:
        """Return the embeddings after the layer, ``[n, hid]``."""
        normed = self.ln1(x)
        if task is not None:
            normed = self.TEN(normed, task)
        x = x + self.attn(normed, bias)
        return x + self.ff(self.ln2(x))


class Encoder(nn.Module):
    """A graph to the embeddings of its nodes: what all four hypernetworks share."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.primitives, config.hid)
        self.shape_enc = ShapeEncoder(config)
        self.gnn = nn.ModuleList(Layer(config, i == 0) for i in range(config.layers))
        self.ln = nn.LayerNorm(config.hid) if config.layernorm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)

    def encode(self, graph: Graph, task: Tensor | None = None) -> Tensor:
        """Return the embeddings of a graph's nodes ``[n, hid]``, for TAL of a task."""
        device, first = self.embed.weight.device, self.gnn[0]
        assert isinstance(first, Layer)
        distances = graph.distances.to(device)
        x = self.embed(graph.types.to(device)) + self.shape_enc(graph) + first.place(distances)
        bias = first.attn.bias(distances)
        task = None if task is None else task.to(x)
        for layer in self.gnn:
            x = layer(x, bias, task)
        return self.ln(x)
