"""What a target is worth after a short training, at the best of four learning rates."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from domains.domain import Domain, learn
from torch import Tensor, nn

from trials.data import load
from trials.pretrained import Pretrained, Target
from trials.real_starts import Given, started
from trials.real_suite import Options, Piece
from trials.run import accuracy
from weightinit.training.images import ImageData

__all__ = ["Training", "pieces"]

SEEDS = (1, 2, 3)
SIDE, STEPS, BATCH, CALIBRATION = 112, 150, 32, 256
RATES = (2e-5, 1e-4, 3e-4, 1e-3)
PACKS = ("clothing_128", "gtsrb", "omniglot_small")
TARGET, MISMATCHED = "192x6", "192x6p16"
#: Every pack has these; the others are worth their time where the images are photos.
MAIN = ("random", "shipped templates", "default without data", "default with data")
MORE = ("random, layer scales 1", "Weight Selection", "subcloning")


def pieces(options: Options) -> Iterator[Piece]:
    """Yield the pieces of the suite."""
    seeds = options.seeds or SEEDS
    if options.data or options.targets:
        cases = [(options.data or PACKS[0], target) for target in options.targets or (TARGET,)]
    else:
        cases = [*((pack, TARGET) for pack in PACKS), (PACKS[0], MISMATCHED)]
    wanted = [(start, case) for case in cases for start in options.only or MAIN]
    if not options.only:
        wanted += [(start, cases[0]) for start in MORE]
    for start, (pack, target) in wanted:
        yield from (Training(start, target, pack, seed, seeds[0]) for seed in seeds)


@dataclass(frozen=True)
class Training(Piece):
    """One start of one target, trained on one pack.

    The first seed is trained at every rate, and validation images pick one; the others at that one.
    """

    start: str
    target: str
    pack: str
    seed: int
    first: int

    @property
    def stage(self) -> int:
        """The first seed comes first, because it picks the rate."""
        return int(self.seed != self.first)

    @property
    def title(self) -> str:
        """What tells the piece from all others of its suite."""
        return f"{self.start}-{self.target}-{self.pack}-{self.seed}"

    def row(self, options: Options) -> dict[str, Any]:
        """Start the target, train it, and score it on test images once."""
        ancestor, target = Pretrained(options.ancestor), Target.parse(self.target)
        side = target.side or (28 if options.smoke else SIDE)
        steps = 2 if options.smoke else STEPS
        data = _data(options, self.pack, side)
        row: dict[str, Any] = {"name": self.start, "target": self.target, "pack": self.pack}
        row |= {"seed": self.seed, "ancestor": ancestor.name, "steps": steps, "batch": BATCH}
        model = ancestor.target(target, side, classes=data.classes, seed=self.seed)
        model = model.to(options.device)
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        given = _given(options, self.pack, side, self.seed)
        row |= started(self.start, model, given)
        if "refused" in row:
            return row
        began, best = time.process_time(), None
        rates = self._rates(options)
        found: list[float] = []
        for lr in rates:
            trained = learn_pack(copy.deepcopy(model), data, steps=steps, lr=lr, seed=self.seed)
            found.append(round(accuracy(trained, data.val, data)[0], 2))
            if best is None or found[-1] > max(found[:-1]):
                best = trained
        assert best is not None
        row["seconds"] = round((time.process_time() - began) / len(rates), 1)
        row |= {"rates": list(rates), "val": found, "lr": rates[found.index(max(found))]}
        test, balanced = accuracy(best, data.test, data)
        counts = {"validated": len(data.val), "tested": len(data.test)}
        return row | counts | {"accuracy": round(test, 2), "balanced": round(balanced, 2)}

    def _rates(self, options: Options) -> tuple[float, ...]:
        if self.seed == self.first:
            return RATES
        first = Training(self.start, self.target, self.pack, self.first, self.first)
        row = json.loads(first.file(options).read_text())
        return (row["lr"],) if "lr" in row else RATES


class _Pack(Domain):
    """What :func:`domains.domain.learn` asks of a domain."""

    recorded = False  # a batch comes from the processor

    def __init__(self, device: torch.device) -> None:
        self.device = device


def learn_pack(model: nn.Module, data: ImageData, *, steps: int, lr: float, seed: int) -> nn.Module:
    """Train a model in place on random crops, and mirror images where they keep their meaning."""
    size = min(BATCH, len(data.train))
    device = next(model.parameters()).device
    stream = data.batches(range(steps), batch_size=size, augment="light", seed=seed)

    def loss(module: nn.Module, generator: torch.Generator) -> Tensor:
        images, targets = next(stream)
        return data.loss(module(images.to(device)), targets.to(device))

    return learn(model, loss, _Pack(device), steps=steps, lr=lr, seed=seed)


@lru_cache(maxsize=1)
def _data(options: Options, pack: str, side: int) -> ImageData:
    """Return a pack at a size, with the ancestor's normalisation."""
    data = load(pack, cache_dir=options.cache).in_shape(side, 3)
    return data.normalised(*Pretrained(options.ancestor).normalisation)


@lru_cache(maxsize=1)
def _given(options: Options, pack: str, side: int, seed: int) -> Given:
    """Return training images, without augmentation, at a size that the ancestor takes."""
    data, ancestor = _data(options, pack, side), Pretrained(options.ancestor)
    side = ancestor.side(side)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    parts = [data.train.rows(rows).in_shape(side, 3) for rows in order[:CALIBRATION].split(64)]
    images = tuple(
        data.normalise(part.images[torch.arange(len(part))], options.device) for part in parts
    )
    labels = tuple(part.labels for part in parts)
    return Given(ancestor.model(side).to(options.device), images, labels, data.classes, seed)
