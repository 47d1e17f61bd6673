"""What the suites of `weit.py` share: a line of work, sizes in it, and one training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

import weightinit as wi
from weightinit.anatomy import Rule

Part = Literal["val", "test"]
Loss = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class Shape:
    """A size of the domain's model: blocks (of each stage), and the width of the stream."""

    depths: tuple[int, ...]
    width: int

    def __str__(self) -> str:
        """Name the size in tables, width first."""
        return f"{self.width} x {'-'.join(map(str, self.depths))}"


class Domain:
    """Data and models of one line of work, on one device.

    Attributes:
        full: size of the auxiliary model.
        sizes: what its nested constraint is trained at.
        targets: sizes to start.
        long: the target that is also trained for the whole budget.
        steps: of a source, and of a long training.
        short: steps of a target.
        batch: inputs a step.
        rates: learning rates of which validation picks one for each target.
        source_rate: learning rate of the sources.
        weight_decay: decay of matrices.
        metric: the score that decides, and whether more is better.
        fits: steps and rate of fitted scalers.
        rules: of parameters that no family of the library explains.
        judge: whether samples or episodes are judged by a network that must be trained first.
    """

    full: ClassVar[Shape]
    sizes: ClassVar[wi.Sizes]
    targets: ClassVar[tuple[Shape, ...]]
    long: ClassVar[Shape]
    steps: ClassVar[int] = 3000
    short: ClassVar[int] = 300
    batch: ClassVar[int] = 128
    rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3)
    source_rate: ClassVar[float] = 3e-3
    weight_decay: ClassVar[float] = 0.05
    metric: ClassVar[tuple[str, bool]] = ("accuracy", True)
    fits: ClassVar[tuple[int, float]] = (100, 2e-2)
    rules: ClassVar[tuple[Rule, ...]] = ()
    judge: ClassVar[bool] = False

    def __init__(self, device: str, cache: Path) -> None:
        self.device, self.cache = torch.device(device), cache

    def build(self, shape: Shape) -> nn.Module:
        """Return a model of a size with its own random weights, from torch's global generator."""
        raise NotImplementedError

    def loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return the loss on a training batch that the generator draws."""
        raise NotImplementedError

    def scores(self, model: nn.Module, part: Part) -> dict[str, float]:
        """Return the scores on held-out data."""
        raise NotImplementedError

    def judged(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Return what a trained model does, where its loss does not tell."""
        return {}

    def teacher(self) -> nn.Module:
        """Return the untrained network that teaches, or judges."""
        raise NotImplementedError

    def teach(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return its loss on a training batch."""
        return self.loss(model, generator)

    def picture(self, model: nn.Module, file: Path) -> None:
        """Draw what a trained model makes, where there is something to see."""

    def shape(self, size: wi.Size) -> Shape:
        """Return the shape of a size that a nested model asks for."""
        return Shape(size.stages, round(self.full.width * size.fraction))

    def better(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether one model's scores are better than another's."""
        name, more = self.metric
        return one[name] > other[name] if more else one[name] < other[name]


def learn(
    module: nn.Module,
    loss: Loss,
    domain: Domain,
    *,
    steps: int,
    lr: float,
    seed: int,
    after: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train in place: AdamW, a tenth of warm-up, half a cosine, gradients of norm 1 at most."""
    excluded = getattr(module, "no_weight_decay", set)()
    groups = param_groups_weight_decay(
        module, domain.weight_decay, no_weight_decay_list=tuple(excluded)
    )
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup)),
        ],
        [warmup],
    )
    generator = torch.Generator(domain.device).manual_seed(seed)
    passes = getattr(module, "passes", 1)
    module.train()
    for step in range(1, steps + 1):
        for _ in range(passes):
            (loss(module, generator) / passes).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if after:
            after(step)
            module.train()
    return module.eval()
