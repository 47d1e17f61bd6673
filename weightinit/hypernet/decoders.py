"""From node embeddings to weights: the convolutional decoder of GHN-3, the low-rank one of LoGAH.

Both compute only the part of their output that is asked for: of the low-rank decoder's 2 r latent
rows a tensor needs one or a few.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import ProjectionError
from weightinit.hypernet.config import HyperConfig

__all__ = ["ConvDecoder", "Latents", "LowRank", "LowRankDecoder", "VectorDecoder"]


class LowRank(NamedTuple):
    """Matrices A B^T ``[..., rows, columns]``, not multiplied out; of one matrix plus a base."""

    a: Tensor
    b: Tensor
    base: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the product, differentiable."""
        if self.base is None:
            return self.a @ self.b.mT
        return torch.addmm(self.base, self.a, self.b.mT)

    def std(self) -> Tensor:
        """Return the standard deviation of each product ``[...]``, which is not multiplied out."""
        exact = torch.float32 if self.a.device.type == "mps" else torch.float64
        a, b = self.a.to(exact), self.b.to(exact)
        count = a.shape[-2] * b.shape[-2]
        total = (a.sum(-2) * b.sum(-2)).sum(-1)
        squares = ((a.mT @ a) * (b.mT @ b)).sum((-2, -1))
        return ((squares - total.square() / count).relu() / (count - 1)).sqrt().to(self.a)

    def write(self, out: Tensor) -> None:
        """Multiply out into a tensor, without gradients and without another copy of it."""
        if out.dtype == self.a.dtype and out.device == self.a.device and self.base is None:
            torch.mm(self.a, self.b.mT, out=out)
        else:
            out.copy_(self.dense())


