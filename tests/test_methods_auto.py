import pytest
import torch
from inherit import fill, logits, small_vit

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.auto import Auto, Mixed, changes
from weightinit.methods.lemon import LEMON
from weightinit.methods.selection import WeightSelection


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ({}, WeightSelection),
        ({"width": 48, "heads": 6}, LEMON),
        ({"depth": 5}, LEMON),
        ({"width": 16, "heads": 2}, WeightSelection),
        ({"width": 48, "heads": 6, "depth": 1}, Mixed),
        ({"mlp_ratio": 2.0, "depth": 4}, Mixed),
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


def test_each_axis_has_its_own_rule():
    """Twice the width, one head more each, half the blocks: what grows keeps the function."""
    ancestor = small_vit(24, 3, 4).double()
    shallow, model = small_vit(24, 3, 2).double(), small_vit(48, 6, 2).double()
    fill(shallow, ancestor, WeightSelection(depth="uniform"))
    fill(model, ancestor, Mixed())
    torch.testing.assert_close(logits(model), logits(shallow), atol=1e-10, rtol=0)


def test_a_head_dim_that_changes_among_others_is_refused():
    with pytest.raises(ProjectionError, match="head dim 8 -> 12"):
        fill(small_vit(24, 2, 1, mlp_ratio=8.0), small_vit(24, 3, 1), Mixed())


def test_changes_are_named():
    old, new = anatomy(small_vit(24, 3, 2)), anatomy(small_vit(16, 2, 3, mlp_ratio=8.0))
    assert [set(names) for names in changes(old, new)] == [{"m", "depth"}, {"d", "h"}]


def test_a_head_of_other_classes_is_fresh():
    report = fill(small_vit(48, 6, 1, num_classes=3), small_vit(24, 3, 2), Auto())
    assert {row.name for row in report.rows if row.action == "fresh"} == {
        "head.weight",
        "head.bias",
    }
