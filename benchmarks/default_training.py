"""Train the templates that `init_from_templates(model)` takes: several packs, and a teacher.

    python benchmarks/default_training.py --out mixed-w96           # CPU, hours; resumes

The blocks of a ViT of 4 to 8 blocks are composed of WAVE's templates, and it learns five packs at
once: their labels, a head a pack, and the features that a pretrained network has of their images,
of the whole image by either pooling, and of its parts by the patches. Images are cropped, mirrored
where that keeps their meaning, coloured less, and shown at three sizes. No image of the photos
that `default_bundle.py` judges by is among them. A second training begins at the templates of the
first, at a lower rate.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import schema
import torch
from torch import Tensor, nn
from torch.nn import functional
from trials.data import load
from trials.teaching import GRID, PART, WHOLE, Lesson, describe, lessons, warped

from weightinit import TemplateBundle
from weightinit.training.config import TrainingConfig
from weightinit.training.contexts import seeded, subseed
from weightinit.training.loop import follow
from weightinit.training.presets import Preset
from weightinit.training.teacher import Network
from weightinit.training.templates import MixedModel, build_auxiliary

TEACHER = "dinov2_small_focus"
#: Images of a batch of 128, and how many are described by the teacher.
PACKS = {
    "cifar10": (84, 14_500),
    "gtsrb": (16, 1500),
    "omniglot_small": (12, 1500),
    "pneumonia": (8, 0),
    "spoken_digits": (8, 0),
}
#: Which share of a pack's images in a batch is drawn from those that are described.
DESCRIBED = {"cifar10": 2 / 3}
#: Sides of the images, how often they are taken, and the share of a batch that is.
SIDES = ((48, 0.15, 0.5), (24, 0.1, 1.0), (32, 0.75, 1.0))
#: Weights of the teacher's view of the whole image and of its parts, beside the labels.
TAUGHT, PARTS = 3.0, 1.5


@dataclass(frozen=True)
class Stage:
    """One training: its rate falls to zero, and the next begins at its templates."""

    steps: int
    lr: float
    seed: int

    @property
    def config(self) -> TrainingConfig:
        """How to train."""
        return TrainingConfig(
            self.steps, 128, self.lr, self.steps // 20, clip_grad=1.0, label_smoothing=0.1,
            seed=self.seed, precision="bf16",
        )  # fmt: skip


STAGES = (Stage(6000, 3e-3, 0), Stage(3000, 2e-3, 1))


class Student(nn.Module):
    """The auxiliary model, a head a pack, and maps onto the teacher's features."""

    def __init__(self, auxiliary: MixedModel, width: int, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.auxiliary, self.first = auxiliary, next(iter(classes))
        heads = {name: nn.Linear(width, n) for name, n in classes.items() if name != self.first}
        self.heads = nn.ModuleDict(heads)
        self.whole, self.parts = nn.Linear(width, WHOLE), nn.Linear(width, PART)
        for head in heads.values():
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    @property
    def inner(self) -> Any:
        """The model inside the auxiliary model."""
        return self.auxiliary.model

    def no_weight_decay(self) -> set[str]:
        """Return the exclusions of the auxiliary model."""
        return {f"auxiliary.{name}" for name in self.auxiliary.no_weight_decay()}

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the tokens ``[B, 1 + T, width]``, at a depth drawn."""
        mixed, model = self.auxiliary, self.inner
        own, blocks = mixed.depth_used, model.blocks
        try:
            choices = [*mixed.depths, *[mixed.depth] * len(mixed.depths)]
            mixed.depth_used = choices[int(torch.randint(len(choices), ()))]
            model.blocks = blocks[: mixed.depth_used]
            mixed.compose()
            return model.forward_features(images)
        finally:
            mixed.depth_used, model.blocks = own, blocks

    def logits(self, pack: str, features: Tensor) -> Tensor:
        """Return what a pack's head says of pooled features."""
        return (self.inner.head if pack == self.first else self.heads[pack])(features)


def drawn(packs: Mapping[str, Lesson], step: int, seed: int) -> tuple[Any, ...]:
    """Return a step's images, labels and sizes by pack, what the teacher says, and of which."""
    generator = torch.Generator().manual_seed(subseed(seed, 1, step))
    point = float(torch.rand((), generator=generator))
    ends = itertools.accumulate(often for _, often, _ in SIDES)
    pairs = zip(SIDES, ends, strict=True)
    side, _, part = next((size for size, end in pairs if point < end), SIDES[-1])
    images, labels, known, whole, parts, flips = [], [], [], [], [], []
    for name, pack in packs.items():
        count = max(2, round(pack.share * part))
        rows = torch.randint(len(pack.known), (count,), generator=generator)
        if some := int(count * DESCRIBED.get(name, 0)):
            described = pack.known.nonzero().flatten()
            rows[:some] = described[torch.randint(len(described), (some,), generator=generator)]
        images.append(pack.data.normalise(pack.data.train.images[rows]))
        labels.append(pack.data.train.labels[rows])
        known.append(pack.known[rows])
        whole.append(pack.whole[rows])
        parts.append(pack.parts[rows].float())
        flips.append(torch.full((count,), pack.data.flip))
    x, maps = warped(torch.cat(images), torch.cat(parts), torch.cat(flips), side, generator)

    def near(value: float) -> Tensor:
        return value * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1)

    x = x * (1 + near(0.3)) + near(0.3)
    grey = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.15
    colour = torch.where(grey, 0.0, (1 + near(0.4)).clamp(max=1.4))
    x = x.mean(1, keepdim=True).lerp(x, colour)
    return x, labels, torch.cat(known), torch.cat(whole), maps