class _MLP(nn.Module):
    """A stack of linear layers with ReLU between them, under its published name."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
        self.fc = nn.Sequential(*layers[:-1])


class LowRankDecoder(nn.Module):
    """LoGAH's decoder: factors A and B of every tensor, W = A B^T (Zhou et al., arXiv 2405.16287).

    The published code computes latents Y ``[2 r, ck]`` and reads them as ``[2 ck, r]``: entry (i,
    j) of A is Y's entry of flat index i r + j, and B begins at latent row r. So few rows and
    columns need few latents, and only those are computed.

    PITH's latents may ``expand`` progressively, r to 2 r to 4 r, and its shared pathway decodes
    several ``heads``, pairs of factors, from one MLP.
    """

    def __init__(self, config: HyperConfig, *, expand: bool = False, heads: int = 1) -> None:
        super().__init__()
        hid, rank = config.hid, config.rank
        self.rank, self.max_ck = rank, config.max_ck
        self.mlp = _MLP(hid, 4 * hid, 8 * hid, 2 * rank * rank)
        marks = ["" if head == 0 else f"_{head}" for head in range(heads)]
        if config.dead_layer:
            for mark in marks:
                self.add_module(f"l1{mark}", nn.Linear(rank, rank))
        sizes = (rank, 2 * rank, 4 * rank, self.max_ck) if expand else (rank, self.max_ck)
        steps = ("_step1", "_step2", "_step3") if expand else ("",)
        self.names = [[f"l2{mark}{step}" for step in steps] for mark in marks]
        for names in self.names:
            for name, pair in zip(names, itertools.pairwise(sizes), strict=True):
                self.add_module(name, nn.Linear(*pair))

    def layers(self, head: int = 0) -> list[Any]:
        """Return the linear layers after the MLP: those that widen latents, and the last."""
        return [self.get_submodule(name) for name in self.names[head]]

    def hidden(self, y: Tensor, which: slice, count: int) -> Tensor:
        """Return the first latents of A (0) or B (1), ``[N, factors, count, r]``, not yet widened.

        ``y`` ``[N, 8 hid]`` is what the last layer of the MLP is given.
        """
        layer, parts = self.mlp.fc[-1], (2, self.rank, self.rank)
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.unflatten(0, parts)[which, :count].flatten(0, 2)
        bias = layer.bias.unflatten(0, parts)[which, :count].flatten()
        return functional.linear(y, weight, bias).relu().unflatten(-1, (-1, count, self.rank))

    def entries(self, y: Tensor, begin: int, end: int, head: int) -> Tensor:
        """Return entries of a factor, read along latents ``[N, c, r]``: ``[N, end - begin]``."""
        *steps, last = self.layers(head)
        for step in steps:
            y = step(y).relu()
        found = []
        while begin < end:
            latent, column = divmod(begin, self.max_ck)
            # whole latents together, the rest of one on its own
            whole = 1 if column else max(1, (end - begin) // self.max_ck)
            stop = min(end, (latent + whole) * self.max_ck)
            weight, bias = last.weight, last.bias
            if column or stop - begin < self.max_ck:
                some = slice(column, column + stop - begin)
                weight, bias = weight[some], bias[some]
            part = y[:, latent : latent + whole]
            found.append(functional.linear(part, weight, bias).flatten(1))
            begin = stop
        return found[0] if len(found) == 1 else torch.cat(found, 1)


class Latents:
    """The latents of all nodes of one pass; decoded are only those that somebody asks for."""

    def __init__(self, decoder: LowRankDecoder, x: Tensor) -> None:
        self.decoder = decoder
        self._y = decoder.mlp.fc[:-1](x)
        self._hidden: Tensor | None = None

    def factor(
        self, members: list[int], which: int, count: int, *, first: int = 0, head: int = 0
    ) -> Tensor:
        """Return rows of A (``which`` 0) or B (1) of some nodes, ``[N, count, r]``."""
        decoder = self.decoder
        rank, most = decoder.rank, decoder.max_ck
        if first + count > most:
            raise ProjectionError(
                f"a tensor needs {first + count} {('rows', 'columns')[which]}, and the decoder has "
                f"{most}: use a hypernetwork with a larger max_ck, or a smaller target"
            )
        begin, end = first * rank, (first + count) * rank
        latents = -(-end // most)
        if not self._y.requires_grad:
            y = decoder.hidden(self._y[members], slice(which, which + 1), latents)[:, 0]
        else:
            # of all nodes at once: a slice of a weight costs a gradient of the whole weight
            if self._hidden is None or self._hidden.shape[2] < latents:
                self._hidden = decoder.hidden(self._y, slice(2), latents)
            y = self._hidden[members, which]
        return decoder.entries(y, begin, end, head).unflatten(-1, (count, rank))

    def factors(self, members: list[int], rows: int, columns: int, head: int = 0) -> LowRank:
        """Return both factors of some nodes, ``[N, rows, r]`` and ``[N, columns, r]``."""
        a = self.factor(members, 0, rows, head=head)
        return LowRank(a, self.factor(members, 1, columns, head=head))


class ConvDecoder(nn.Module):
    """GHN-3's decoder of tensors of up to ``max_shape``, and of the classifier's weight."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        hid = config.hid
        self.rows, self.columns, self.side = config.max_shape
        self.fc = nn.Sequential(nn.Linear(hid, 4 * hid * self.side**2), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Linear(4 * hid, 8 * hid), nn.ReLU(), nn.Linear(8 * hid, self.rows * self.columns)
        )
        self.class_layer_predictor = nn.Sequential(
            nn.ReLU(), nn.Linear(self.rows, config.num_classes)
        )

    def forward(self, x: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
        """Return tensors ``[N, rows, columns, height, width]`` of embeddings ``[N, hid]``.

        A kernel larger than the decoder's is interpolated.
        """
        side, first = self.side, self.fc[0]
        assert isinstance(first, nn.Linear)
        cut = []
        for size in (height, width):
            kept = min(size, side)
            start = max(0, side // 2 - kept // 2)
            cut.append(slice(start, side // 2 + -(-kept // 2)))
        weight = first.weight.unflatten(0, (-1, side, side))[:, cut[0], cut[1]]
        bias = first.bias.unflatten(0, (-1, side, side))[:, cut[0], cut[1]]
        hidden = torch.einsum("nh,fpqh->npqf", x, weight) + bias.movedim(0, -1)
        last = self.conv[2]
        assert isinstance(last, nn.Linear)
        grid = (self.rows, self.columns)
        weight = last.weight.unflatten(0, grid)[:rows, :columns].flatten(0, 1)
        bias = last.bias.unflatten(0, grid)[:rows, :columns].flatten()
        y = functional.linear(self.conv[1](self.conv[0](hidden.relu())), weight, bias)
        y = y.movedim(-1, 1)
        if y.shape[2:] != (height, width):
            y = functional.interpolate(y, (height, width), mode="bilinear")
        return y.unflatten(1, (rows, columns))

    def classes(self, x: Tensor, columns: int) -> Tensor:
        """Return the classifier's weight ``[N, num_classes, columns]``."""
        whole = self(x, self.rows, columns, 1, 1)[..., 0, 0]
        return self.class_layer_predictor(whole.mT).mT


class VectorDecoder(nn.Module):
    """GHN-3's decoder of vectors: row 0 is a weight, row 1 a bias."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        hid, self.size = config.hid, max(config.max_shape[:2])
        self.fc = nn.Sequential(
            nn.Linear(hid, 2 * hid), nn.ReLU(), nn.Linear(2 * hid, 2 * self.size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, 2, size]`` of embeddings ``[N, hid]``."""
        return self.fc(x).unflatten(-1, (2, self.size))
