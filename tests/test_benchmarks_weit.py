"""The suites of WeiT start, and record plain rows; what they measure takes a GPU."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional

import weightinit as wi

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import schema
import weit
from domains.domain import Domain, Shape, learn


class Toy(Domain):
    """Four-pixel images by the sign of their mean."""

    full = Shape((2,), 32)
    sizes = wi.Sizes(depths=(1, 2), widths=(1, 0.5))
    targets = (Shape((1,), 16), Shape((3,), 32))
    long = Shape((1,), 16)
    steps, short, batch, rates, fits = 6, 2, 8, (1e-3,), (2, 1e-2)

    def build(self, shape):
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=4, patch_size=2, in_chans=1, num_classes=2,
            depth=shape.depths[0], embed_dim=shape.width, num_heads=shape.width // 16,
        )  # fmt: skip

    def loss(self, model, generator):
        images = torch.randn(self.batch, 1, 4, 4, generator=generator)
        return functional.cross_entropy(model(images), (images.mean((1, 2, 3)) > 0).long())

    @torch.no_grad()
    def scores(self, model, part):
        return {"accuracy": 100 - self.loss(model, torch.Generator().manual_seed(0)).item()}


@pytest.fixture
def lab(tmp_path):
    lab = weit.Lab.__new__(weit.Lab)
    lab.suite, lab.work, lab.domain = "toy", tmp_path, Toy("cpu", tmp_path)
    return lab


@pytest.mark.parametrize("start", ["random", "WeiT", "WeiT, fitted", "Weight Selection", "LEMON"])
def test_a_run_starts_trains_and_makes_a_plain_row(lab, start):
    _, sources, fits, _ = weit.STARTS[start]
    for source in sources:
        lab.train(source, 1)
    shape = next(shape for shape in Toy.targets if fits(Toy.full, shape))
    row = weit.flat(weit.perform(lab, weit.Run(start, shape, 1, long=start == "random")))
    assert {"at_once_accuracy", "trained_accuracy", "val_accuracy", "lr"} <= row.keys()
    file = schema.record("weit-toy", [row], seeds=[1], folder=lab.work)
    assert json.loads(file.read_text())["rows"] == [row]


def test_a_nested_model_is_trained_at_the_sizes_that_it_draws(lab, monkeypatch):
    module, seen = lab.module("WeiT", 1), []
    at = wi.NestedModel.at
    monkeypatch.setattr(
        wi.NestedModel, "at", lambda self, size: seen.append(size) or at(self, size)
    )
    learn(module, lab.domain.loss, lab.domain, steps=20, lr=1e-3, seed=1)
    assert seen == [module.drawn(call) for call in range(20)]
    assert len(set(seen)) > 1


def test_long_runs_come_last():
    runs = list(weit.runs("toy", Toy, (1, 2)))
    assert [run.long for run in runs] == sorted(run.long for run in runs)
    assert len({run.file for run in runs}) == len(runs)