def loss(student: Student, packs: Mapping[str, Lesson], batch: Any, config: TrainingConfig) -> Any:
    """Return the loss of one batch."""
    x, labels, known, whole, maps = batch
    with config.autocast(x.device):
        features = student(x)
    features, total = features.float(), torch.zeros(())
    for pooled in (features[:, 0], features[:, 1:].mean(1)):
        entropy = torch.zeros(())
        sizes = [len(own) for own in labels]
        for pack, rows, own in zip(packs, pooled.split(sizes), labels, strict=True):
            smooth = {"label_smoothing": config.label_smoothing, "reduction": "sum"}
            entropy = entropy + functional.cross_entropy(student.logits(pack, rows), own, **smooth)
        far = _far(student.whole(pooled[known]), whole[known])
        total = total + 0.5 * (entropy / len(x) + TAUGHT * far)
    side = math.isqrt(features.shape[1] - 1)
    if side < GRID:
        return total
    tokens = features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    if side > GRID:
        tokens = functional.interpolate(tokens, (GRID, GRID), mode="area")
    said = student.parts(tokens.flatten(2).transpose(1, 2)[known])
    return total + PARTS * _far(said, maps.flatten(2).transpose(1, 2)[known])


def _far(a: Tensor, b: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(a, b, dim=-1).mean()


def begin(auxiliary: MixedModel, bundle: TemplateBundle) -> None:
    """Give an auxiliary model the templates, scalers and outer tensors of a bundle."""
    model: Any = auxiliary.model
    places = {f"templates.{k}": v for k, v in auxiliary.template_values().items()}
    places |= {f"scalers.{k}": v for k, v in auxiliary.scaler_values().items()}
    specs = [spec for spec in auxiliary.composer.target.specs if not spec.stack]
    named = dict(model.named_parameters())
    places |= {f"outside.{spec.role}": named[spec.name] for spec in specs}
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(bundle.tensors[name].reshape(place.shape))


def train(
    stage: Stage, packs: Mapping[str, Lesson], width: int, heads: int, out: Path,
    start: TemplateBundle | None,
) -> MixedModel:  # fmt: skip
    """Return the auxiliary model after one training, which resumes what is there."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": width, "num_heads": heads, "depth": 6}
    network = Network("vit_tiny_patch16_224", {**size, "dynamic_img_size": True})
    preset = Preset(
        out.name, "cifar10", network, stage.config, pools=("avg", "token"), depths=(4, 5, 7, 8)
    )
    data = next(iter(packs.values())).data
    mixed = build_auxiliary(preset, data, "wave", stage.seed)
    assert isinstance(mixed, MixedModel)
    if start is not None:
        begin(mixed, start)
    classes = {name: pack.data.classes for name, pack in packs.items()}
    with seeded(stage.seed):
        student = Student(mixed, width, classes)

    def losses(steps: range) -> Iterator[list[Tensor]]:
        for step in steps:
            batch = drawn(packs, step, stage.seed)
            with seeded(subseed(stage.seed, 4, step)):
                value = loss(student, packs, batch, stage.config)
            yield [value]

    follow(
        stage.config, student, losses, lambda: {"val": data.score(mixed)}, out=out, resume=True,
        save_every=300, eval_every=max(1, stage.steps // 8), title=out.name,
    )  # fmt: skip
    return mixed


def main() -> None:
    """Describe, train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path.home() / ".cache" / "weightinit"
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path, default=cache)
    parser.add_argument("--work", type=Path, help="default: <cache-dir>/default_training")
    given = parser.parse_args()
    work = given.work or given.cache_dir / "default_training"
    packs = {
        name: (load(name, cache_dir=given.cache_dir).in_shape(32), share)
        for name, (share, _) in PACKS.items()
    }
    found = {
        name: describe(TEACHER, name, packs[name][0], images, work / "features")
        for name, (_, images) in PACKS.items()
        if images
    }
    taught, bundle = lessons(packs, found), None
    data = packs["cifar10"][0]
    for number, stage in enumerate(STAGES, 1):
        folder = work / f"{given.out.name}-{number}"
        mixed = train(stage, taught, given.width, given.heads, folder, bundle)
        card = {
            "command": schema.command(),
            "data": {name: pack.describe() for name, (pack, _) in packs.items()},
            "ancestor": {"features": TEACHER, "images": {n: len(f[0]) for n, f in found.items()}},
            "auxiliary": {
                "recipe": [asdict(stage.config) for stage in STAGES[:number]],
                "val": mixed.scores(data),
                "test": round(data.score(mixed, data.test), 2),
            },
            "versions": schema.versions(),
        }
        bundle = mixed.to_bundle(provenance=card, dtype=torch.float16)
    assert bundle is not None
    bundle.save_pretrained(given.out)


if __name__ == "__main__":
    main()
