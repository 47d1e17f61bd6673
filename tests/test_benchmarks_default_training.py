"""The training of the default templates: digits for packs, random weights for a teacher."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import weightinit as wi
from weightinit.training.data import load_data

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import default_training
from trials import teaching


class Teacher:
    """A ViT with the patches of the real one."""

    sizes = (64, 12, 1, 14)
    normalisation = ((0.5,) * 3, (0.5,) * 3)

    def __init__(self, name):
        self.name = name

    def model(self, side):
        torch.manual_seed(0)
        size = {"img_size": side, "patch_size": 14, "embed_dim": 64, "num_heads": 1, "depth": 11}
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, **size).eval()


@pytest.fixture
def packs(monkeypatch):
    """Two packs of few digits, of which one is described."""
    whole = load_data("digits").in_shape(32)
    rows = {part: getattr(whole, part).rows(torch.arange(80)) for part in ("train", "val", "test")}
    data = replace(whole, **rows)
    monkeypatch.setattr(teaching, "Pretrained", Teacher)
    monkeypatch.setattr(teaching, "ROWS", 40)
    monkeypatch.setattr(default_training, "load", lambda name, **_: replace(data, name=name))
    monkeypatch.setattr(default_training, "PACKS", {"cifar10": (6, 70), "other": (4, 0)})
    return {"cifar10": (replace(data, name="cifar10"), 6), "other": (data, 4)}


def test_a_teacher_describes_once_and_its_features_are_whitened(packs, tmp_path, monkeypatch):
    data = packs["cifar10"][0]
    rows, tokens, patches = teaching.describe("any", "cifar10", data, 70, tmp_path)
    assert len(rows.unique()) == 70 and len(list(tmp_path.iterdir())) == 2
    assert tokens.shape == (70, 64) and patches.shape == (70, 16, 64)
    monkeypatch.setattr(teaching, "Pretrained", None)
    again = teaching.describe("any", "cifar10", data, 70, tmp_path)
    assert torch.equal(again[2], patches)
    made = teaching.lessons(packs, {"cifar10": again})
    assert int(made["cifar10"].known.sum()) == 70 and not made["other"].known.any()
    assert made["cifar10"].whole[rows].mean(0).abs().max() < 1e-3
    assert not made["other"].whole.any()


def test_maps_are_cropped_and_mirrored_as_images_are():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 32).expand(8, 3, 32, 32)
    coarse = torch.nn.functional.interpolate(ramp[:, :1], (4, 4), mode="area")
    flip = torch.arange(8) < 4
    images, maps = teaching.warped(ramp, coarse, flip, 24, generator)
    assert images.shape == (8, 3, 24, 24)
    seen = torch.nn.functional.interpolate(images[:, :1], (4, 4), mode="area")
    assert float((seen - maps).abs().max()) < 0.35
    rising = maps[:, 0, 0, -1] > maps[:, 0, 0, 0]
    assert rising[4:].all() and not rising[:4].all()


def test_the_command_trains_in_two_stages_and_saves(packs, tmp_path, monkeypatch):
    stages = tuple(default_training.Stage(2, 1e-3, seed) for seed in (0, 1))
    monkeypatch.setattr(default_training, "STAGES", stages)
    command = ["default_training.py", "--width", "32", "--heads", "2"]
    places = ["--out", str(tmp_path / "mine"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*command, *places])
    default_training.main()
    bundle = wi.TemplateBundle.from_pretrained(tmp_path / "mine")
    assert bundle.config.provenance["ancestor"]["images"] == {"cifar10": 70}
    assert bundle.config.traits["trained_depths"] == [4, 5, 6, 7, 8]
    size = {"img_size": 64, "patch_size": 16, "embed_dim": 128, "num_heads": 2, "depth": 3}
    wi.init_from_templates(timm.create_model("vit_tiny_patch16_224", num_classes=5, **size), bundle)
    first = {p.name for p in (tmp_path / "work").iterdir()}
    assert first == {"features", "mine-1", "mine-2"}
