"""The hypernetworks: GHN-3, LoGAH, TAL and PITH are one encoder with different decoders."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy.roles import facts
from weightinit.errors import ProjectionError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.decoders import (
    ConvDecoder,
    Latents,
    LowRank,
    LowRankDecoder,
    VectorDecoder,
)
from weightinit.hypernet.encoder import Encoder
from weightinit.hypernet.graph import Graph, Key, Node
from weightinit.init.operators import repeat

__all__ = ["Decoded", "GraphHyperNetwork", "Pass", "WeightMap"]

Decoded = Tensor | LowRank


class WeightMap(UserDict[Key, Any]):
    """Canonical parts by block and role, multiplied out when read; ``data`` holds them as made."""

    def __getitem__(self, key: Key) -> Tensor:
        value = self.data[key]
        return value.dense() if isinstance(value, LowRank) else value


class Pass:
    """One run of a hypernetwork: embeddings ``[n, hid]`` of all nodes, and their latents."""

    def __init__(self, hypernet: GraphHyperNetwork, x: Tensor) -> None:
        self.hypernet, self.x = hypernet, x
        own, other = hypernet.decoder, getattr(hypernet, "decoderpq", None)
        self.latents = Latents(own, x) if isinstance(own, LowRankDecoder) else None
        self._others = Latents(other, x) if other is not None else self.latents

    def pair(
        self, members: list[int], left: tuple[int, int], right: tuple[int, int]
    ) -> tuple[LowRank, LowRank]:
        """Return PITH's P ``[N, *left]`` and Q ``[N, *right]`` of some nodes."""
        config, latents = self.hypernet.config, self._others
        assert latents is not None
        head = int(config.pathway == "shared")
        if config.separate:
            return latents.factors(members, *left, head), latents.factors(members, *right, head + 1)
        rows, columns = max(left[0], right[0]), max(left[1], right[1])
        a, b, _ = latents.factors(members, rows, columns, head)
        p, q = (LowRank(a[:, :m], b[:, :n]) for m, n in (left, right))
        return p, q


#: Changes decoded matrices of some nodes: given the run, their indices and ``[N, ...]`` values.
Fuse = Callable[[Pass, list[int], Decoded], Decoded]


