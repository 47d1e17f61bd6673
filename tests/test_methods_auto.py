import pytest
import torch
from helpers.inherit import fill, small_vit

from weightinit.anatomy import anatomy
from weightinit.methods.auto import Auto
from weightinit.methods.halfway import ShrinkThenGrow
from weightinit.methods.lemon import LEMON
from weightinit.methods.selection import WeightSelection


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ({}, WeightSelection),
        ({"width": 48, "heads": 6}, LEMON),
        ({"depth": 5}, LEMON),
        ({"width": 16, "heads": 2}, WeightSelection),
        ({"width": 48, "heads": 6, "depth": 1}, ShrinkThenGrow),
        ({"mlp_ratio": 2.0, "depth": 4}, ShrinkThenGrow),
    ],
)
def test_what_is_picked(target, method):
    ancestor, model = (
        small_vit(24, 3, 3),
        small_vit(**{"width": 24, "heads": 3, "depth": 3, **target}),
    )
    assert type(Auto().choose(anatomy(ancestor), anatomy(model))) is method
    report = fill(model, ancestor, Auto())
    assert report.counts["fresh"] == 0
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_head_of_other_classes_is_fresh():
    report = fill(small_vit(48, 6, 1, num_classes=3), small_vit(24, 3, 2), Auto())
    assert {row.name for row in report.rows if row.action == "fresh"} == {
        "head.weight",
        "head.bias",
    }
