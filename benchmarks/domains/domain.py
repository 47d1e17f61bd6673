"""What the suites of `weit.py` share: a line of work, sizes in it, and one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
#: What a step trains: a size of a nested model for each pass, or None.
Sizes = tuple[wi.Size | None, ...]


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
        recorded: whether a step on a GPU may be recorded once and replayed.
        data: what is learned, in words.
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
    recorded: ClassVar[bool] = True
    data: ClassVar[str] = "CIFAR-10"
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

    def taught(self, teacher: nn.Module) -> Loss:
        """Return the loss on labels and a teacher's soft labels."""
        raise NotImplementedError

    def picture(self, model: nn.Module, file: Path) -> None:
        """Draw what a trained model makes, where there is something to see."""

    def shape(self, size: wi.Size) -> Shape:
        """Return the shape of a size that a nested model asks for."""
        return Shape(size.stages, round(self.full.width * size.fraction))

    def better(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether one model's scores are better than another's."""
        name, more = self.metric
        return one[name] > other[name] if more else one[name] < other[name]


class Replay:
    """Training steps on a GPU, recorded once for each set of sizes and then replayed.

    Small networks are trained at the rate at which a processor launches kernels; a CUDA graph
    launches a whole step.

    Args:
        step: a training step at some sizes.
        generator: what it draws from.
        kept: everything that a step changes; recording leaves it as it was.
    """

    def __init__(
        self,
        step: Callable[[Sizes], None],
        generator: torch.Generator,
        kept: Callable[[], list[Tensor]],
    ) -> None:
        self.step, self.generator, self.kept = step, generator, kept
        self.graphs: dict[Sizes, torch.cuda.CUDAGraph] = {}

    def record(self, sizes: Sizes) -> None:
        """Record the step at some sizes."""
        state = self.generator.get_state()
        before = {id(tensor): tensor.detach().clone() for tensor in self.kept()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(sizes)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.step(sizes)
        with torch.no_grad():
            for tensor in self.kept():  # the optimizer's state is new with the first step
                old = before.get(id(tensor))
                tensor.zero_() if old is None else tensor.copy_(old)
        self.generator.set_state(state)
        self.graphs[sizes] = graph

    def __call__(self, sizes: Sizes) -> None:
        """Take a step at some sizes."""
        if sizes not in self.graphs:
            self.record(sizes)
        self.graphs[sizes].replay()


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
    cuda = domain.device.type == "cuda"
    rate = torch.tensor(lr, device=domain.device)
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True, capturable=cuda)
    generator = torch.Generator(domain.device).manual_seed(seed)
    nested = module if isinstance(module, wi.NestedModel) else None

    def step(sizes: Sizes) -> None:
        for size in sizes:
            with nested.at(size) if nested and size else nullcontext():
                (loss(module, generator) / len(sizes)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def kept() -> list[Tensor]:
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [*module.parameters(), *module.buffers(), *states]

    take = Replay(step, generator, kept) if cuda and domain.recorded else step
    warmup = max(1, steps // 10)
    module.train()
    for number in range(steps):
        along = (number - warmup) / max(1, steps - warmup)
        share = (number + 1) / warmup if number < warmup else (1 + math.cos(math.pi * along)) / 2
        rate.fill_(lr * share)
        passes = nested.passes if nested else 1
        calls = range(number * passes, (number + 1) * passes)
        take(tuple(nested.drawn(call) if nested else None for call in calls))
        if after:
            after(number + 1)
            module.train()
    return module.eval()
