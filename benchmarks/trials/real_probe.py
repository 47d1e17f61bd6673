"""What a target knows at once: linear regression and k-NN on its features, nothing trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trials.data import load
from trials.pretrained import Pretrained, Target
from trials.real_starts import STARTS, Given, started
from trials.real_suite import Options, Piece
from weightinit.training.images import ImageData, Split

__all__ = ["Probe", "pieces", "scores"]

SEEDS = (1,)
SIDE = 98
#: Training images of the probe, images to calibrate on, and images to score.
TRAIN, CALIBRATION, SCORED = 1000, 512, 2000
TARGETS = (
    "384x9", "384x6", "320x12", "320x9", "192x12", "192x6", "192x6p16@112", "192x6p7",
    "480x12", "384x16", "512x14",
)  # fmt: skip
#: Strengths of the ridge, in units of the number of images.
STRENGTHS = [10.0**power for power in range(-4, 3)]
NEIGHBOURS = 10


def pieces(options: Options) -> Iterator[Piece]:
    """Yield the pieces of the suite, the ancestor itself first."""
    for seed in options.seeds or SEEDS:
        if options.wants("ancestor"):
            yield Probe("ancestor", "", seed, options.part)
        for target in options.targets or TARGETS:
            for start in STARTS:
                if options.wants(start):
                    yield Probe(start, target, seed, options.part)


@dataclass(frozen=True)
class Probe(Piece):
    """One start of one target."""

    start: str
    target: str
    seed: int
    part: str

    @property
    def title(self) -> str:
        """What tells the piece from all others of its suite."""
        return f"{self.start}-{self.target}-{self.part}-{self.seed}"

    def row(self, options: Options) -> dict[str, Any]:
        """Start the target, and score its features."""
        ancestor, data = Pretrained(options.ancestor), _data(options)
        target = Target.parse(self.target) if self.target else None
        side = (target.side if target else 0) or _side(options)
        row: dict[str, Any] = {"name": self.start, "target": self.target or "ancestor"}
        row |= {"seed": self.seed, "part": self.part, "ancestor": ancestor.name, "data": data.name}
        if target is None:
            model = ancestor.model(ancestor.side(side)).to(options.device)
        else:
            model = ancestor.target(target, side, seed=self.seed).to(options.device)
            given = _given(options, ancestor.side(side), self.seed)
            row |= started(self.start, model, given)
            if "refused" in row:
                return row
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        train, _, scored = _parts(options, self.seed)
        inputs = [features(model.eval(), data, split, side) for split in (train, scored)]
        found = scores(inputs[0], train.labels, inputs[1], scored.labels)
        return row | found | {"images": len(train), "scored": len(scored)}


def _side(options: Options) -> int:
    return 28 if options.smoke else SIDE


@lru_cache(maxsize=1)
def _data(options: Options) -> ImageData:
    """Return the data with the ancestor's normalisation."""
    data = load(options.data or "cifar10", cache_dir=options.cache)
    return data.normalised(*Pretrained(options.ancestor).normalisation)


@lru_cache(maxsize=3)
def _parts(options: Options, seed: int) -> tuple[Split, Split, Split]:
    """Return images to regress on, to calibrate on and to score; the last are those of all seeds.

    Which of the first two are drawn is by the seed.
    """
    data, few = _data(options), 64 if options.smoke else None
    train = few or TRAIN
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train), generator=generator)
    own: Split = getattr(data, options.part)
    same = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))
    return (
        data.train.rows(order[:train]),
        data.train.rows(order[train : train + CALIBRATION]),
        own.rows(same[: few or SCORED]),
    )


def _batches(
    data: ImageData, split: Split, side: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.arange(len(split)).split(64):
        batch = split.rows(rows).in_shape(side, 3)
        assert isinstance(batch.images, Tensor)
        yield data.normalise(batch.images, device), batch.labels


@lru_cache(maxsize=2)
def _given(options: Options, side: int, seed: int) -> Given:
    data, split = _data(options), _parts(options, seed)[1]
    images, labels = zip(*_batches(data, split, side, options.device), strict=True)
    ancestor = Pretrained(options.ancestor).model(side).to(options.device)
    return Given(ancestor, images, labels, data.classes, seed)


@torch.inference_mode()
def features(model: Any, data: ImageData, split: Split, side: int) -> Tensor:
    """Return the pooled features ``[N, d]``, the class token where there is one."""
    device = next(model.parameters()).device
    found = [
        model.forward_head(model.forward_features(images), pre_logits=True).cpu()
        for images, _ in _batches(data, split, side, device)
    ]
    return torch.cat(found)


def scores(inputs: Tensor, labels: Tensor, others: Tensor, truth: Tensor) -> dict[str, float]:
    """Return accuracies in percent on ``others``: linear regression's, and that of neighbours.

    The strength of the ridge is the one with the best accuracy on training images left out one at
    a time, which has a closed form.
    """
    x, y = inputs.double(), functional.one_hot(labels).double()
    mean, scale, middle = x.mean(0), x.std(0).clamp_min(1e-6), y.mean(0)
    u, s, v = torch.linalg.svd((x - mean) / scale, full_matrices=False)
    projected = u.T @ (y - middle)
    best: tuple[float, Tensor] | None = None
    for strength in STRENGTHS:
        shrunk = s.square() / (s.square() + strength * len(x))
        fitted = u @ (shrunk[:, None] * projected) + middle
        leverage = (u.square() @ shrunk + 1 / len(x)).clamp_max(1 - 1e-6)
        left_out = y - (y - fitted) / (1 - leverage)[:, None]
        accuracy = (left_out.argmax(1) == labels).double().mean().item()
        if best is None or accuracy > best[0]:
            best = accuracy, v.T @ ((shrunk / s.clamp_min(1e-9))[:, None] * projected)
    assert best is not None
    z = (others.double() - mean) / scale
    linear = (z @ best[1]).add(middle).argmax(1)
    close = functional.normalize(others.double()) @ functional.normalize(x).T
    near = close.topk(min(NEIGHBOURS, len(x)))
    votes = torch.zeros(len(others), y.shape[1], dtype=y.dtype)
    votes.scatter_add_(1, labels[near.indices], near.values)
    return {
        "linear": round(100 * (linear == truth).double().mean().item(), 2),
        "knn": round(100 * (votes.argmax(1) == truth).double().mean().item(), 2),
    }