class GraphHyperNetwork(Encoder):
    """A network that predicts the weights of another one.

    Its state dict has the names of the published checkpoints, without their aliases.

    Args:
        config: kind and sizes of the network.

    Examples:
        >>> with torch.device("meta"):
        ...     logah = GraphHyperNetwork(HyperConfig(rank=90))
        >>> sum(p.numel() for p in logah.parameters())
        21412794
    """

    def __init__(self, config: HyperConfig) -> None:
        super().__init__(config)
        self.config = config
        if config.kind == "ghn3":
            self.decoder = ConvDecoder(config)
            self.decoder_1d = VectorDecoder(config)
            self.bias_class = nn.Sequential(
                nn.ReLU(), nn.Linear(self.decoder_1d.size, config.num_classes)
            )
            small: tuple[Any, ...] = (
                self.decoder.conv[2],
                self.decoder.class_layer_predictor[1],
                self.decoder_1d.fc[2],
            )
            for last in small:
                nn.init.zeros_(last.bias)
                with torch.no_grad():
                    last.weight /= 5
            return
        shared = config.kind == "pith" and config.pathway == "shared"
        self.decoder = LowRankDecoder(
            config,
            expand=config.expansion != "none",
            heads=2 + config.separate if shared else 1,
        )
        # not used, and part of the published checkpoints
        self.decoder_1d = nn.Sequential(nn.Linear(1, 1))
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(1, 1))
        if config.kind == "pith":
            self.fusion_weight = nn.Parameter(torch.tensor(-1.5))
            if not shared:
                self.decoderpq = LowRankDecoder(
                    config, expand=config.expansion == "both", heads=1 + config.separate
                )
            if config.start == "rule":
                # of what is added to the rule's weights: from the original path, by P, and by Q
                self.gates = nn.Parameter(torch.full((3,), 0.02))

    def forward(
        self,
        graph: Graph,
        *,
        task: Tensor | None = None,
        fuse: Fuse | None = None,
        faithful: bool | None = None,
        std: float = 0.02,
    ) -> WeightMap:
        """Return every weight that the graph has a node for, fp32, differentiable.

        Args:
            graph: graph of the target.
            task: TAL's task embedding ``[task_dim]``.
            fuse: changes matrices before they are scaled.
            faithful: clip and tile as the published code does; None is how it was trained.
            std: standard deviation of a language model's matrices, by its own initialiser.

        Raises:
            ProjectionError: if the task does not fit, or the target is larger than can be decoded.
        """
        self._check_task(task)
        faithful = self.config.faithful if faithful is None else faithful
        clipped = faithful or self.config.kind == "ghn3"
        scaled = partial(_scaled, graph, std=None if self.config.language == "gpt" else std)
        if not clipped:
            self._check_sizes(graph)
        groups: dict[Any, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            if node.roles:
                flat = node.op in ("bias", "ln")
                key = (flat, node.shape, node.head, node.op if flat else node.roles)
                groups.setdefault(key, []).append(index)
        run, found = Pass(self, self.encode(graph, task)), {}
        # the largest first: their latents serve the others
        for (flat, *_), members in sorted(groups.items(), key=lambda item: -max(item[0][1])):
            node = graph.nodes[members[0]]
            if flat:
                values: Decoded = self._vectors(run, members, node, clipped)
            else:
                values = self._matrices(run, members, node, clipped)
                values = scaled(node, values if fuse is None else fuse(run, members, values))
            for place, index in enumerate(members):
                found |= _parts(graph.nodes[index], values, place)
        return WeightMap(found)

    def _check_task(self, task: Tensor | None) -> None:
        size = self.config.task_dim
        if task is None and size:
            raise ProjectionError(
                f"this hypernetwork needs a task: pass task=, an embedding of {size} numbers, or "
                "images of the task and ancestor="
            )
        if task is not None and (not size or tuple(task.shape) != (size,)):
            raise ProjectionError(
                f"the task embedding has shape {tuple(task.shape)}: "
                + (f"use one of ({size},)" if size else "this hypernetwork takes none")
            )

    def _check_sizes(self, graph: Graph) -> None:
        rows, columns, _ = self.config.max_shape
        for node in graph.nodes:
            if not node.roles or node.head or node.op == "pos_enc":
                continue
            if node.shape[0] > rows and node.shape[1] > columns:
                raise ProjectionError(
                    f"{node.roles[0]} of {node.shape[0]}x{node.shape[1]} is beyond what the "
                    f"hypernetwork was made for in both axes, {rows}x{columns}: use a smaller "
                    "target, or a hypernetwork with a larger max_shape"
                )

    def _vectors(self, run: Pass, members: list[int], node: Node, clipped: bool) -> Tensor:
        """Return weight and bias of norms ``[N, 2, n]``, or biases ``[N, 1, n]``."""
        size, rows = node.shape[0], (0, 1) if node.op == "ln" else (1,)
        if run.latents is None:
            values = self.decoder_1d(run.x[members])
            values = (self.bias_class(values) if node.head else values)[:, rows]
        else:
            entries = _entries(size, self.config, clipped)
            b = run.latents.factor(members, 1, 1)
            found = [
                run.latents.factor(members, 0, min(size, entries), first=row * entries) @ b.mT
                for row in rows
            ]
            values = torch.stack(found, 1)[..., 0]
        values = _tiled(values, (len(rows), size))
        # weights of norms lie in (0, 2), biases in (-1, 1)
        bounded = (
            torch.tanh(values[:, i] / 5) if row else 2 * torch.sigmoid(values[:, i] / 2)
            for i, row in enumerate(rows)
        )
        return torch.stack(list(bounded), 1)

    def _matrices(self, run: Pass, members: list[int], node: Node, clipped: bool) -> Decoded:
        """Return tensors ``[N, out, in, height, width]`` or matrices, clipped and unscaled."""
        out, into, height, width = node.shape
        # The published code clips no positions.
        if clipped and not (node.on_grid and run.latents is not None):
            out, into = min(out, self.config.max_shape[0]), min(into, self.config.max_shape[1])
        if run.latents is None:
            decoder, x = self.decoder, run.x[members]
            assert isinstance(decoder, ConvDecoder)
            if node.head:
                return decoder.classes(x, into)[..., None, None]
            return decoder(x, out, into, height, width)
        factors = run.latents.factors(members, out * height, into * width)
        if not node.spatial:
            return factors
        values = factors.dense().unflatten(2, (into, width)).unflatten(1, (out, height))
        return values.permute(0, 1, 3, 2, 4)


def _entries(size: int, config: HyperConfig, clipped: bool) -> int:
    """Return how many entries of a vector are decoded: published, rounded up to a few sizes.

    The second half of a decoded vector is the bias, so the rounding decides where it begins.
    """
    most = config.max_shape[0]
    if not clipped and size > most:
        return size
    size = min(size, most)
    if config.kind == "pith":
        return size
    size = 4 * size // 3 if size % 3 == 0 else size
    return most if size >= most / 2 else size


def _tiled(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return values ``[N, *shape, ...]``: repeated along an axis that is too short, or cut."""
    for dim, size in enumerate(shape, 1):
        values = repeat(values, dim, size)
    return values


def _scaled(graph: Graph, node: Node, values: Decoded, *, std: float | None) -> Decoded:
    """Return what was clipped at its full size, times sqrt(beta / fan-in), but for embeddings.

    Matrices of a language model as it is stored have the standard deviation ``std``; without one,
    what ends a branch is divided by sqrt(2 L).
    """
    rows, columns, height, width = node.shape
    beta = 1 if node.spatial and (columns == 1 or height < width) else 2
    scale = 1.0 if node.op == "pos_enc" else (beta / (columns * height * width)) ** 0.5
    if not isinstance(values, LowRank):
        return _tiled(values, (rows, columns)) * scale
    # What repeats rows of the product repeats those of a factor.
    whole, scales = LowRank(_tiled(values.a, (rows,)), _tiled(values.b, (columns,))), scale
    if graph.stored and std is not None:
        scales = std / (whole.std()[:, None, None] + 1e-7)
    elif graph.stored and facts(node.roles[0]).end:
        scales = scale / (2 * graph.depth) ** 0.5
    a, b = whole.a * scales, whole.b
    return LowRank(b, a) if node.turned else LowRank(a, b)


def _parts(node: Node, values: Decoded, place: int) -> dict[Key, Decoded]:
    """Return the canonical parts of a node, whose value is one of several."""
    parts: Sequence[Decoded] | Tensor
    if isinstance(values, LowRank):
        chunks = values.a[place].chunk(len(node.roles))
        parts = [LowRank(rows, values.b[place]) for rows in chunks]
    elif node.op == "ln":
        parts = values[place]
    elif node.on_grid:
        parts = [values[place, 0].flatten(1).T]
    else:
        value = values[place, 0] if node.op == "bias" else values[place]
        value = value[..., 0, 0] if value.dim() > 2 and not node.spatial else value
        parts = value.chunk(len(node.roles))
    # A norm without bias has one role, and two values.
    return {(node.block, role): part for role, part in zip(node.roles, parts, strict=False)}
